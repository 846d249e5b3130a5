"""A comparison in words: tables for a terminal or a Markdown page, and one plain sentence per SLO and pair."""

from collections.abc import Sequence

import msgspec
from rich import box
from rich.table import Table

from loadtest.comparison import SAME, Capacity, Compared, ServerStage
from loadtest.page import markdown
from loadtest.slo import Objective
from loadtest.summary import shown_ms

Rows = list[list[str]]
Titled = tuple[str, Rows]
"""A heading and its table, the names of the columns first."""

PAYS = "Disaggregation pays here"
PAYS_NOT = "Disaggregation does not pay here"
UNSURE = "Whether disaggregation pays cannot be told here"
DEPENDS = "Whether disaggregation pays depends on the rate"


def slo_text(slo: Sequence[Objective]) -> str:
    """As it was asked for."""
    return ",".join(objective.text for objective in slo)


def tables(
    compared: Sequence[Compared], stages: Sequence[ServerStage], servers: Sequence[str], slos: Sequence[str]
) -> list[Titled]:
    """One per SLO and server that is compared with the last, then one of the stages."""
    found = list[Titled]()
    for index, slo in enumerate(slos):
        for name in servers[:-1]:
            rows = [_compared_row(one) for one in compared if one.slo == index and one.a == name]
            head = ["requests/s", "goodput A", "goodput B", "A / B (95 %)", "inside A", "inside B", "better"]
            found += [(f"{slo}: A is {name}, B is {servers[-1]}", [head, *rows])] if rows else []
    return found + ([("where the time went, ms: mean, p50, p99", _stage_rows(stages, servers))] if stages else [])


def render(rows: Rows) -> Table:
    """For a terminal."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for index, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def page(title: str, sentences: Sequence[str], notes: Sequence[str], titled: Sequence[Titled], origin: str) -> str:
    """The whole as Markdown; `origin` is the command that made it, and where."""
    parts = [f"# {title}", *sentences, *(f"Note: {note}" for note in notes), f"Made by `{origin}`"]
    for heading, rows in titled:
        parts += [f"## {heading}", markdown(rows)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def capacity_lines(found: Sequence[Capacity], slos: Sequence[str], attainment: float) -> list[str]:
    """What each server holds, one line per SLO."""
    lines = list[str]()
    for index, slo in enumerate(slos):
        held = [f"{one.server} {_held(one.rate)}" for one in found if one.slo == index]
        lines.append(f"held with {attainment:.0%} inside {slo}, at 95 % confidence: {'; '.join(held)}")
    return lines


def conclusions(
    compared: Sequence[Compared],
    servers: Sequence[str],
    slos: Sequence[str],
    rates: Sequence[float],
    emulated: dict[str, str],
) -> list[str]:
    """One sentence per SLO and server that is compared with the last. `emulated` is the label of servers that are."""
    short = {name: label.partition(":")[0] for name, label in emulated.items()}
    mark = f" EMULATED ({emulated_text(short)})." if emulated else ""
    sentences = list[str]()
    for index, slo in enumerate(slos):
        for name in servers[:-1]:
            own = [one for one in compared if one.slo == index and one.a == name]
            sentences.append(f"{slo}: {conclusion(own, name, servers[-1], rates)}{mark}")
    return sentences


def emulated_text(emulated: dict[str, str]) -> str:
    """The labels, once if all are the same."""
    labels = list(dict.fromkeys(emulated.values()))
    return labels[0] if len(labels) == 1 else "; ".join(f"{name}: {label}" for name, label in emulated.items())


def conclusion(compared: Sequence[Compared], a: str, b: str, rates: Sequence[float]) -> str:
    """One SLO's, over all rates asked for. A difference that is surely too small to matter is none."""
    if not compared:
        return f"nothing can be said about {a} and {b}: no load was measured on both."
    none = [one for one in compared if not one.goodput_a and not one.goodput_b]
    same = [one for one in compared if one.is_same and one not in none]
    rest = [one for one in compared if one not in none and one not in same]
    won, lost, unsure = ([one for one in rest if one.verdict == verdict] for verdict in ("a", "b", "open"))
    missing = [rate for rate in rates if all(one.rate != rate for one in compared)]
    clauses = [_better(a, b, won)] if won else []
    clauses += [_better(b, a, [_turned(one) for one in lost])] if lost else []
    clauses += [f"both serve the same to within {SAME:.0%} at {_listed(same)}"] if same else []
    clauses += [f"neither answers any request inside at {_listed(none)}"] if none else []
    clauses += [f"at {_listed(unsure)} it may be chance: {_ratios(unsure)} times the goodput of {b}"] if unsure else []
    clauses += [f"at {_rates(missing)} nothing valid was measured on both"] if missing else []
    return _opening(a, b, bool(won), bool(lost), bool(unsure or missing)) + "; ".join(clauses) + "."


def _opening(a: str, b: str, has_won: bool, has_lost: bool, is_unsure: bool) -> str:
    """The answer to the question behind a comparison of a disaggregated topology with a mixed one."""
    if "prefill=" not in a or "mixed=" not in b:
        return ""
    if has_won:
        return f"{DEPENDS if has_lost else PAYS}: "
    return f"{UNSURE if is_unsure and not has_lost else PAYS_NOT}: "


def _better(winner: str, loser: str, won: Sequence[Compared]) -> str:
    """More often than the loser, and where the loser has nothing at all."""
    alone, times = [one for one in won if one.ratio is None], [one for one in won if one.ratio is not None]
    clauses = [f"{winner} serves {', '.join(_times(one, loser, one is times[0]) for one in times)}"] if times else []
    clauses += [f"only {winner} answers requests inside at {_listed(alone)}"] if alone else []
    return "; ".join(clauses)


def _times(one: Compared, loser: str, is_first: bool) -> str:
    of = f" the goodput of {loser}" if is_first else ""
    return f"{_interval(one, ' times')}{of} at {one.rate:g} requests/s"


def _turned(one: Compared) -> Compared:
    """What the second server won, told from its side."""

    def inverse(value: float | None) -> float | None:
        return 0.0 if value is None else None if value == 0 else 1 / value

    return msgspec.structs.replace(
        one,
        a=one.b,
        b=one.a,
        goodput_a=one.goodput_b,
        goodput_b=one.goodput_a,
        fraction_a=one.fraction_b,
        fraction_b=one.fraction_a,
        ratio=inverse(one.ratio),
        low=inverse(one.high),
        high=inverse(one.low),
        verdict="a",
    )


def _listed(compared: Sequence[Compared]) -> str:
    return _rates([one.rate for one in compared])


def _rates(rates: Sequence[float]) -> str:
    shown = [f"{rate:g}" for rate in rates]
    return f"{' and '.join([', '.join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)} requests/s"


def _ratios(compared: Sequence[Compared]) -> str:
    return ", ".join(_interval(one) for one in compared)


def _interval(one: Compared, unit: str = "") -> str:
    ratio, low = ("infinite" if value is None else f"{value:.2f}" for value in (one.ratio, one.low))
    return f"{ratio}{unit} (" + (f"at least {low})" if one.high is None else f"{low} to {one.high:.2f})")


def _compared_row(one: Compared) -> list[str]:
    goodputs = [f"{one.goodput_a:.2f}", f"{one.goodput_b:.2f}"]
    ratio = "only A" if one.low is None else _interval(one)
    better = {"a": "A", "b": "B", "open": "same" if one.is_same else "open"}[one.verdict]
    return [f"{one.rate:g}", *goodputs, ratio, f"{one.fraction_a:.1%}", f"{one.fraction_b:.1%}", better]


def _stage_rows(stages: Sequence[ServerStage], servers: Sequence[str]) -> Rows:
    told = [name for name in servers if any(one.server == name for one in stages)]
    cells = {
        (one.rate, one.stage, one.server): ", ".join(map(shown_ms, (one.mean_s, one.p50_s, one.p99_s)))
        for one in stages
    }
    keys = list(dict.fromkeys((one.rate, one.stage) for one in stages))
    return [
        ["requests/s", "stage", *told],
        *([f"{rate:g}", stage, *(cells.get((rate, stage, name), "-") for name in told)] for rate, stage in keys),
    ]


def _held(rate: float | None) -> str:
    return "none of the rates" if rate is None else f"up to {rate:g} requests/s"
