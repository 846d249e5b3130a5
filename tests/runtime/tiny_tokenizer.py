"""Small tokenizers built on the spot: a byte-level one as Qwen and Llama 3 have, and a SentencePiece-like one."""

import json
from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from runtime.tokens import Tokenizer

END, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}"
    "{% for message in messages %}"
    "{% if message.role == 'system' and not loop.first %}{{ raise_exception('system must come first') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}({{ call.function.name }} {{ call.function.arguments.a }})"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = ["What is 37 + 58? The answer is 95. Hello world, hello there: stop here, please."] * 8


def byte_level_backend() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_special_tokens([AddedToken(text, special=True) for text in (END, TURN_START, TURN_END)])
    backend.add_tokens([AddedToken("<think>", special=False), AddedToken("\uff5cuser\uff5c", special=False)])
    return backend


def metaspace_backend() -> Backend:
    words = ["▁hello", "▁world", "▁a", "b", "c", "!", "▁", "é"]
    vocab = {"<unk>": 0, "</s>": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    for word in words:
        vocab[word] = len(vocab)
    backend = Backend(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return backend


def tiny_tokenizer(*, template: str | None = TEMPLATE) -> Tokenizer:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=byte_level_backend(), eos_token=TURN_END)
    wrapped.chat_template = template
    return Tokenizer(wrapped)


def metaspace_tokenizer() -> Tokenizer:
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=metaspace_backend(), eos_token="</s>"))


def write_folder(folder: Path, **config: object) -> Path:
    """A model folder's tokenizer files."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_level_backend().save(str(folder / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": TURN_END} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
