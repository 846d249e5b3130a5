"""Compiled grammars over the model's vocabulary, made by llguidance and kept for the next who asks for the same text.

The choices of a request, its retries and the worker that takes over after a failure all compile the same text; a copy
of a compiled grammar costs microseconds. Where a mask allows the end's id, the grammar may end (see `vocabulary`).

All copies share one lexer, whose states only grow in number. One that has come to the limit is worn: it takes nothing
new any more, whoever has filled it, and the grammar has to be compiled again.
"""

import json
import threading
from collections import OrderedDict
from typing import Any

import msgspec
import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from runtime.constraints.bits import num_words
from runtime.constraints.vocabulary import Vocabulary
from runtime.errors import ConstraintError
from runtime.tokens import Tokenizer

MAX_COMPILED = 64
"""Most compiled grammars that are kept."""

_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'
_MAX_REASON_CHARS = 500
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 32_768,  # of one or two kilobytes each, of all copies of a compiled grammar together
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


class Grammars:
    """Compiles, keeps and copies grammars. Thread-safe. Building it takes a second for 150,000 tokens."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, *, num_threads: int | None = None) -> None:
        """`vocab_size` is the model's, padding included. `num_threads` compute masks; None lets llguidance choose."""
        self.vocab_size = vocab_size
        wrapped = TokenizerWrapper(Vocabulary(tokenizer, vocab_size))
        self._vocabulary = LLTokenizer(wrapped, n_vocab=vocab_size + 1, eos_token=[vocab_size])
        self._executor = LLExecutor(num_threads)
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    @property
    def num_compiled(self) -> int:
        """How many compiled grammars are kept."""
        return len(self._compiled)

    def begin(self, grammar: str) -> LLMatcher:
        """A matcher at the grammar's beginning, the caller's own. Raises ConstraintError for one that is refused."""
        return self.kept(grammar).deep_copy()

    def kept(self, grammar: str) -> LLMatcher:
        """The compiled grammar, for copies alone. Raises ConstraintError for one that is refused."""
        with self._lock:
            kept = self._compiled.get(grammar)
            if kept is not None:
                self._compiled.move_to_end(grammar)
                return kept
        text = _without_forcing(grammar)
        kept = LLMatcher(self._vocabulary, text, log_level=0, limits=LLParserLimits(**_LIMITS))
        raise_failure(kept)
        with self._lock:
            self._compiled[grammar] = kept
            self._compiled.move_to_end(grammar)
            while len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        return kept

    def drop(self, grammar: str, kept: LLMatcher) -> None:
        """Keeps this one, whose lexer is worn, no longer; one that has taken its place stays."""
        with self._lock:
            if self._compiled.get(grammar) is kept:
                del self._compiled[grammar]

    def check(self, grammar: str) -> str | None:
        """Why the grammar cannot be used, in llguidance's words; None for one that can. Its first mask is tried too."""
        try:
            kept = self.kept(grammar)
            matcher = kept.deep_copy()
            self.masks([matcher])
            if is_worn(matcher):
                self.drop(grammar, kept)
                matcher = self.begin(grammar)
                self.masks([matcher])
            raise_failure(matcher)
        except ConstraintError as error:
            return str(error)
        return None

    def masks(self, matchers: list[LLMatcher]) -> NDArray[np.uint32]:
        """What each matcher allows next, `uint32[N, W]`, in parallel and with the interpreter free.

        W has room for the end's bit, `vocab_size`. A matcher that fails is left in error, and its row says nothing.
        """
        words = np.zeros((len(matchers), num_words(self.vocab_size + 1)), dtype=np.uint32)
        if matchers:
            rows = [(matcher, row) for row, matcher in enumerate(matchers)]
            self._executor.unsafe_compute_mask_ptr(rows, words.ctypes.data, words.strides[0], len(matchers))
        return words


def _without_forcing(grammar: str) -> str:
    """The grammar with an option that leaves the spelling of every text to the model.

    Without it llguidance spells for itself whatever the grammar leaves no choice about, as far as that reaches: an
    expression such as `a{1000000}` would cost each of its tokens seconds. The option goes behind the text, so that
    lines keep their numbers in messages.
    """
    if not grammar.lstrip().startswith("{"):
        return grammar + _NO_FORCING
    try:
        content = msgspec.json.decode(grammar, type=dict[str, Any])
        for part in content["grammars"]:
            schema = part.pop("json_schema", None)
            lark = part.get("lark_grammar")
            part["lark_grammar"] = (f"start: %json {json.dumps(schema)}" if lark is None else lark) + _NO_FORCING
        return json.dumps(content)
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError, AttributeError):
        return grammar  # llguidance says what is wrong with it


def check_grammar(grammar: str) -> str | None:
    """As `Grammars.check`, without a vocabulary: special tokens and masks are not looked at."""
    matcher_fault = LLMatcher.validate_grammar(grammar, None, limits=LLParserLimits(**_LIMITS))
    return str(matcher_fault).strip()[:_MAX_REASON_CHARS] or None


def is_worn(matcher: LLMatcher) -> bool:
    """Whether the matcher is in error because its lexer, which it shares, has all the states that it may have."""
    return bool(matcher.is_error()) and "too many states" in str(matcher.get_error())


def raise_failure(matcher: LLMatcher) -> None:
    """Raises ConstraintError when the matcher is in error."""
    if matcher.is_error():
        reason = str(matcher.get_error()).split("<non-verbose/>")[0].split("<state>")[0].strip()
        raise ConstraintError(reason[:_MAX_REASON_CHARS] or "the grammar failed")
