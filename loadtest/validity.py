"""Whether a measurement is one: a client that was late measured itself, and no figure of such a run is to be used."""

from collections.abc import Sequence

from loadtest.metrics import Metrics
from loadtest.statistics import Summary

LAG_FRACTION = 0.01
LEAST_LAG_S = 0.005
RULE = (
    f"{LAG_FRACTION:.0%} of the median TTFT, and at least {LEAST_LAG_S * 1e3:.0f} ms; the run is invalid (exit code 3) "
    "when the p99 of the time from due to sent, or of the client's own wake-ups, is above it"
)


def lag_limit_s(metrics: Metrics, asked_s: float | None) -> float:
    """The lateness that is allowed at the 99th percentile."""
    return asked_s if asked_s is not None else max(LEAST_LAG_S, LAG_FRACTION * (metrics.ttft.percentile(50) or 0.0))


def why_invalid(metrics: Metrics, tick_lags_s: Sequence[float], limit_s: float) -> str | None:
    """What the client did badly, or None."""
    lags = {
        "requests were sent": metrics.lag.percentile(99) or 0.0,
        "the client woke up": Summary.of(tick_lags_s).percentile(99) or 0.0,
    }
    for what, lag_s in lags.items():
        if lag_s > limit_s:
            return (
                f"the client was the bottleneck: {what} {lag_s * 1e3:.1f} ms late at p99, allowed are "
                f"{limit_s * 1e3:.1f} ms; use a lower rate, a quieter machine or several clients"
            )
    return None


def find_warnings(metrics: Metrics, num_repeated: int) -> list[str]:
    """What makes figures less exact than they look, without making them wrong."""
    counted = {
        "answers had no usage: their tokens are the chunks that came": metrics.usage_missing,
        "answers had another number of tokens than of chunks: tokens are the usage's, spread evenly over the chunks "
        "(--usage each tells them apart)": metrics.usage_unequal,
        "prompts had another length on the server than the data set says": metrics.prompt_unequal,
        "answers had another length than was asked for: the server may not know ignore_eos": metrics.output_unequal,
        "requests repeat earlier ones or the warm-up, the file being used up; a prefix cache saw them": num_repeated,
    }
    return [f"{count} {what}" for what, count in counted.items() if count]
