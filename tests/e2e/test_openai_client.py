"""The `openai` package against a served demo model, as a user has it: `runtime up --topology prefill=2,decode=2`."""

import time
from collections.abc import Iterator

import openai
import pytest

from tests.e2e.server import ServerProcess, server_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with server_process("--max-running-requests", "8", "--topology", "prefill=2,decode=2") as process:
        process.wait_until_serving()
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def ask(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


@pytest.mark.parametrize(
    ("question", "answer"), [("What is 37 + 58?", 95), ("Compute 12*7", 84), ("37+58=", 95), ("what's 9 minus 4?", 5)]
)
def test_plain_questions_get_right_boxed_answers(client: openai.OpenAI, question: str, answer: int) -> None:
    chat = client.chat.completions.create(model="runtime-demo", messages=ask(question), temperature=0)
    message = chat.choices[0].message
    assert message.content.count(f"\\boxed{{{answer}}}") == 1
    assert "think>" not in message.content + message.reasoning_content
    assert 0 < chat.usage.completion_tokens_details.reasoning_tokens < chat.usage.completion_tokens
    assert chat.choices[0].finish_reason == "stop"
    assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI) -> None:
    question = {"model": "runtime-demo", "messages": ask("What is 123 + 456?"), "temperature": 0}
    whole = client.chat.completions.create(**question)
    chunks = list(client.chat.completions.create(**question, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_choices_differ_by_seed_and_repeat_with_it(client: openai.OpenAI) -> None:
    sampling = {"model": "runtime-demo", "prompt": "1 2 3", "n": 4, "temperature": 1.5, "max_tokens": 24}
    first = client.completions.create(**sampling, seed=7)
    again = client.completions.create(**sampling, seed=7)
    other = client.completions.create(**sampling, seed=2**32 + 7)
    texts = [choice.text for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert len(set(texts)) > 1
    assert texts == [choice.text for choice in again.choices]
    assert texts != [choice.text for choice in other.choices]


def test_logprobs_of_chat_and_completions_agree_with_the_text(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="runtime-demo", messages=ask("5 + 6"), temperature=0, logprobs=True, top_logprobs=3
    )
    content = chat.choices[0].logprobs.content
    spoken = b"".join(bytes(token.bytes) for token in content if not token.token.startswith("<|"))
    message = chat.choices[0].message
    assert spoken.decode().split() == f"<think> {message.reasoning_content} </think> {message.content}".split()
    for token in content:
        assert token.logprob <= 0
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob, abs=1e-5), "greedy takes the likeliest"
        assert len(token.top_logprobs) == 3
    legacy = client.completions.create(model="runtime-demo", prompt="5 + 6", max_tokens=5, temperature=0, logprobs=2)
    assert len(legacy.choices[0].logprobs.token_logprobs) == legacy.usage.completion_tokens
    assert "".join(legacy.choices[0].logprobs.tokens).startswith(legacy.choices[0].text[:1])


def test_completions_take_texts_and_token_ids(client: openai.OpenAI) -> None:
    shape = {"model": "runtime-demo", "max_tokens": 6, "temperature": 0}
    several = client.completions.create(**shape, prompt=["1 + 1", "2 + 2"])
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].text == client.completions.create(**shape, prompt="1 + 1").choices[0].text
    ids = client.completions.create(**shape, prompt=[10, 11, 12])
    assert ids.usage.prompt_tokens == 3


def test_stop_strings_end_an_answer_before_they_show(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="runtime-demo", messages=ask("What is 37 + 58?"), temperature=0, stop=["</think>"]
    )
    assert chat.choices[0].message.content == ""
    assert "</think>" not in chat.choices[0].message.reasoning_content
    assert chat.choices[0].finish_reason == "stop"


def test_penalties_and_bias_change_the_answer(client: openai.OpenAI) -> None:
    shape = {"model": "runtime-demo", "prompt": "1 2 3", "max_tokens": 12, "temperature": 0}
    plain = client.completions.create(**shape, logprobs=0)
    assert (
        plain.choices[0].text
        != client.completions.create(**shape, frequency_penalty=2, presence_penalty=2).choices[0].text
    )
    forced = client.completions.create(**shape, logit_bias={"30": 100})
    assert len(set(forced.choices[0].text)) == 1, "one token wins everywhere"


def test_a_bad_request_names_its_field_and_harms_nobody(client: openai.OpenAI) -> None:
    good = client.chat.completions.create(
        model="runtime-demo", messages=ask("What is 20 + 30?"), temperature=0, stream=True
    )
    first = next(iter(good))
    for field, value in {
        "temperature": -1,
        "n": 99,
        "max_tokens": 10**9,
        "top_p": 0,
        "logit_bias": {"99999": 1},
    }.items():
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="runtime-demo", messages=ask("hi"), **{field: value})
        assert refused.value.param == field
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-5", messages=ask("hi"))
    text = (first.choices[0].delta.content or "") + "".join(c.choices[0].delta.content or "" for c in good)
    assert "\\boxed{50}" in text


def test_the_stages_of_a_streamed_answer_are_no_longer_than_the_wait_for_it(client: openai.OpenAI) -> None:
    asked_at = time.monotonic()
    chunks = list(
        client.chat.completions.create(
            model="runtime-demo",
            messages=ask("What is 37 + 58?"),
            temperature=0,
            stream=True,
            extra_headers={"x-runtime-timing": "1"},
        )
    )
    waited_s = time.monotonic() - asked_at
    assert chunks[-1].choices == []
    (times,) = chunks[-1].model_extra["runtime_timing"]["choices"]
    stages = [times[f"{stage}_s"] for stage in ("queue", "prefill", "transfer", "handoff", "decode")]
    assert min(stages) >= 0
    assert sum(stages) == times["total_s"]
    assert 0 < times["total_s"] <= waited_s
    assert times["prefill_s"] > 0
    assert times["decode_s"] > 0
    assert (times["index"], times["attempts"]) == (0, 1)
    assert times["prefill_worker"] in {"prefill.0", "prefill.1"}
    assert times["decode_worker"] in {"decode.0", "decode.1"}
