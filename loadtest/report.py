"""`loadtest report FILE…`: one HTML page of saved runs, sweeps and comparisons, and a summary as Markdown."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest import figures, page
from loadtest.charts import plot
from loadtest.flags import Parser
from loadtest.report_compare import compare_sections, markdown_of
from loadtest.report_runs import emulated, figures_of, run_sections
from loadtest.results import check_writable
from loadtest.saved import Saved, SavedCompare, SavedRun, SavedSweep, read


def report(argv: Sequence[str]) -> int:
    """The command. Raises UsageError."""
    parser = Parser(prog="loadtest report", allow_abbrev=False, description=__doc__)
    saved_by = "what `run`, `sweep` and `compare` saved"
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=saved_by)
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="(default: report.html)")
    flags = parser.parse_args(argv)
    check_writable(flags.out)
    saved = [(path.stem, read(path)) for path in flags.files]
    runs = [(name, one) for name, one in saved if isinstance(one, SavedRun)]
    sweeps = [(name, one) for name, one in saved if isinstance(one, SavedSweep)]
    compares = [(name, one) for name, one in saved if isinstance(one, SavedCompare)]
    sections = [section for name, compare in compares for section in compare_sections(name, compare)]
    sections += [*run_sections(runs), *_sweep_sections(sweeps), *_origins(saved)]
    flags.out.write_text(page.page("Load test: " + ", ".join(name for name, _ in saved), sections), "utf-8")
    for name, compare in compares:
        sys.stdout.write(markdown_of(name, compare) + "\n")
    if runs:
        sys.stdout.write("".join(f"**{line}**\n\n" for name, run in runs for line in emulated(name, _engine(run))))
        sys.stdout.write(page.markdown(figures_of(runs)) + "\n")
    for name, sweep in sweeps:
        sys.stdout.write("".join(f"{line}\n" for line in emulated(name, _engine(sweep))))
        sys.stdout.write(f"{name}: {sweep.conclusion}\n")
    sys.stdout.write(f"saved {flags.out}\n")
    return 0


def _engine(one: SavedRun | SavedSweep) -> object:
    return one.server.get("engine")


def _sweep_sections(sweeps: Sequence[tuple[str, SavedSweep]]) -> list[str]:
    if not sweeps:
        return []
    rates = [(name, sweep.rates) for name, sweep in sweeps]
    trials = [(name, [(trial.rate, trial.request_goodput) for trial in sweep.trials]) for name, sweep in sweeps]
    target = sweeps[0][1].goal.attainment
    attained = plot(
        figures.attainment_by_rate(rates, target), "requests/s (logarithmic)", "inside the SLO", is_x_log=True
    )
    goodput = plot(figures.goodput_by_rate(trials), "requests/s", "goodput, requests/s")
    banners = [page.banner(line) for name, sweep in sweeps for line in emulated(name, _engine(sweep))]
    conclusions = [page.paragraph(f"{name}: {sweep.conclusion} (SLO {', '.join(sweep.slo)})") for name, sweep in sweeps]
    shown = page.plots([("Rate against the fraction inside the SLO", attained), ("Rate against goodput", goodput)])
    return [page.heading("How much it holds"), *banners, *conclusions, shown]


def _origins(saved: Sequence[tuple[str, Saved]]) -> list[str]:
    parts = [page.heading("Where this comes from")]
    for name, one in saved:
        client = {key: one.environment[key] for key in one.environment if key != "command"}
        known = [("server", one.server)] if not isinstance(one, SavedCompare) else _compared(one)
        lines = [
            f"{name}: {one.environment.get('command', '')}",
            *(f"{key}: {_flat(value)}" for key, value in (*known, ("client", client))),
        ]
        parts.append(page.listing("\n".join(lines)))
    return parts


def _compared(one: SavedCompare) -> list[tuple[str, dict[str, Any]]]:
    servers = [
        (f"server {server.name}", {"url": server.url, "version": server.version, "engine": server.engine})
        for server in one.servers
    ]
    return [*servers, ("setup", one.setup)]


def _flat(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_flat(value) if isinstance(value, dict) else value}" for key, value in values.items())
