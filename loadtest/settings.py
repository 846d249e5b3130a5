"""What a load is, from flags: which requests, when, of whom. Everything that `--help` lists, checked together."""

import math
from typing import Any, Literal

import msgspec

from loadtest.arrivals import Arrivals, Ramp, Steady, Trace
from loadtest.attempt import Limits
from loadtest.client import Target, UsageMode
from loadtest.connection import Address
from loadtest.datasets.shape import HIGHEST_TOKEN, LOWEST_TOKEN, Shape
from loadtest.errors import UsageError
from loadtest.request import Api

DEFAULT_CONCURRENCY = 8
CLOSED_COUNT = 5000
"""Requests that are prepared for a closed loop that a duration ends."""


class LoadSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One field per flag, with its name."""

    url: str
    model: str | None = None
    api: Api | None = None
    api_key: str | None = None
    data: str = "random"
    requests: int | None = None
    duration: float | None = None
    warmup: int = 4
    seed: int = 0
    rate: float | None = None
    concurrency: int | None = None
    ramp: tuple[float, float] | None = None
    arrivals: Literal["poisson", "gamma", "constant", "trace"] = "poisson"
    burstiness: float | None = None
    speed: float = 1.0
    input_tokens: int = 256
    output_tokens: int | None = None
    spread: float = 0.0
    prefix_tokens: int = 1024
    groups: int = 8
    zipf: float = 1.0
    token_ids: tuple[int, int] = (LOWEST_TOKEN, HIGHEST_TOKEN)
    temperature: float = 0.0
    ignore_eos: bool | None = None
    extra_body: dict[str, Any] = {}
    usage: UsageMode = "final"
    timing: bool = False
    timeout: float = 600.0
    stall_timeout: float = 60.0
    cancel: float = 0.0
    cancel_after: float = 1.0
    max_lag: float | None = None

    def check(self) -> None:
        """Raises UsageError for flags that contradict each other."""
        modes = [name for name in ("rate", "concurrency", "ramp") if getattr(self, name) is not None]
        if self.arrivals == "trace":
            modes.append("arrivals trace")
        if len(modes) > 1:
            raise UsageError(f"--{' and --'.join(modes)}: allowed: one of them")
        if self.burstiness is not None and self.arrivals != "gamma":
            raise UsageError("--burstiness: allowed: with --arrivals gamma")
        if self.arrivals == "gamma" and self.burstiness is None:
            raise UsageError("--arrivals gamma: needs --burstiness, such as 0.5")
        if self.is_closed and self.arrivals != "poisson":
            raise UsageError(f"--arrivals {self.arrivals}: needs --rate or --ramp")
        if self.rate == math.inf and self.duration is not None:
            raise UsageError("--rate inf sends everything at once; allowed: --requests instead of --duration")

    @property
    def is_closed(self) -> bool:
        """Whether so many requests are kept on their way, instead of sending by a schedule."""
        return self.rate is None and self.ramp is None and self.arrivals != "trace"

    def concurrency_of(self, count: int) -> int:
        """Of a loop without a schedule: at an infinite rate all are sent at once, each due when it is sent."""
        return count if self.rate == math.inf else self.kept_busy

    @property
    def kept_busy(self) -> int:
        """The concurrency of a closed loop, and of any warm-up."""
        return self.concurrency or DEFAULT_CONCURRENCY

    def count(self, default: int) -> int:
        """How many requests are measured; `default` is what the data set suggests."""
        if self.requests is not None:
            return self.requests
        if self.duration is None or self.arrivals == "trace":
            return default
        if self.is_closed:
            return CLOSED_COUNT
        mean_rate = sum(self.ramp) / 2 if self.ramp is not None else self.rate or 0.0
        return max(1, round(mean_rate * self.duration))

    def arrival_process(self) -> Arrivals | None:
        """Of an open loop."""
        burstiness = {"constant": math.inf, "gamma": self.burstiness}.get(self.arrivals) or 1.0
        if self.arrivals == "trace":
            return Trace(self.speed)
        if self.ramp is not None:
            return Ramp(*self.ramp, burstiness)
        return Steady(self.rate, burstiness) if self.rate is not None and self.rate < math.inf else None

    def shape(self) -> Shape:
        """The lengths of prompts and answers."""
        return Shape(
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            spread=self.spread,
            prefix_tokens=self.prefix_tokens,
            groups=self.groups,
            zipf=self.zipf,
            lowest_token=self.token_ids[0],
            highest_token=self.token_ids[1],
        )

    def target(self, address: Address, model: str, api: Api) -> Target:
        """What every request says."""
        return Target(
            address=address,
            model=model,
            api=api,
            api_key=self.api_key,
            temperature=self.temperature,
            usage=self.usage,
            ignore_eos=self.ignore_eos,
            extra_body=self.extra_body,
            limits=Limits(total_s=self.timeout, stall_s=self.stall_timeout),
            timing=self.timing,
        )

    def shown(self) -> dict[str, Any]:
        """For the result's file, without the key."""
        values = {name: value for name, value in msgspec.structs.asdict(self).items() if name != "api_key"}
        return {name: "inf" if value == math.inf else value for name, value in values.items()}
