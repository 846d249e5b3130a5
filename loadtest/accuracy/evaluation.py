"""One evaluation: asks what is not answered yet, then compares everything, and shows progress. A signal ends it."""

import asyncio

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest.accuracy.answers import Answer, AnswerFile, Settings
from loadtest.accuracy.asking import Asking
from loadtest.accuracy.comparison import Comparison, Grade
from loadtest.accuracy.flags import EvalFlags
from loadtest.accuracy.problems import Problem
from loadtest.session import SIGNALS

DRAW_S = 0.5
LINE_S = 10.0


class Evaluation:
    """`failure` says why it did not come to its end."""

    def __init__(
        self,
        flags: EvalFlags,
        settings: Settings,
        problems: tuple[Problem, ...],
        file: AnswerFile,
        console: Console | None,
    ) -> None:
        self._flags, self._problems, self._file, self._console = flags, problems, file, console
        self._questions = [(repeat, problem) for repeat in range(flags.repeats) for problem in problems]
        missing = [(r, problem) for r, problem in self._questions if (r, problem.unique_id) not in file.answers]
        self._asking = Asking(settings, missing, file.add, flags.api_key)
        self.total, self.num_asked = len(self._questions), len(missing)
        self.grades = dict[tuple[int, str], Grade]()
        self._exit_code: int | None = None

    @property
    def answers(self) -> list[Answer]:
        """Those that there are, in the order of the questions."""
        found = (self._file.answers.get((repeat, problem.unique_id)) for repeat, problem in self._questions)
        return [answer for answer in found if answer is not None]

    @property
    def num_answered(self) -> int:
        """So far, with what an earlier run left."""
        return len(self.answers)

    @property
    def failure(self) -> str | None:
        """Why the server was not asked to the end."""
        return self._asking.failure

    async def run(self) -> int | None:
        """The exit code that a signal asks for, or None."""
        work, loop = asyncio.ensure_future(self._run()), asyncio.get_running_loop()

        def stop(code: int) -> None:
            self._exit_code = code
            work.cancel()

        for number, code in SIGNALS.items():
            loop.add_signal_handler(number, stop, code)
        try:
            await work
        except asyncio.CancelledError:
            if self._exit_code is None:
                raise
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)
        return self._exit_code

    async def _run(self) -> None:
        watcher = None if self._console is None else asyncio.create_task(self._watch(self._console))
        try:
            await self._asking.run(self._flags.batch, self._flags.timeout)
            if self.failure is None:
                await self._compare()
        finally:
            if watcher is not None:
                watcher.cancel()
                await asyncio.wait((watcher,))

    async def _compare(self) -> None:
        async with Comparison(self._flags.compare_timeout) as comparison:
            for repeat, problem in self._questions:
                key = repeat, problem.unique_id
                self.grades[key] = await comparison.grade(self._file.answers[key].text, problem.answer)

    async def _watch(self, console: Console) -> None:
        if not console.is_terminal:
            while True:
                await asyncio.sleep(LINE_S)
                console.print(self._state(), markup=False, highlight=False)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
            bar = progress.add_task("", total=self.total)
            while True:
                progress.update(bar, completed=self.num_answered, description=self._state(), refresh=True)
                await asyncio.sleep(DRAW_S)

    def _state(self) -> str:
        asking = self._asking
        if asking.done == asking.total:
            right = sum(grade == "right" for grade in self.grades.values())
            return f"{len(self.grades)} of {self.total} compared, {right} right"
        left = f"{self.num_answered} of {self.total} answered, {asking.on_their_way} on their way"
        if asking.failure is not None:
            return f"{left}; waiting for these, because {asking.failure}"
        return f"{left}, {asking.tokens} tokens so far"
