import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing

from runtime.errors import RequestError, UsageError
from runtime.folder_code import model_code, tokenizer_code
from runtime.tokens import Tokenizer
from tests.runtime.tiny_tokenizer import END, TEMPLATE, metaspace_tokenizer, tiny_tokenizer, write_folder

tokenizer = cache(tiny_tokenizer)


def test_a_folder_loads_with_its_template(tmp_path: Path) -> None:
    loaded = Tokenizer.load(write_folder(tmp_path, chat_template=TEMPLATE))
    assert loaded.vocab_size == tokenizer().vocab_size
    prompt = loaded.render_chat([{"role": "user", "content": "hi"}])
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_file_is_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert Tokenizer.load(folder).render_chat([{"role": "user", "content": "hi"}]) == "hi!"


def test_a_template_in_json_is_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "chat_template.json").write_text('{"chat_template": "{{ messages[0].content }}?"}')
    assert Tokenizer.load(folder).render_chat([{"role": "user", "content": "hi"}]) == "hi?"
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert Tokenizer.load(folder).render_chat([{"role": "user", "content": "hi"}]) == "hi!"


@pytest.mark.parametrize(
    ("content", "message"), [("{}", "chat_template is None; it must be a string"), ("[", "not JSON")]
)
def test_a_broken_template_in_json(tmp_path: Path, content: str, message: str) -> None:
    folder = write_folder(tmp_path)
    (folder / "chat_template.json").write_text(content)
    with pytest.raises(UsageError) as caught:
        Tokenizer.load(folder)
    assert str(folder / "chat_template.json") in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_class_that_a_config_names_does_not_change_the_tokens(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, tokenizer_class="LlamaTokenizerFast")
    assert Tokenizer.load(folder).encode("hello 😀") == tokenizer().encode("hello 😀")


def test_begin_of_text_is_added_to_plain_prompts_only(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, bos_token=END)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    bos = backend.token_to_id(END)
    backend.post_processor = TemplateProcessing(single=f"{END} $A", special_tokens=[(END, bos)])
    backend.save(str(folder / "tokenizer.json"))
    loaded = Tokenizer.load(folder)
    plain = tokenizer().encode("hello")
    assert loaded.encode("hello", add_special_tokens=True) == [bos, *plain]
    assert loaded.encode("hello") == plain


@pytest.mark.parametrize("add_special_tokens", [False, True])
@pytest.mark.parametrize("make", [tiny_tokenizer, metaspace_tokenizer])
def test_encoding_equals_the_backends_own_of_a_single_text(
    make: Callable[[], Tokenizer], add_special_tokens: bool
) -> None:
    loaded = make()
    end = loaded._backend.id_to_token(min(loaded.special_ids))
    loaded._backend.post_processor = TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, min(loaded.special_ids))]
    )
    texts = [
        "", " ", "a", "hello there world", "  two  spaces ", "line\nline\r\n\tend\n\n", "37 + 58 = 95", "\0\x7f",
        "é e\u0301 ß ﬁ", "日本語 한국어 العربية", "😀 👩\u200d👩\u200d👧", "\U0010ffff\ufffd\ufeff",
        "<|im_start|>user<|im_end|>", "<think>a</think>", "</s>", "\uff5cuser\uff5c", "▁hello ▁world",
        "hello 😀 world!\n" * 2000,
    ]  # fmt: skip
    for text in texts:
        own = loaded._backend.encode(text, add_special_tokens=add_special_tokens).ids
        assert loaded.encode(text, add_special_tokens=add_special_tokens) == own


def test_encoding_lets_other_threads_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the backend's ways to encode, only those for batches release the interpreter's lock."""

    class OnlyBatches:
        def encode_batch_fast(self, texts: list[str], *, add_special_tokens: bool) -> Any:
            return backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    loaded = tiny_tokenizer()
    backend = loaded._backend
    expected = loaded.encode("hello there")
    monkeypatch.setattr(loaded, "_backend", OnlyBatches())
    assert loaded.encode("hello there") == expected


@pytest.mark.parametrize(("make", "longest"), [(tiny_tokenizer, END), (metaspace_tokenizer, " hello")])
def test_the_longest_token(make: Callable[[], Tokenizer], longest: str) -> None:
    loaded = make()
    assert loaded.longest_token_bytes == len(longest)
    assert loaded.longest_token_bytes == max(len(loaded.piece(token)) for token in range(loaded.vocab_size))


def test_a_folder_without_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tokenizer.json") as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_file_is_one_line(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path)
    (folder / name).write_text('{"half": ')
    with pytest.raises(UsageError, match="cannot load the tokenizer|is not JSON") as error:
        Tokenizer.load(folder)
    assert "\n" not in str(error.value)


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(max_length=2)
    backend.enable_padding(length=5)
    backend.save(str(folder / "tokenizer.json"))
    loaded = Tokenizer.load(folder)
    for text in ("hello there world", "a"):
        assert loaded.encode(text) == tokenizer().encode(text)


def test_without_a_template_chat_is_refused() -> None:
    with pytest.raises(RequestError, match="no chat template"):
        tiny_tokenizer(template=None).render_chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
        ("{{ 1 // 0 }}", "zero"),
        ("{% for %}", "Expected"),
    ],
)
def test_template_errors_become_request_errors(template: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as error:
        tiny_tokenizer(template=template).render_chat([{"role": "user", "content": "hi"}])
    assert (error.value.status, error.value.param) == (400, "messages")


def test_pieces_of_byte_level_tokens_join_to_the_bytes() -> None:
    text = "Hello 😀 <think> \uff5cuser\uff5c"
    assert b"".join(map(tokenizer().piece, tokenizer().encode(text))) == text.encode()


def test_pieces_of_other_tokenizers() -> None:
    other = metaspace_tokenizer()
    assert b"".join(map(other.piece, other.encode("hello 😀"))).decode() == " hello 😀"
    assert other.piece(1) == b"</s>"
    assert other.piece(2 + 0xE2) == b"\xe2"
    assert other.piece(9_999) == b""


CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({mark!r}).touch()
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def folder_with_code(folder: Path, auto_map: object, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_folder(folder, auto_map=auto_map, chat_template=TEMPLATE)
    mark = folder / "ran"
    (folder / "own_tokens.py").write_text(CODE.format(mark=str(mark)))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder / "modules"))
    return folder


AUTO_MAPS = [{"AutoTokenizer": [None, "own_tokens.OwnTokenizer"]}, ["own_tokens.OwnTokenizer", None]]


@pytest.mark.parametrize("auto_map", AUTO_MAPS)
def test_code_of_the_folder_is_not_run_unless_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, auto_map: object
) -> None:
    folder = folder_with_code(tmp_path, auto_map, monkeypatch)
    with pytest.raises(UsageError, match="auto_map names code, 'own_tokens.OwnTokenizer', which is not run; allowed:"):
        Tokenizer.load(folder)
    assert not (folder / "ran").exists()


def test_code_of_the_folder_is_run_when_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with_code(tmp_path, AUTO_MAPS[0], monkeypatch)
    monkeypatch.syspath_prepend(str(folder / "modules"))
    loaded = Tokenizer.load(folder, trust_remote_code=True)
    assert (folder / "ran").exists()
    assert loaded.encode("hello") == tokenizer().encode("hello")


def test_a_trusted_folder_without_code_runs_none(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, auto_map={"AutoModel": "modeling.Model"})
    assert Tokenizer.load(folder, trust_remote_code=True).encode("hello") == Tokenizer.load(folder).encode("hello")


def test_code_that_a_folder_names_is_known_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with_code(tmp_path, AUTO_MAPS[1], monkeypatch)
    assert (tokenizer_code(folder), model_code(folder)) == ("own_tokens.OwnTokenizer", None)
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "a.B", "AutoModel": "c.D"}}))
    assert model_code(folder) == "a.B, c.D"
    assert tokenizer_code(write_folder(tmp_path / "plain")) is None
    assert not (folder / "ran").exists()
