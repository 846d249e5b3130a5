"""Data sets: exact lengths, sharing as asked for, files of every format, and bad files by name and line."""

import json
from collections import Counter
from pathlib import Path

import pytest
import scipy.stats

from loadtest.datasets import Dataset, api_of
from loadtest.datasets.shape import Shape
from loadtest.errors import UsageError
from loadtest.request import Message, Request


def ids(request: Request) -> tuple[int, ...]:
    assert isinstance(request.prompt, tuple)
    return request.prompt


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_random_prompts_have_exact_lengths_within_the_spread() -> None:
    shape = Shape(input_tokens=100, output_tokens=20, spread=0.5, lowest_token=5, highest_token=9)
    drawn = Dataset("random", shape, "0").take(2000)
    lengths, outputs = [len(ids(request)) for request in drawn], [request.max_tokens for request in drawn]
    assert all(request.prompt_tokens == len(ids(request)) and request.exact_output for request in drawn)
    assert (min(lengths), max(lengths), min(outputs), max(outputs)) == (50, 150, 10, 30)
    assert scipy.stats.chisquare([count for _, count in sorted(Counter(lengths).items())]).pvalue > 0.01
    assert {token for request in drawn for token in ids(request)} == set(range(5, 10))
    assert {len(ids(request)) for request in Dataset("random", Shape(input_tokens=7), "0").take(9)} == {7}


def test_a_seed_repeats_prompts_and_takes_never_overlap() -> None:
    first, again, other = (Dataset("random", Shape(), seed) for seed in ("1", "1", "2"))
    warmup, measured = first.take(5), first.take(5)
    assert again.take(5) == warmup
    assert not {request.prompt for request in warmup} & {request.prompt for request in measured}
    assert other.take(5) != warmup


def test_prefixes_are_shared_in_groups_by_zipf() -> None:
    shape = Shape(input_tokens=8, prefix_tokens=32, groups=4, zipf=1.0)
    dataset = Dataset("prefix", shape, "3")
    warmup, drawn = dataset.take(200), dataset.take(4000)
    counts = Counter(ids(request)[:32] for request in drawn)
    weights = [1, 1 / 2, 1 / 3, 1 / 4]
    expected = [4000 * weight / sum(weights) for weight in weights]
    assert scipy.stats.chisquare([count for _, count in counts.most_common()], expected).pvalue > 0.01
    assert {ids(request)[:32] for request in warmup} == set(counts)
    assert len({ids(request)[32:] for request in drawn}) == 4000


def test_jsonl_of_prompts_and_of_chats(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    path = write(
        tmp_path / "data.jsonl",
        {"prompt": "one", "max_tokens": 5, "note": "left out"},
        "",
        {"prompt": [1, 2, 3], "at_s": 1.5},
        {"prompt": "two", "output_tokens": 6},
    )
    one, two, three = Dataset(f"jsonl:{path}", Shape(output_tokens=9), "0").take(3)
    assert (one.prompt, one.max_tokens, one.exact_output) == ("one", 5, False)
    assert (two.prompt, two.prompt_tokens, two.max_tokens, two.at_s) == ((1, 2, 3), 3, 9, 1.5)
    assert three.max_tokens == 6
    chats = Dataset(f"jsonl:{write(tmp_path / 'chats.jsonl', {'messages': chat})}", Shape(), "0").take(1)
    assert chats[0].messages == (Message("system", "be brief"), Message("user", "hi"))
    assert (api_of(chats[0], None), api_of(one, None), api_of(one, "chat")) == ("chat", "completions", "chat")
    with pytest.raises(UsageError, match="--api completions"):
        api_of(chats[0], "completions")
    with pytest.raises(UsageError, match="--api chat"):
        api_of(two, "chat")


def test_a_file_begins_again_when_it_is_used_up(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"})
    dataset = Dataset(f"jsonl:{path}", Shape(), "0")
    assert [request.prompt for request in dataset.warmup(1)] == ["c"]
    assert (dataset.default_count, [request.prompt for request in dataset.take(2)]) == (3, ["a", "b"])
    assert dataset.num_repeated == 0
    assert ([request.prompt for request in dataset.take(3)], dataset.num_repeated) == (["c", "a", "b"], 3)


def test_sharegpt_takes_the_first_thing_that_a_person_says(tmp_path: Path) -> None:
    def talk(*turns: tuple[str, str]) -> object:
        return {"id": "x", "conversations": [{"from": speaker, "value": value} for speaker, value in turns]}

    path = tmp_path / "talks.json"
    talks = [
        talk(("human", "one"), ("gpt", "1"), ("human", "more")),
        talk(("gpt", "I begin"), ("human", "no")),
        talk(("human", "unanswered")),
        talk(("user", "two"), ("assistant", "2")),
        {"id": "empty"},
    ]
    path.write_text(json.dumps(talks))
    taken = Dataset(f"sharegpt:{path}", Shape(output_tokens=3), "0").take(2)
    assert {(request.messages or ())[0].content for request in taken} == {"one", "two"}
    assert {request.max_tokens for request in taken} == {3}
    path.write_text(json.dumps(talks[1:3]))
    with pytest.raises(UsageError, match="the data set is empty"):
        Dataset(f"sharegpt:{path}", Shape(), "0")


def test_a_mooncake_trace_shares_the_blocks_that_were_shared(tmp_path: Path) -> None:
    path = write(
        tmp_path / "trace.jsonl",
        {"timestamp": 2500, "input_length": 1100, "output_length": 7, "hash_ids": [1, 2, 4]},
        {"timestamp": 1000, "input_length": 1030, "output_length": 5, "hash_ids": [1, 2, 3]},
        {"timestamp": 3000, "input_length": 20, "output_length": 1, "hash_ids": []},
    )
    first, second, third = Dataset(f"mooncake:{path}", Shape(), "0").take(3)
    assert [request.at_s for request in (first, second, third)] == [1.0, 2.5, 3.0]
    assert [len(ids(request)) for request in (first, second, third)] == [1030, 1100, 20]
    assert ids(first)[:1024] == ids(second)[:1024]
    assert ids(first)[1024:] != ids(second)[1024:1030]
    assert (first.max_tokens, second.prompt_tokens) == (5, 1100)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing", "", "--data 'nothing': allowed: random, prefix, jsonl:FILE, sharegpt:FILE, mooncake:FILE"),
        ("random:x", "", "--data 'random:x': allowed"),
        ("jsonl:", "", "--data 'jsonl:': allowed"),
        ("jsonl:{missing}", "", "No such file"),
        ("jsonl:{path}", "\n\n", "the data set is empty"),
        ("jsonl:{path}", '{"prompt": "a"}\n{"prompt": 5}\n', ":2: Expected"),
        ("jsonl:{path}", '{"prompt": ""}\n', ":1: allowed: a line with either"),
        ("jsonl:{path}", '{"prompt": "a", "max_tokens": -1}\n', ":1: max_tokens -1"),
        ("sharegpt:{path}", '{"a": 1}\n', "allowed: a JSON list"),
        ("mooncake:{path}", '{"timestamp": 1, "input_length": 0, "output_length": 1}\n', ":1: input_length"),
        ("mooncake:{path}", "{}\n", "missing required field"),
    ],
)
def test_bad_data_is_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text(content)
    with pytest.raises(UsageError) as error:
        Dataset(name.format(path=path, missing=tmp_path / "missing"), Shape(), "0")
    assert message in str(error.value)
