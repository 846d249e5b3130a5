"""The accuracy client: finding boxed answers, counting, and the table."""

import asyncio
import json

import httpx
import pytest

from loadtest.evaluate import Problem, Result, Sampling, boxed, is_right, run, table


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{95}", "95"),
        ("first \\boxed{1}, then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{ 9 5 }", "95"),
    ],
)
def test_the_last_box_counts(text: str, answer: str) -> None:
    assert is_right(text, answer)


def test_no_box_or_an_open_one_is_no_answer() -> None:
    assert boxed("95") is None
    assert boxed("\\boxed{95") is None
    assert not is_right("\\boxed{96}", "95")


def _server(request: httpx.Request) -> httpx.Response:
    """Solves level 1 and runs out of tokens on level 2."""
    body = json.loads(request.content)
    assert body["temperature"] == 0.6
    assert "put your final answer within \\boxed{}." in body["messages"][0]["content"]
    solves = "easy" in body["messages"][0]["content"]
    message = {"content": "<think>..</think>\\boxed{4}" if solves else "<think>.."}
    return httpx.Response(
        200, json={"choices": [{"message": message, "finish_reason": "stop" if solves else "length"}]}
    )


def test_a_run_counts_solved_and_cut() -> None:
    problems = [Problem("easy", "4", 1), Problem("hard", "4", 2), Problem("easy", "5", 2)]
    sampling = Sampling(temperature=0.6, top_p=0.95, max_tokens=9, seed=1)
    result = asyncio.run(run("http://server", "m", problems, sampling, 2, httpx.MockTransport(_server)))
    assert (result.solved, result.num_cut) == ((True, False, False), 1)


def test_the_table_means_over_repeats() -> None:
    problems = [Problem("a", "1", 1), Problem("b", "2", 2)]
    text = table("m", "d", problems, [Result((True, False), 0, 1.0), Result((True, True), 0, 1.0)])
    assert [line.split("|")[6].strip() for line in text.splitlines()[1::2]] == ["Score", "1", "0.5", "0.75"]
