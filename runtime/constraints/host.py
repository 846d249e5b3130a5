"""The process's one maker of constraints: what workers begin choices with and compute their masks in."""

from collections.abc import Sequence

from runtime.constraints.bits import pack
from runtime.constraints.choice import ChoiceConstraint
from runtime.constraints.grammars import Grammars
from runtime.constraints.protocol import Constraint
from runtime.sampling_params import SamplingParams
from runtime.tokens import Tokenizer


class HostConstraints:
    """Implements `Constraints` over a tokenizer and the model's vocabulary size, padding included."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, *, num_threads: int | None = None) -> None:
        self._grammars = Grammars(tokenizer, vocab_size, num_threads=num_threads)
        self._existing = pack((token for token in range(vocab_size) if tokenizer.piece(token)), vocab_size)

    def check_grammar(self, grammar: str) -> str | None:
        """Why a grammar cannot be used, or None. It is kept compiled for the choices that follow."""
        return self._grammars.check(grammar)

    @property
    def num_compiled(self) -> int:
        """How many compiled grammars are kept."""
        return self._grammars.num_compiled

    def begin(self, params: SamplingParams, output: Sequence[int]) -> ChoiceConstraint:
        """As `Constraints.begin`."""
        choice = ChoiceConstraint(params, self._grammars, self._existing)
        for token in output:
            choice.replay(token)
        choice.settle()
        return choice

    def masks(self, constraints: Sequence[Constraint]) -> list[bytes | None]:
        """As `Constraints.masks`; the constraints are this object's own."""
        choices = [choice for choice in constraints if isinstance(choice, ChoiceConstraint)]
        assert len(choices) == len(constraints)
        pending = [matcher for choice in choices if (matcher := choice.pending_matcher) is not None]
        rows = iter(self._grammars.masks(pending))
        return [choice.take_grammar_mask(None if choice.pending_matcher is None else next(rows)) for choice in choices]
