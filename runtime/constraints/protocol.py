"""What a constraint on a choice's tokens is to the worker that samples them.

The sampling worker begins a constraint when it plans a choice's first sample, tells it every token that was sampled,
and asks it for the mask of the next one while the device computes that token's logits. A constraint holds nothing that
cannot be made again: `Constraints.begin` with the tokens so far gives the same state, on any worker.
"""

from collections.abc import Sequence
from typing import Protocol

from runtime.sampling_params import SamplingParams


class Constraint(Protocol):
    """One choice's state. Used by one thread at a time."""

    def mask(self) -> bytes | None:
        """Tokens allowed next, as little-endian uint32 words: bit v%32 of word v//32. None where nothing is excluded.

        It holds `SamplingParams.allowed_mask` as well, and the stop ids only where the answer may end here.
        Raises ConstraintError.
        """

    def advance(self, token: int) -> None:
        """Takes the choice's next token. Raises ConstraintError for one that was not allowed."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow: the choice ends with reason "stop"."""


class Constraints(Protocol):
    """Makes constraints, and their masks many at a time. One per process, shared by all workers and threads."""

    def begin(self, params: SamplingParams, output: Sequence[int]) -> Constraint:
        """The state of a choice that has generated `output`; may take milliseconds. Raises ConstraintError."""

    def masks(self, constraints: Sequence[Constraint]) -> list[bytes | None]:
        """`mask()` of each, computed in parallel with the interpreter free. Raises nothing.

        Where `mask` would raise ConstraintError the mask is None, and the next `advance` of that constraint raises it
        whatever the token is: the other choices of the batch go on.
        """
