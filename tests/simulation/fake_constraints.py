"""Constraints without a grammar: what is allowed next is a pure function of the tokens so far.

`FakeConstraint` follows a choice token by token; the functions serve the expected answer, which knows all of its tokens
at once. So a token that a constraint was not told, or told twice, gives another mask. The text of a fake grammar is a
seed, and where it fails: `7`, `7 advance 3` (its third token cannot be taken), `7 mask 2` (no mask behind two tokens).
"""

from collections.abc import Sequence

from runtime.constraints import Constraint, ConstraintError
from runtime.sampling_params import SamplingParams
from tests.simulation.fake_tokens import VOCAB_SIZE, fingerprint, mix

_COMPLETE_ODDS = 13
_EVERYTHING_ODDS = 7


def state_of(params: SamplingParams, output: Sequence[int]) -> int:
    """Everything that a fake constraint depends on."""
    return fingerprint(output, int(_words(params)[0]))


def fails(params: SamplingParams, how: str, count: int) -> bool:
    """Whether the constraint fails at this number of tokens."""
    return _words(params)[1:] == [how, str(count)]


def allowed(params: SamplingParams, state: int) -> bytes | None:
    """The packed mask in this state; None when it excludes nothing."""
    if state % _EVERYTHING_ODDS == 0 and params.allowed_mask is None:
        return None
    own = _bits(params.allowed_mask)
    stops = set(params.stop_token_ids)
    may_end = state % 3 == 0
    bits = sum(1 << token for token in range(VOCAB_SIZE) if mix(state, token) % 3 and token not in stops) & own
    if not bits:
        bits = own & ~sum(1 << token for token in stops) or own
    if may_end:
        bits |= own & sum(1 << token for token in stops)
    return bits.to_bytes(VOCAB_SIZE // 8, "little")


def is_complete(state: int) -> bool:
    """Whether the choice ends here."""
    return state % _COMPLETE_ODDS == 0


def _words(params: SamplingParams) -> list[str]:
    assert params.constraint is not None
    assert params.constraint.grammar is not None
    return params.constraint.grammar.split()


def _bits(mask: bytes | None) -> int:
    return (1 << VOCAB_SIZE) - 1 if mask is None else int.from_bytes(mask, "little")


class FakeConstraint:
    """`runtime.constraints.protocol.Constraint`, one token at a time."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._state = state_of(params, ())
        self.count = 0
        self.is_complete = False

    def mask(self) -> bytes | None:
        if fails(self._params, "mask", self.count):
            raise ConstraintError(f"there is no mask behind {self.count} tokens")
        return allowed(self._params, self._state)

    def advance(self, token: int) -> None:
        self.mask()  # where it fails, no token will do
        mask = allowed(self._params, self._state)
        if mask is not None and not mask[token // 8] >> token % 8 & 1:
            raise ConstraintError(f"token {token} is not allowed at {self.count}")
        self.count += 1
        if fails(self._params, "advance", self.count):
            raise ConstraintError(f"there is no token {self.count}")
        self._state = fingerprint((token,), self._state)
        self.is_complete = is_complete(self._state)


class FakeConstraints:
    """`runtime.constraints.protocol.Constraints`."""

    def begin(self, params: SamplingParams, output: Sequence[int]) -> Constraint:
        constraint = FakeConstraint(params)
        for token in output:
            constraint.advance(token)
        return constraint

    def masks(self, constraints: Sequence[Constraint]) -> list[bytes | None]:
        return [_mask_or_none(constraint) for constraint in constraints]


def _mask_or_none(constraint: Constraint) -> bytes | None:
    try:
        return constraint.mask()
    except ConstraintError:
        return None
