"""Where a choice stands with its block of thoughts: outside, inside, or being led out of it."""

from runtime.sampling_params import ConstraintSpec


class Thinking:
    """Follows a choice's tokens through thinking blocks and says which token must come next, if one must.

    `begins` says that nothing has been generated yet and a block may open here.
    """

    def __init__(self, spec: ConstraintSpec) -> None:
        self._start = spec.think_start
        self._end = spec.think_end
        self._budget = spec.thinking_budget
        self._used = 0
        self._num_forced = 0
        self._recent: list[int] = []
        self.is_inside = spec.begins_thinking and bool(spec.think_end)
        self.begins = bool(self._start and self._end) and not self.is_inside

    @property
    def forced(self) -> int | None:
        """The token of `think_end` that must come next because the budget is used up."""
        if self.is_inside and self._budget is not None and self._used >= self._budget:
            return self._end[self._num_forced]
        return None

    def advance(self, token: int) -> None:
        """Takes the next token, the forced one if there is one."""
        self.begins = False
        if self.forced is not None:
            self._num_forced += 1
            if self._num_forced == len(self._end):
                self._move(inside=False)
            return
        marker = self._end if self.is_inside else self._start
        self._used += self.is_inside
        self._recent = [*self._recent, token][-max(len(marker), 1) :]
        if marker and self._end and tuple(self._recent) == marker:
            self._move(inside=not self.is_inside)

    def _move(self, *, inside: bool) -> None:
        self.is_inside = inside
        self._recent = []
        self._used = self._num_forced = 0
