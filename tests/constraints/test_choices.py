import contextlib
import re
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

import pytest

from api.grammar_text import (
    grammar_of_choice,
    grammar_of_lark,
    grammar_of_regex,
    grammar_of_schema,
    grammar_of_tags,
    grammar_of_text,
    json_in_lark,
)
from runtime.constraints import Constraint, ConstraintError, HostConstraints, grammars
from runtime.constraints.grammars import MAX_COMPILED
from runtime.sampling_params import ConstraintSpec, SamplingParams
from runtime.tokens import Tokenizer
from tests.constraints.walks import allowed, walk
from tests.runtime.tiny_tokenizer import TURN_END, metaspace_tokenizer, tiny_tokenizer

VOCAB_SIZE = 400
THINK = "<think>"


@cache
def tiny() -> Tokenizer:
    return tiny_tokenizer()


@cache
def host() -> HostConstraints:
    return HostConstraints(tiny(), VOCAB_SIZE, num_threads=2)


@cache
def stop_id() -> int:
    [token] = tiny().encode(TURN_END)
    return token


def params(*, stop: bool = True, min_tokens: int = 0, mask: bytes | None = None, **spec: Any) -> SamplingParams:
    return SamplingParams(
        seed=0,
        max_tokens=60,
        stop_token_ids=(stop_id(),) if stop else (),
        min_tokens=min_tokens,
        allowed_mask=mask,
        constraint=ConstraintSpec(**spec),
    )


def begin(output: Sequence[int] = (), **fields: Any) -> Constraint:
    return host().begin(params(**fields), output)


def next_tokens(constraint: Constraint) -> list[int]:
    return allowed(constraint.mask(), VOCAB_SIZE)


def fits(text: str, **fields: Any) -> bool:
    """Whether the tokens of a text and then a stop id are all allowed, or the text is complete without one."""
    constraint = begin(**fields)
    for token in tiny().encode(text):
        if constraint.is_complete:
            return False
        if token not in next_tokens(constraint):
            with pytest.raises(ConstraintError):
                constraint.advance(token)
            return False
        constraint.advance(token)
    return constraint.is_complete or stop_id() in next_tokens(constraint)


def packed(tokens: Sequence[int]) -> bytes:
    return sum(1 << token for token in tokens).to_bytes(4 * -(-VOCAB_SIZE // 32), "little")


@pytest.mark.parametrize("regex", ["[a-c]{2,5}(-[0-9]+)?", "(ja|nein)!*", "h.llo", "é+"])
def test_walks_through_a_regular_expression_match_it(regex: str) -> None:
    grammar = grammar_of_regex(regex)
    for seed in range(20):
        found = walk(host(), params(grammar=grammar), tiny(), VOCAB_SIZE, seed)
        text = tiny().decode(found.tokens)
        assert not found.is_complete or re.fullmatch(regex, text), text
    assert found.tokens


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        (grammar_of_choice(["yes", "no", 'a "b"\n', "日"]), ["yes", "no", 'a "b"\n', "日"], ["y", "yesno", "maybe"]),
        (grammar_of_text('start: "a" b+\nb: /[0-9]/'), ["a1", "a123"], ["a", "1", "a1x"]),
        (grammar_of_text('root ::= "a" [0-9]+ | "x"'), ["a1", "a123", "x"], ["a", "1", "x1"]),
        (grammar_of_schema({"type": "integer", "minimum": 10, "maximum": 20}), ["10", "17"], ["9", "21", " 10"]),
        (
            grammar_of_schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
            ['{"a":1}', '{"a": 1}', '{"a":1,"b":[]}', '{"a": 1, "b": [1, 2]}'],
            ['{"a":  1}', '{ "a":1}', '{\n"a":1}', "{}", '{"a":1}\n', '{"b":1}', '{"a":1.5}'],
        ),
        (
            grammar_of_lark(f'start: "<call>" body "</call>"\nbody: {json_in_lark({"type": "boolean"})}'),
            ["<call>true</call>"],
            ["true", "<call>1</call>"],
        ),
        (grammar_of_lark(f"start: {json_in_lark(True)}"), ["[1, {}]", "null"], ["", "x"]),
    ],
)  # fmt: skip
def test_grammars_allow_what_they_say(grammar: str, right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not fits(text, grammar=grammar)] == []
    assert [text for text in wrong if fits(text, grammar=grammar)] == []


def test_structural_tags_bind_only_what_follows_a_trigger() -> None:
    tag = {
        "triggers": ["<fn="],
        "structures": [
            {"begin": "<fn=add>", "schema": {"type": "array", "items": {"type": "integer"}}, "end": "</fn>"},
            {"begin": "<fn=now>", "schema": {"type": "object", "additionalProperties": False}, "end": "</fn>"},
        ],
    }
    grammar = grammar_of_tags(tag, {})
    for text in ["", "plain text", "a < b", "so <fn=add>[1,2]</fn>", "<fn=now>{}</fn> and <fn=add>[]</fn>!\n"]:
        assert fits(text, grammar=grammar), text
    for text in ["<fn=sub>", "<fn=add>[true]", "<fn=now>[1]</fn>", "x<fn=add>[1]"]:
        assert not fits(text, grammar=grammar), text


def test_a_trigger_that_is_a_special_token_is_matched_by_its_id() -> None:
    tag = {"triggers": [TURN_END], "structures": [{"begin": TURN_END, "schema": {"const": 1}, "end": "."}]}
    grammar = grammar_of_tags(tag, {TURN_END: stop_id()})
    constraint = host().begin(params(grammar=grammar, stop=False), ())
    constraint.advance(stop_id())
    assert tiny().decode(next_tokens(constraint)) == "1"


def test_stop_ids_are_allowed_only_where_the_grammar_may_end() -> None:
    constraint = begin(grammar=grammar_of_regex("ab*"))
    assert stop_id() not in next_tokens(constraint)
    [token] = tiny().encode("a")
    constraint.advance(token)
    assert stop_id() in next_tokens(constraint)
    assert not constraint.is_complete
    constraint.advance(stop_id())
    assert constraint.is_complete
    with pytest.raises(ConstraintError):
        constraint.advance(token)


def test_a_stop_id_before_the_grammar_may_end_is_a_fault_of_its_choice() -> None:
    constraint = begin(grammar=grammar_of_regex("ab"))
    with pytest.raises(ConstraintError, match="may not end"):
        constraint.advance(stop_id())
    with pytest.raises(ConstraintError, match="may not end"):
        constraint.mask()


def wear_out(constraints: HostConstraints, grammar: str) -> None:
    """Follows an answer until the states that kept grammars have room for are used up, twice."""
    letters = [tiny().encode(text)[0] for text in "abcd"]
    constraint = constraints.begin(params(grammar=grammar), ())
    random = Random(1)
    with pytest.raises(ConstraintError, match="too many states"):  # noqa: PT012 either call may be the one
        for _ in range(10_000):
            constraint.advance(random.choice(letters))
            constraint.mask()


def test_answers_that_use_up_a_kept_grammar_do_not_spoil_it_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """All copies share the states of the kept grammar, which are limited and never given back."""
    monkeypatch.setitem(grammars._LIMITS, "max_lexer_states", 3000)
    grammar = grammar_of_regex("[a-z]*a[a-z]{18}b")
    own = HostConstraints(tiny(), VOCAB_SIZE, num_threads=1)
    a, b = (tiny().encode(text)[0] for text in "ab")
    under_way, unread = own.begin(params(grammar=grammar), (a, b, a)), own.begin(params(grammar=grammar), (a,))
    wear_out(own, grammar)
    random = Random("another path")
    for _ in range(200):
        token = random.choice((a, b))
        [batch] = own.masks([under_way])
        assert token in allowed(batch, VOCAB_SIZE)
        under_way.advance(token)
    unread.advance(b)
    assert unread.mask() == HostConstraints(tiny(), VOCAB_SIZE).begin(params(grammar=grammar), (a, b)).mask()
    assert own.check_grammar(grammar) is None
    assert a in allowed(own.begin(params(grammar=grammar), (a, b, b)).mask(), VOCAB_SIZE)


def test_an_answer_is_complete_where_nothing_can_follow() -> None:
    constraint = begin(grammar=grammar_of_choice(["a"]))
    [token] = tiny().encode("a")
    constraint.advance(token)
    assert constraint.is_complete


def test_without_stop_ids_the_answer_is_complete_where_only_they_could_follow() -> None:
    """A grammar that ends with something optional, whose rest other limits exclude."""
    a, b = (tiny().encode(text)[0] for text in "ab")
    grammar = grammar_of_regex("ab*")
    for fields in ({"stop": False, "mask": packed([a])}, {"min_tokens": 5, "bad_words": ((b,),)}):
        constraint = begin(grammar=grammar, **fields)
        constraint.advance(a)
        wide = [token for token in (a, b) if token in next_tokens(begin([a], grammar=grammar))]
        assert wide == [b]
        if "mask" in fields:
            assert constraint.is_complete
    constraint = begin(grammar=grammar, stop=False)
    constraint.advance(a)
    assert not constraint.is_complete
    assert b in next_tokens(constraint)


def test_an_answer_whose_stop_ids_are_bad_words_is_complete_where_only_they_could_follow() -> None:
    """It has to be known with the last token: a mask that comes later cannot end the choice."""
    a, b = (tiny().encode(text)[0] for text in "ab")
    fields = {"grammar": grammar_of_regex("ab*"), "bad_words": ((b,), (stop_id(),))}
    constraint = begin(**fields)
    constraint.advance(a)
    assert constraint.is_complete
    assert begin([a], **fields).is_complete, "wherever the choice goes on"


def test_before_min_tokens_no_stop_id_is_offered() -> None:
    [a] = tiny().encode("a")
    constraint = begin([a], grammar=grammar_of_regex("a+"), min_tokens=2)
    assert stop_id() not in next_tokens(constraint)
    constraint.advance(a)
    assert stop_id() in next_tokens(constraint)


def test_allowed_tokens_hold_together_with_the_grammar() -> None:
    a, b, c = (tiny().encode(text)[0] for text in "abc")
    constraint = begin(grammar=grammar_of_regex("[ab]c"), mask=packed([a, c, stop_id()]))
    assert next_tokens(constraint) == [a]
    with pytest.raises(ConstraintError):
        constraint.advance(b)


def test_nothing_left_is_a_fault_of_its_choice() -> None:
    [z] = tiny().encode("z")
    constraint = begin(grammar=grammar_of_regex("ab"), mask=packed([z]))
    with pytest.raises(ConstraintError, match="no token"):
        constraint.mask()


def test_a_bad_word_cannot_be_completed() -> None:
    a, b, c = (tiny().encode(text)[0] for text in "abc")
    constraint = begin(bad_words=((a, b, c), (c,), (b, b)))
    assert set(range(VOCAB_SIZE)) - set(next_tokens(constraint)) >= {c}
    assert {a, b, stop_id()} <= set(next_tokens(constraint))
    for token in (a, b):
        constraint.advance(token)
    assert not {b, c} & set(next_tokens(constraint))
    with pytest.raises(ConstraintError, match="bad word"):
        constraint.advance(b)


def test_without_any_limit_in_force_there_is_no_mask() -> None:
    a, b = (tiny().encode(text)[0] for text in "ab")
    constraint = begin(bad_words=((a, b),))
    assert constraint.mask() is None
    constraint.advance(a)
    assert b not in next_tokens(constraint)


def thinking(**fields: Any) -> dict[str, Any]:
    """Markers: the added token, and a two-token end."""
    return {"think_start": tuple(tiny().encode(THINK)), "think_end": tuple(tiny().encode("xy"))} | fields


@pytest.mark.parametrize("budget", [0, 1, 4])
def test_a_used_up_budget_forces_the_end_token_by_token(budget: int) -> None:
    [a] = tiny().encode("a")
    constraint = begin(**thinking(begins_thinking=True, thinking_budget=budget))
    for _ in range(budget):
        assert constraint.mask() is None
        constraint.advance(a)
    for token in tiny().encode("xy"):
        assert next_tokens(constraint) == [token]
        constraint.advance(token)
    assert constraint.mask() is None


def test_a_budget_counts_from_where_the_answer_opens_a_block() -> None:
    [a], [start], [x, y] = (tiny().encode(text) for text in ("a", THINK, "xy"))
    constraint = begin([a, a, a, start], **thinking(thinking_budget=1))
    assert constraint.mask() is None
    constraint.advance(a)
    assert next_tokens(constraint) == [x]
    with pytest.raises(ConstraintError, match="budget"):
        constraint.advance(y)


def test_a_block_that_ends_in_time_forces_nothing() -> None:
    constraint = begin(tiny().encode("abxyabcabc"), **thinking(begins_thinking=True, thinking_budget=5))
    assert constraint.mask() is None


def test_a_grammar_begins_behind_an_open_block() -> None:
    [a], ends = tiny().encode("a"), tiny().encode("xy")
    constraint = begin(**thinking(begins_thinking=True, grammar=grammar_of_choice(["b"])))
    assert a in next_tokens(constraint)
    assert stop_id() not in next_tokens(constraint)
    for token in (a, *ends):
        constraint.advance(token)
    assert tiny().decode(next_tokens(constraint)) == "b"


def test_an_answer_may_open_its_block_or_begin_at_once() -> None:
    [start], [b], ends = tiny().encode(THINK), tiny().encode("b"), tiny().encode("xy")
    fields = thinking(grammar=grammar_of_choice(["bb"]))
    assert {start, b} <= set(next_tokens(begin(**fields)))
    assert next_tokens(begin([start, *ends], **fields)).count(start) == 0
    assert next_tokens(begin([b], **fields)) == [b]


def test_a_budget_of_zero_with_a_grammar_goes_straight_through() -> None:
    found = walk(
        host(),
        params(**thinking(begins_thinking=True, thinking_budget=0, grammar=grammar_of_choice(["b"]))),
        tiny(),
        400,
        1,
    )
    assert tiny().decode(found.tokens) == "xyb"


def cases() -> list[SamplingParams]:
    a, b = (tiny().encode(text)[0] for text in "ab")
    schema = {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "number"}]}, "maxItems": 6}
    return [
        params(grammar=grammar_of_schema(schema)),
        params(grammar=grammar_of_regex("([a-f]{1,3} ?)+"), bad_words=((a, b), (b, a, a))),
        params(**thinking(begins_thinking=True, thinking_budget=7, grammar=grammar_of_schema(schema))),
        params(**thinking(thinking_budget=2, bad_words=((a,),))),
        params(grammar=grammar_of_text('root ::= "(" root ")" | [a-z]+'), min_tokens=4),
    ]


@pytest.mark.parametrize("number", range(5))
def test_replayed_tokens_give_the_same_state(number: int) -> None:
    """At every length: the same mask, the same completeness, and the same again after one more token."""
    case = cases()[number]
    for seed in range(4):
        tokens = walk(host(), case, tiny(), VOCAB_SIZE, seed).tokens
        other = HostConstraints(tiny(), VOCAB_SIZE)
        straight = host().begin(case, ())
        for length, token in enumerate(tokens):
            replayed = other.begin(case, tokens[:length])
            assert replayed.is_complete == straight.is_complete
            assert replayed.mask() == straight.mask()
            replayed.advance(token)
            straight.advance(token)
            assert replayed.is_complete == straight.is_complete
            if not straight.is_complete:
                assert replayed.mask() == straight.mask()


def test_a_batch_of_masks_equals_each_alone_and_a_failure_stays_its_own() -> None:
    [z] = tiny().encode("z")
    several = [*cases(), params(grammar=grammar_of_regex("a"), mask=packed([z])), params()]
    batch = [host().begin(case, ()) for case in several]
    masks = host().masks(batch)
    assert masks[5] is None
    assert masks[6] is None
    for case, mask in zip(several[:5], masks, strict=False):
        assert mask == host().begin(case, ()).mask()
    assert host().masks(batch) == masks
    with pytest.raises(ConstraintError, match="no token"):
        batch[5].advance(z)
    batch[6].advance(z)


def test_tokens_that_do_not_exist_are_never_allowed() -> None:
    """The model's vocabulary is padded beyond the tokenizer's; one size has no room left in its last word."""
    for size in (384, 391, 400):
        constraints = HostConstraints(tiny(), size)
        mask = constraints.begin(params(grammar=grammar_of_regex("(.|\n)*")), ()).mask()
        found = allowed(mask, size)
        assert max(found) < tiny().vocab_size
        assert set(found) == {token for token in range(tiny().vocab_size) if is_text(token)} | {stop_id()}


def is_text(token: int) -> bool:
    """Whether a token's bytes begin a text: it is no special token, and all but its last character is whole."""
    piece = tiny().piece(token)
    try:
        piece.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data" or error.end != len(piece):
            return False
    return bool(piece) and token not in tiny().special_ids


def test_pieces_of_a_sentencepiece_like_vocabulary_spell_the_text() -> None:
    tokenizer = metaspace_tokenizer()
    size = tokenizer.vocab_size + 3
    [end] = tokenizer.encode("</s>")[-1:]
    constraints = HostConstraints(tokenizer, size)
    regex = "(b|c|é|日)( hello| world){1,3}!"
    spec = SamplingParams(
        seed=0, max_tokens=80, stop_token_ids=(end,), constraint=ConstraintSpec(grammar=grammar_of_regex(regex))
    )
    for seed in range(20):
        found = walk(constraints, spec, tokenizer, size, seed)
        assert found.is_complete
        assert re.fullmatch(regex, tokenizer.decode(found.tokens))


@pytest.mark.parametrize(
    "regex",
    ["(((((a{30}){30}){30}){30}){30})", "(a|b|ab)*c" * 200, "(x+x+)+y", "(.*a.{20}){3}", "([a-z]{1,500}x){1,500}"],
)
def test_hostile_expressions_end_in_words_or_in_masks(regex: str) -> None:
    """They are refused, or fail their own choice, or go on; the limits on work keep each step bounded."""
    grammar = grammar_of_regex(regex)
    if host().check_grammar(grammar) is not None:
        with pytest.raises(ConstraintError):
            begin(grammar=grammar).mask()
        return
    constraint, random = begin(grammar=grammar), Random(1)
    with contextlib.suppress(ConstraintError):
        for _ in range(40):
            if constraint.is_complete:
                break
            constraint.advance(random.choice([t for t in next_tokens(constraint) if t != stop_id()]))


def test_what_cannot_be_compiled_is_said_with_its_place() -> None:
    assert "unknown name" in (host().check_grammar(grammar_of_lark("start: foo")) or "")
    assert "1(8)" in (host().check_grammar(grammar_of_lark("start: foo")) or "")
    with pytest.raises(ConstraintError, match="unknown name"):
        begin(grammar=grammar_of_lark("start: foo"))


def test_many_grammars_do_not_pile_up() -> None:
    constraints = HostConstraints(tiny(), VOCAB_SIZE)
    first = grammar_of_choice(["first"])
    for number in range(200):
        assert constraints.check_grammar(grammar_of_choice([f"choice {number}"])) is None
    assert constraints.check_grammar(first) is None
    assert constraints.num_compiled == MAX_COMPILED
