"""What an overload run measured, as a Markdown table, and the promises about times, which need a quiet machine."""

from collections import Counter
from collections.abc import Iterable
from statistics import fmean, median

from tests.chaos.overload import ACCEPTED_SHARE, REFUSED_S, SETTLE_S, Outcome
from tests.chaos.wire import Reply

_GROWTH = 0.02
_SLOWER = 1.5
_MS = 1e3
_MB = 1e6


def percentile(values: Iterable[float], share: float) -> float:
    """The value that `share` of them do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def in_time(outcome: Outcome) -> list[Reply]:
    """Accepted requests that had their first token and each further one within their deadlines, to the end."""
    options = outcome.options
    return [
        reply
        for reply in outcome.accepted
        if reply.completed and reply.first_s <= options.queue_timeout_s and reply.gap_s <= options.progress_timeout_s
    ]


def memory_thirds(outcome: Outcome) -> tuple[float, float]:
    """Mean resident bytes in the middle and in the last third of the overload."""
    third_s = outcome.options.overload_s / 3
    middle = [size for at_s, size in outcome.memory if third_s <= at_s < 2 * third_s]
    last = [size for at_s, size in outcome.memory if at_s >= 2 * third_s]
    return fmean(middle or [0]), fmean(last or [0])


def table(outcome: Outcome) -> list[str]:
    """Lines of Markdown."""
    options, accepted, refused = outcome.options, outcome.accepted, outcome.refused
    retries = [int(reply.retry_after) for reply in refused if reply.retry_after]
    middle, last = memory_thirds(outcome)
    per_s = len(outcome.overload) / options.overload_s
    before, after = ([reply.first_s for reply in part] for part in (outcome.before, outcome.after))
    codes = ", ".join(f"{count} {code}" for code, count in Counter(reply.code for reply in refused).items())
    share = len(in_time(outcome)) / len(accepted) if accepted else 0.0
    rows = [
        ("slices", "the demo model" if options.demo else f"emulated, {options.step_s * _MS:g} ms a decode step"),
        ("capacity", f"{outcome.capacity_per_s:.1f} requests/s of {options.answer_tokens} tokens"),
        ("offered", f"{per_s:.1f} requests/s for {options.overload_s:g} s: {len(outcome.overload)}"),
        ("accepted", f"{len(accepted)} ({len(accepted) / options.overload_s:.1f}/s)"),
        ("accepted, first token and progress in time", f"{100 * share:.2f} %"),
        ("accepted, first token p50, p99", _pair([reply.first_s for reply in accepted])),
        ("refused", f"{len(refused)}: {codes}"),
        ("refused, time to the 429 p50, p99", _pair([reply.end_s for reply in refused])),
        ("Retry-After", f"{min(retries, default=0)} to {max(retries, default=0)} s"),
        ("server memory, middle and last third", f"{middle / _MB:.1f} MB, {last / _MB:.1f} MB"),
        ("server processor time", f"{outcome.busy:.2f} cores"),
        ("lone request's first token before, p50", f"{median(before) * _MS:.1f} ms"),
        (f"lone request's first token {SETTLE_S:g} s after, p50", f"{median(after) * _MS:.1f} ms"),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _pair(values: list[float]) -> str:
    return f"{percentile(values, 0.5) * _MS:.0f} ms, {percentile(values, 0.99) * _MS:.0f} ms"


def slow_promises(outcome: Outcome) -> list[str]:
    """What was too slow or grew, one line each."""
    found = list[str]()
    accepted, on_time = len(outcome.accepted), len(in_time(outcome))
    if on_time < ACCEPTED_SHARE * accepted:
        found.append(f"{on_time} of {accepted} accepted requests met their deadlines")
    refused_s = percentile([reply.end_s for reply in outcome.refused], 0.99)
    if refused_s > REFUSED_S:
        found.append(f"a refusal took {refused_s * _MS:.0f} ms at p99")
    middle, last = memory_thirds(outcome)
    if last > middle * (1 + _GROWTH):
        found.append(f"memory grew from {middle / _MB:.1f} MB to {last / _MB:.1f} MB")
    before, after = (median(reply.first_s for reply in part) for part in (outcome.before, outcome.after))
    if after > before * _SLOWER + 0.005:
        found.append(f"a lone request's first token took {before * _MS:.1f} ms before and {after * _MS:.1f} ms after")
    return found
