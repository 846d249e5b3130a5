"""One choice's constraint: its grammar, its bad words, its thinking block, and the ids that may end it.

Everything follows from the tokens, so a choice that moves to another worker goes on exactly where it was.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.constraints.bad_words import BadWords
from runtime.constraints.bits import Words, has, pack, to_bytes, unpacked
from runtime.constraints.grammars import Grammars, is_worn, raise_failure
from runtime.constraints.thinking import Thinking
from runtime.errors import ConstraintError
from runtime.sampling_params import ConstraintSpec, SamplingParams

T = TypeVar("T")


class ChoiceConstraint:
    """Implements `Constraint`.

    A grammar begins at once, or behind the thinking block where there may be one; until it may end, no stop id is
    allowed. `existing` are the tokens that the tokenizer knows.
    """

    def __init__(self, params: SamplingParams, grammars: Grammars, existing: Words) -> None:
        spec = params.constraint or ConstraintSpec()
        self._grammars = grammars
        self._existing = existing
        self._grammar = spec.grammar
        self._matcher: Any | None = None
        self._kept: Any | None = None
        self._taken: list[int] = []
        self._is_renewed = False
        if spec.grammar is not None:
            self._kept = grammars.kept(spec.grammar)
            self._matcher = self._kept.deep_copy()
        self._thinking = Thinking(spec)
        self._think_start = spec.think_start
        self._bad_words = BadWords(spec.bad_words)
        self._stop_ids = frozenset(params.stop_token_ids)
        self._stop = pack(self._stop_ids, grammars.vocab_size)
        self._allowed = None if params.allowed_mask is None else unpacked(params.allowed_mask, grammars.vocab_size)
        ends = self._stop if self._allowed is None else self._stop & self._allowed
        self._ends = frozenset(token for token in self._stop_ids if has(ends, token))
        self._min_tokens = params.min_tokens
        self._num_tokens = 0
        self._recent: list[int] = []
        self._mask: bytes | None = None
        self._has_mask = False
        self._failure: str | None = None
        self._is_complete = False

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow: the choice ends with reason "stop"."""
        return self._is_complete

    def mask(self) -> bytes | None:
        """As `Constraint.mask`; the same until the next `advance`."""
        if not self._has_mask:
            self._make_own_mask()
        if self._failure is not None:
            raise ConstraintError(self._failure)
        return self._mask

    @property
    def pending_matcher(self) -> Any | None:
        """The matcher whose mask the next mask needs; None where it is known already or needs none."""
        needed = not (self._has_mask or self._is_complete or self._failure is not None)
        return self._matcher if needed and self._in_grammar and self._thinking.forced is None else None

    def take_grammar_mask(self, words: NDArray[np.uint32] | None) -> bytes | None:
        """Makes the mask from what `pending_matcher` allows, `uint32[W]` with the end's bit; None if it was None.

        Raises nothing: a failure waits for `mask` or `advance`, and the mask is None.
        """
        if not self._has_mask:
            self._mask = None
            try:
                if not self._is_complete and self._failure is None:
                    self._mask = self._make_mask(words)
            except ConstraintError as error:
                self._failure = str(error)
            self._has_mask = True
        return self._mask

    def advance(self, token: int) -> None:
        """As `Constraint.advance`."""
        self.replay(token)
        self.settle()

    def replay(self, token: int) -> None:
        """`advance` without a look at what may follow; `settle` has to come before anything else is asked."""
        if self._failure is None:
            try:
                self._take(token)
            except ConstraintError as error:
                self._failure = str(error)
        if self._failure is not None:
            raise ConstraintError(self._failure)
        self._has_mask = False
        self._num_tokens += 1
        self._recent = [*self._recent, token][-self._bad_words.num_tokens :] if self._bad_words.num_tokens else []

    def settle(self) -> None:
        """Ends the choice where its grammar may end, nothing else can follow, and no stop id may be sampled."""
        if self._num_tokens >= self._min_tokens and self._ends - self._bad_words.excluded(self._recent):
            return
        matcher = self.pending_matcher
        if matcher is not None and self._ask(lambda matcher: matcher.is_accepting()):
            self._make_own_mask()

    def _make_own_mask(self) -> None:
        """The next mask, of this choice alone."""
        matcher = self.pending_matcher
        self.take_grammar_mask(None if matcher is None else self._grammars.masks([matcher])[0])

    def _ask(self, question: Callable[[Any], T]) -> T:
        """What the matcher says, or if its lexer turns out to be worn, another one that has taken the same tokens.

        Only once: what wears out a second lexer may well be this choice. Raises ConstraintError.
        """
        answer = question(self._matcher)
        if self._grammar is None or not is_worn(self._matcher):
            return answer
        self._grammars.drop(self._grammar, self._kept)
        if self._is_renewed:
            return answer
        self._is_renewed = True
        self._kept = self._grammars.kept(self._grammar)
        self._matcher = self._kept.deep_copy()
        for token in self._taken:
            self._matcher.consume_token(token)
        return question(self._matcher)

    @property
    def _in_grammar(self) -> bool:
        """Whether the next token is the grammar's, or may be."""
        return self._matcher is not None and not self._thinking.is_inside

    def _take(self, token: int) -> None:
        if self._is_complete:
            raise ConstraintError(f"token {token} follows the end of the answer")
        forced = self._thinking.forced
        if forced is None:
            self._check_lists(token)
        elif token != forced:
            raise ConstraintError(f"token {token} is not allowed: the thinking budget ends with token {forced}")
        opens = self._thinking.begins and self._think_start == (token,)
        if self._matcher is not None and not self._thinking.is_inside and not opens:
            self._thinking.begins = False
            self._take_in_grammar(token)
            return
        if self._matcher is None:
            self._is_complete = token in self._stop_ids
        elif forced is None and token in self._stop_ids:
            raise ConstraintError(f"token {token} is not allowed: the answer has not begun")
        self._thinking.advance(token)

    def _take_in_grammar(self, token: int) -> None:
        if token in self._stop_ids:
            if not self._ask(lambda matcher: matcher.is_accepting()) or self._num_tokens < self._min_tokens:
                raise ConstraintError(f"token {token} is not allowed: the grammar may not end here")
            self._is_complete = True
            return
        if not 0 <= token < self._grammars.vocab_size:
            raise ConstraintError(f"token {token} is not in the vocabulary")
        self._ask(lambda matcher: matcher.consume_token(token))
        raise_failure(self._matcher)
        self._taken.append(token)
        self._is_complete = self._ask(lambda matcher: matcher.is_stopped())

    def _check_lists(self, token: int) -> None:
        if self._allowed is not None and not has(self._allowed, token):
            raise ConstraintError(f"token {token} is not one of the allowed tokens")
        if token in self._bad_words.excluded(self._recent):
            raise ConstraintError(f"token {token} would complete a bad word")

    def _make_mask(self, grammar: Words | None) -> bytes | None:
        size = self._grammars.vocab_size
        forced = self._thinking.forced
        if forced is not None:
            return to_bytes(pack([forced], size))
        excluded = self._bad_words.excluded(self._recent)
        if self._matcher is None and self._allowed is None and not excluded:
            return None
        if grammar is not None and is_worn(self._matcher):
            grammar = self._ask(lambda matcher: self._grammars.masks([matcher])[0])
        may_end = grammar is not None and has(grammar, size)
        words = self._base(grammar, may_end)
        if self._allowed is not None:
            words = words & self._allowed
        if excluded:
            words = words & ~pack(excluded, size)
        if words.any():
            return to_bytes(words)
        if not may_end:
            raise ConstraintError("no token can come next: the limits on the answer's tokens leave none")
        self._is_complete = True
        return None

    def _base(self, grammar: Words | None, may_end: bool) -> Words:
        """What the grammar allows, with the stop ids where it may end; all tokens where it is not in force."""
        if self._matcher is None:
            return self._existing
        if grammar is None:
            return self._existing & ~self._stop
        raise_failure(self._matcher)
        words = grammar[: len(self._existing)] & self._existing & ~self._stop
        if may_end and self._num_tokens >= self._min_tokens:
            words = words | self._stop
        if self._thinking.begins and len(self._think_start) == 1:
            words = words | pack(self._think_start, self._grammars.vocab_size)
        return words
