"""The tokenizer of a model folder: text to tokens, tokens to text, messages to a prompt.

Loaded once at start, offline, and running code from the folder only where the operator allows it. The API
encodes prompts and renders chat templates with it in worker threads, the gateway detokenizes with it; it is
immutable after loading and safe to share between threads. Decoding skips special tokens unless they are asked for, and
never cleans up spaces.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from runtime.detokenize import ByteDetokenizer, IncrementalDetokenizer, WindowDetokenizer
from runtime.errors import RequestError, UsageError
from runtime.folder_code import TOKENIZER_CONFIG, tokenizer_code
from runtime.model_folder import JsonObject, read_json

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_TEMPLATE_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def _byte_level_alphabet() -> dict[int, int]:
    """GPT-2's table from a vocabulary character to the byte it stands for, for `str.translate` to Latin-1."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in plain]
    return {byte: byte for byte in plain} | {256 + index: byte for index, byte in enumerate(moved)}


_ALPHABET = _byte_level_alphabet()


def _json_template(folder: Path) -> str | None:
    """The template of chat_template.json, where processors keep it and tokenizers do not look. Raises UsageError."""
    path = folder / "chat_template.json"
    if not path.is_file():
        return None
    content = JsonObject(path, read_json(path))
    template = content.get("chat_template")
    if not isinstance(template, str):
        raise content.refuse("chat_template", "it must be a string")
    return template


class TemplateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a conversation is rendered, beside its messages and tools.

    With `add_generation_prompt` the text ends where the assistant's turn begins; with `continue_final_message`, which
    excludes it, in the midst of the last message. `variables` are the template's own, such as `enable_thinking`.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Any] = msgspec.field(default_factory=dict)


PLAIN_TURN = TemplateOptions()
"""The assistant's turn begins, and the template has its own way."""


class Tokenizer:
    """A fast tokenizer and its chat template. Build it with `load`."""

    def __init__(self, wrapped: Any) -> None:
        from tokenizers import decoders

        self._wrapped = wrapped
        self._backend = wrapped.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._byte_level = isinstance(self._backend.decoder, decoders.ByteLevel)
        added = self._backend.get_added_tokens_decoder()
        self._added_ids = frozenset(added)
        self._added = {entry.content: token for token, entry in added.items()}
        self.special_ids = frozenset(token for token, entry in added.items() if entry.special)
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        self._longest = max((len(self._bytes(content, token)) for content, token in vocabulary.items()), default=1)
        self._pieces: dict[int, bytes] = {}

    @classmethod
    def load(cls, folder: Path, *, trust_remote_code: bool = False) -> "Tokenizer":
        """Reads `tokenizer.json`, `tokenizer_config.json` and the chat template of a model folder.

        Where the config names code of the folder's own, that code makes the tokenizer if it is trusted; otherwise
        the folder is refused, because without its code it might be read wrongly. Raises UsageError.
        """
        code = tokenizer_code(folder)
        if code is not None and not trust_remote_code:
            raise UsageError(
                f"{folder / TOKENIZER_CONFIG}: auto_map names code, {code!r}, which is not run; "
                "allowed: --trust-remote-code to run it, or a folder without it"
            )
        if code is None and not (folder / "tokenizer.json").is_file():
            raise UsageError(f"{folder}: no tokenizer.json (a model folder needs a fast tokenizer)")
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # batches are of one text: a thread pool would idle
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            if code is not None:
                return cls._of_code(AutoTokenizer.from_pretrained(str(folder), trust_remote_code=True), folder, code)
            # The class is fixed: the one that the config names may rebuild the tokenizer unlike its file.
            wrapped = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
            wrapped.chat_template = wrapped.chat_template or _json_template(folder)
            return cls(wrapped)
        except UsageError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception for a broken file
            reason = " ".join(str(error).split())[:200]
            raise UsageError(f"{folder}: cannot load the tokenizer: {reason or type(error).__name__}") from error

    @classmethod
    def _of_code(cls, wrapped: Any, folder: Path, code: str) -> "Tokenizer":
        if getattr(wrapped, "backend_tokenizer", None) is None:
            raise UsageError(
                f"{folder / TOKENIZER_CONFIG}: the tokenizer of {code!r} is a slow one; allowed: a fast tokenizer"
            )
        return cls(wrapped)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Tokens of `text`. A rendered chat brings its own special tokens; a plain prompt asks for them.

        Other threads go on meanwhile: the backend lets go of the interpreter for a batch, but not for one text.
        """
        return list(self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    @property
    def longest_token_bytes(self) -> int:
        """Bytes of the longest token: no more characters of a text than that become a single token.

        A text may still have more when the tokenizer drops or merges characters before it cuts the rest.
        """
        return self._longest

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True, shown_ids: Sequence[int] = ()) -> str:
        """Text of `tokens`; without special tokens, but those in `shown_ids`, if these are skipped."""
        skipped = self._skipped(skip_special_tokens, shown_ids)
        return self._decode_all([token for token in tokens if token not in skipped])

    def token_string(self, token: int) -> str:
        """A token as the vocabulary spells it; empty for an id without a token."""
        return str(self._backend.id_to_token(token) or "")

    def info(self) -> dict[str, Any]:
        """What a client needs that does without a tokenizer: the names of special tokens, and the chat template."""
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        return {name: getattr(self._wrapped, name) for name in names} | {
            "tokenizer_class": type(self._wrapped).__name__,
            "chat_template": self._wrapped.chat_template,
        }

    def detokenizer(
        self, *, skip_special_tokens: bool = True, shown_ids: Sequence[int] = (), context: Sequence[int] = ()
    ) -> IncrementalDetokenizer:
        """A fresh incremental decoder. Its pieces, joined, are what `decode` finds behind the text of `context`."""
        skipped = self._skipped(skip_special_tokens, shown_ids)
        if self._byte_level:
            return ByteDetokenizer(self.piece, skipped)
        return WindowDetokenizer(self._decode_all, skipped, context)

    def _skipped(self, skip_special_tokens: bool, shown_ids: Sequence[int]) -> frozenset[int]:
        if not skip_special_tokens:
            return frozenset()
        return self.special_ids.difference(shown_ids) if shown_ids else self.special_ids

    def _decode_all(self, tokens: list[int]) -> str:
        return str(self._backend.decode(tokens, skip_special_tokens=False))

    def added_token(self, text: str) -> int | None:
        """The token, special or not, that was added to the vocabulary under this very text."""
        return self._added.get(text)

    @property
    def chat_template(self) -> str:
        """The source of the chat template, of several all together; empty without one."""
        template = self._wrapped.chat_template or ""
        return template if isinstance(template, str) else "\n".join(template.values())

    def piece(self, token: int) -> bytes:
        """Bytes that this token stands for, special tokens by name; empty for an id without a token."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._make_piece(token)
        return piece

    def _make_piece(self, token: int) -> bytes:
        content = self._backend.id_to_token(token)
        return b"" if content is None else self._bytes(str(content), token)

    def _bytes(self, content: str, token: int) -> bytes:
        """Bytes behind a vocabulary's spelling of a token."""
        if self._byte_level and all(ord(char) in _ALPHABET for char in content):
            return content.translate(_ALPHABET).encode("latin-1")
        if self._byte_level or token in self._added_ids:
            return content.encode()
        if match := _BYTE_TOKEN.fullmatch(content):
            return bytes.fromhex(match[1])
        return content.replace("\u2581", " ").encode()

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: TemplateOptions = PLAIN_TURN,
    ) -> str:
        """The prompt text of a conversation. Raises RequestError for what the model's template refuses."""
        from jinja2 import TemplateError

        if not self._wrapped.chat_template:
            raise RequestError(
                "this model has no chat template: use /v1/completions",
                param="messages",
                code="no_chat_template",
            )
        try:
            return str(
                self._wrapped.apply_chat_template(
                    list(messages),
                    tools=list(tools) if tools else None,
                    tokenize=False,
                    add_generation_prompt=options.add_generation_prompt,
                    continue_final_message=options.continue_final_message,
                    **options.variables,
                )
            )
        except (TemplateError, *_TEMPLATE_ERRORS) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise RequestError(
                f"messages: the model's chat template refuses them: {reason}", param="messages"
            ) from error
