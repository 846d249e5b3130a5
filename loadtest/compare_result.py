"""What `loadtest compare` shows and saves: after every run, so that nothing is lost, and at the end."""

from typing import Any

from rich.console import Console

from loadtest.compare_flags import Options
from loadtest.comparison import CompareRun, capacities, compare_all, stages
from loadtest.comparison_text import capacity_lines, conclusions, emulated_text, page, render, slo_text, tables
from loadtest.environment import Environment
from loadtest.metrics import measure
from loadtest.results import save
from loadtest.server import emulated
from loadtest.session import Bench
from loadtest.summary import shown_ms

FORMAT = "loadtest-compare/1"


class CompareResult:
    """Of one command: where it is shown, and the file."""

    def __init__(self, options: Options, environment: Environment, benches: dict[str, Bench], console: Console) -> None:
        self._options, self._environment, self._benches, self._console = options, environment, benches, console
        self._slos = [slo_text(slo) for slo in options.slos]
        labels = {name: emulated(bench.server) for name, bench in benches.items()}
        self._emulated = {name: label for name, label in labels.items() if label is not None}
        self._runs = list[CompareRun]()

    def begin(self) -> None:
        """Says who is who."""
        for index, (name, bench) in enumerate(self._benches.items()):
            engine = bench.server.get("engine")
            told = f"{chr(65 + index)}: {name}, model {bench.target.model}" + (f", engine {engine}" if engine else "")
            self._say(told)
        if self._emulated:
            self._say(f"EMULATED: {emulated_text(self._emulated)}", "bold yellow")

    def add(self, run: CompareRun) -> None:
        """Shows a run in one line and saves everything so far."""
        self._runs.append(run)
        inside = ", ".join(f"{count}/{run.total}" for count in run.inside)
        metrics = measure(run.requests)
        self._say(
            f"{run.rate:8.3g} requests/s, round {run.round + 1}, {run.server}: {inside} inside, "
            f"TTFT p90 {shown_ms(metrics.ttft.percentile(90))} ms, TPOT p90 {shown_ms(metrics.tpot.percentile(90))} ms"
            + (f", {metrics.failed} failed" if metrics.failed else "")
            + (f": STOPPED EARLY: {run.stopped}" if run.stopped else f": INVALID: {run.invalid}" if run.invalid else "")
        )
        save(self.to_json(), self._options.out)

    def finish(self, failure: str | None) -> None:
        """Shows tables and conclusions, and saves."""
        options, values = self._options, self.to_json()
        save(values, options.out)
        titled = tables(values["comparisons"], values["stages"], options.names, self._slos)
        for title, rows in titled:
            self._say(title, "bold")
            self._console.print(render(rows), soft_wrap=False)
        held = capacity_lines(values["capacity"], self._slos, options.attainment)
        notes = [*self._notes(), *([f"STOPPED EARLY: {failure}"] if failure is not None else [])]
        for line in held:
            self._say(line)
        for note in notes:
            self._say(f"note: {note}", "yellow")
        for sentence in values["conclusion"]:
            self._say(sentence, "bold")
        if options.markdown is not None:
            sentences = [*values["conclusion"], *held]
            made = f"{self._environment.command}` on {self._environment.processor}, `{self._environment.date}"
            options.markdown.write_text(page(" and ".join(options.names), sentences, notes, titled, made), "utf-8")
        self._say(f"saved {options.out}" + (f" and {options.markdown}" if options.markdown is not None else ""))

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        options, names = self._options, self._options.names
        compared = compare_all(self._runs, names, options.slos)
        values: dict[str, Any] = {"format": FORMAT, "date": self._environment.date, "environment": self._environment}
        values |= {"setup": options.shown(), "attainment": options.attainment}
        values |= {"conclusion": conclusions(compared, names, self._slos, options.rates, self._emulated)}
        values |= {"slos": [[objective.text for objective in slo] for slo in options.slos]}
        values |= {"servers": [{"name": name} | bench.server for name, bench in self._benches.items()]}
        values |= {"runs": self._runs, "comparisons": compared, "notes": self._notes()}
        values |= {"capacity": capacities(self._runs, names, options.slos, options.attainment)}
        return values | {"stages": stages(self._runs, names)}

    def _notes(self) -> list[str]:
        invalid = [run for run in self._runs if run.invalid is not None]
        notes = [f"{len(invalid)} of {len(self._runs)} runs are invalid and left out"] if invalid else []
        timed = {run.server for run in self._runs if any(record.timing is not None for record in run.requests)}
        silent = [name for name in dict.fromkeys(run.server for run in self._runs) if name not in timed]
        notes += [f"no stage times from {', '.join(silent)}: only this project's server tells them"] if silent else []
        models = list(dict.fromkeys(bench.target.model for bench in self._benches.values()))
        notes += [f"the servers serve different models: {', '.join(models)}"] if len(models) > 1 else []
        repeated = next(iter(self._benches.values())).dataset.num_repeated
        notes += [f"{repeated} requests repeat earlier ones; a prefix cache saw them"] if repeated else []
        return notes

    def _say(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, highlight=False)
