import json

import jsonschema
import pytest

from api.structured import grammar_of_schema
from runtime.constraints import HostConstraints
from runtime.sampling_params import ConstraintSpec, SamplingParams
from tests.constraints.schemas import bounded, random_schema
from tests.constraints.walks import walk
from tests.runtime.tiny_tokenizer import TURN_END, tiny_tokenizer

NUM_SCHEMAS = 1000
MAX_TOKENS = 400
VOCAB_SIZE = 400


@pytest.mark.slow
def test_answers_that_end_by_stop_validate_and_nearly_all_end_by_stop() -> None:
    """A draw that leans towards closing tokens ends almost always; what ends is valid by the jsonschema package."""
    tokenizer = tiny_tokenizer()
    constraints = HostConstraints(tokenizer, VOCAB_SIZE)
    stop = tuple(tokenizer.encode(TURN_END))
    num_complete = 0
    for seed in range(NUM_SCHEMAS):
        schema = random_schema(seed)
        jsonschema.Draft202012Validator.check_schema(schema)
        grammar = grammar_of_schema(schema)
        assert constraints.check_grammar(grammar) is None, schema
        params = SamplingParams(
            seed=0, max_tokens=MAX_TOKENS, stop_token_ids=stop, constraint=ConstraintSpec(grammar=grammar)
        )
        found = walk(constraints, params, tokenizer, VOCAB_SIZE, seed)
        if found.is_complete:
            num_complete += 1
            validator = jsonschema.Draft202012Validator(
                schema, format_checker=jsonschema.FormatChecker(["date", "ipv4", "uuid"])
            )
            validator.validate(json.loads(tokenizer.decode(found.tokens)))
    assert num_complete >= 0.95 * NUM_SCHEMAS


def test_random_schemas_are_the_same_for_a_seed_and_of_many_kinds() -> None:
    texts = [json.dumps(random_schema(seed)) for seed in range(200)]
    assert texts == [json.dumps(random_schema(seed)) for seed in range(200)]
    for keyword in (
        "anyOf",
        "oneOf",
        "allOf",
        "$ref",
        "const",
        "enum",
        "pattern",
        "maxLength",
        "prefixItems",
        "format",
    ):
        assert sum(f'"{keyword}"' in text for text in texts) > 5, keyword


def test_bounded_schemas_are_schemas_that_can_be_fulfilled() -> None:
    constraints = HostConstraints(tiny_tokenizer(), VOCAB_SIZE)
    for seed in range(100):
        schema = bounded(random_schema(seed))
        jsonschema.Draft202012Validator.check_schema(schema)
        assert constraints.check_grammar(grammar_of_schema(schema)) is None, schema
