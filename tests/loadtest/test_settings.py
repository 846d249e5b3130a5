"""What flags together mean: how many requests, by which arrivals, and how the environment is told."""

import math

from loadtest.arrivals import Ramp, Steady, Trace
from loadtest.environment import read_environment
from loadtest.settings import CLOSED_COUNT, LoadSettings


def settings(**flags: object) -> LoadSettings:
    return LoadSettings(url="http://h", **flags)  # type: ignore[arg-type]


def test_arrivals() -> None:
    assert settings(rate=2.0).arrival_process() == Steady(2.0)
    assert settings(rate=2.0, arrivals="constant").arrival_process() == Steady(2.0, math.inf)
    assert settings(rate=2.0, arrivals="gamma", burstiness=0.5).arrival_process() == Steady(2.0, 0.5)
    assert settings(ramp=(1.0, 9.0)).arrival_process() == Ramp(1.0, 9.0)
    assert settings(arrivals="trace", speed=3.0).arrival_process() == Trace(3.0)
    assert settings(concurrency=3).arrival_process() is None
    assert settings(rate=math.inf).arrival_process() is None


def test_counts() -> None:
    assert settings(rate=2.0).count(100) == 100
    assert settings(rate=2.0, requests=7, duration=50.0).count(100) == 7
    assert settings(rate=2.0, duration=50.0).count(7) == 100
    assert settings(ramp=(1.0, 9.0), duration=10.0).count(7) == 50
    assert settings(duration=10.0).count(7) == CLOSED_COUNT
    assert settings(arrivals="trace", duration=10.0).count(7) == 7
    assert [settings(**flags).concurrency_of(50) for flags in ({}, {"concurrency": 3}, {"rate": math.inf})] == [
        8,
        3,
        50,
    ]


def test_secrets_are_not_saved() -> None:
    command = read_environment(["run", "u", "--api-key", "k1", "--api-key=k2", "--rate", "1"]).command
    assert command == "loadtest run u --api-key '***' '--api-key=***' --rate 1"
    assert "api_key" not in settings(api_key="k").shown()
    assert settings(rate=math.inf).shown()["rate"] == "inf"
