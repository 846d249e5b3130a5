"""Small random checkpoints of every family in Hugging Face's format, made without torch.

The tokenizer is byte-level, so every text round-trips: ids 0-255 are bytes, then the special tokens, then
filler words that encoding never produces but that decode to text. Weights are scaled so that attention looks
around and logits have a standard deviation of about 3.
"""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from runtime.model_config import FAMILIES

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NUM_BYTES = 256
EOS_TOKEN_ID = NUM_BYTES
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
STORED_AS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def write_checkpoint(
    folder: Path,
    *,
    architecture: str = "Qwen2ForCausalLM",
    vocab_size: int = 272,
    hidden_size: int = 64,
    intermediate_size: int = 96,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 32,
    max_position_embeddings: int = 4096,
    rope_theta: float = 10000.0,
    tie_word_embeddings: bool = False,
    num_shards: int = 1,
    seed: int = 0,
    dtype: str = "float32",
    with_tokenizer: bool = True,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Writes config, generation config, weights and tokenizer into `folder` (made if needed); returns it.

    `vocab_size` must leave room for the bytes and specials unless `with_tokenizer` is off. `changes` are further keys
    of config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    eos = EOS_TOKEN_ID if with_tokenizer else vocab_size - 1
    config = {
        "architectures": [architecture],
        "model_type": FAMILIES[architecture].model_type,
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": max_position_embeddings,
        "rope_parameters": {"rope_theta": rope_theta, "rope_type": "default"},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tie_word_embeddings,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "eos_token_id": eos,
        "dtype": dtype,
    } | (changes or {})
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"eos_token_id": eos})
    tensors = random_tensors(config, seed)
    stored = {name: tensor.astype(DTYPES[dtype]) for name, tensor in tensors.items()}
    write_weights(folder, stored, num_shards=num_shards)
    if with_tokenizer:
        write_tokenizer(folder, vocab_size)
    return folder


def random_tensors(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Seeded float32 tensors by checkpoint name."""
    rng = np.random.default_rng(seed)
    model, inner, vocab = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]

    def normal(std: float, *shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(std)

    def matrix(num_out: int, num_in: int, gain: float = 1.0) -> np.ndarray:
        return normal(gain * num_in**-0.5, num_out, num_in)

    def mlp(prefix: str, inner: int) -> dict[str, np.ndarray]:
        block = {
            f"{prefix}.gate_proj.weight": matrix(inner, model),
            f"{prefix}.up_proj.weight": matrix(inner, model),
            f"{prefix}.down_proj.weight": matrix(model, inner),
        }
        if config.get("mlp_bias"):
            sizes = {"gate_proj": inner, "up_proj": inner, "down_proj": model}
            block |= {f"{prefix}.{name}.bias": normal(0.3, size) for name, size in sizes.items()}
        return block

    tied = config["tie_word_embeddings"]
    biased = config["model_type"] == "qwen2" or config.get("attention_bias")
    tensors = {"model.embed_tokens.weight": normal(3 * model**-0.5 if tied else 1.0, vocab, model)}
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        tensors[f"{layer}.input_layernorm.weight"] = 1 + normal(0.1, model)
        for name, size, gain in (("q_proj", queries, 1.4), ("k_proj", keys, 1.4), ("v_proj", keys, 1.0)):
            tensors[f"{layer}.self_attn.{name}.weight"] = matrix(size, model, gain)
            if biased:
                tensors[f"{layer}.self_attn.{name}.bias"] = normal(0.3, size)
        tensors[f"{layer}.self_attn.o_proj.weight"] = matrix(model, queries)
        if config.get("attention_bias"):
            tensors[f"{layer}.self_attn.o_proj.bias"] = normal(0.3, model)
        if config["model_type"] in ("qwen3", "qwen3_moe"):
            for name in ("q_norm", "k_norm"):
                tensors[f"{layer}.self_attn.{name}.weight"] = 1.4 + normal(0.2, config["head_dim"])
        tensors[f"{layer}.post_attention_layernorm.weight"] = 1 + normal(0.1, model)
        if is_sparse(config, index):
            tensors[f"{layer}.mlp.gate.weight"] = matrix(config["num_experts"], model, 2.0)
            for expert in range(config["num_experts"]):
                tensors |= mlp(f"{layer}.mlp.experts.{expert}", config["moe_intermediate_size"])
        else:
            tensors |= mlp(f"{layer}.mlp", inner)
    tensors["model.norm.weight"] = 1 + normal(0.1, model)
    if not tied:
        tensors["lm_head.weight"] = matrix(vocab, model, 3.0)
    return tensors


def is_sparse(config: dict[str, Any], index: int) -> bool:
    """Whether layer `index` of a checkpoint has experts."""
    is_listed = index in config.get("mlp_only_layers", [])
    return "num_experts" in config and not is_listed and (index + 1) % config.get("decoder_sparse_step", 1) == 0


def write_weights(folder: Path, tensors: dict[str, np.ndarray], *, num_shards: int = 1) -> None:
    """Writes model.safetensors, or that many shards and their index."""
    if num_shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return
    names = list(tensors)
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::num_shards]}
        write_safetensors(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def write_safetensors(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes one safetensors file: header length, JSON header, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        kind = STORED_AS[tensor.dtype.name]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    data = b"".join(tensor.tobytes() for tensor in tensors.values())
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json with a chat template."""
    fillers = vocab_size - NUM_BYTES - len(SPECIALS)
    assert fillers >= 0, f"{vocab_size=} leaves no room for {NUM_BYTES + len(SPECIALS)} tokens"
    vocab = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {token: NUM_BYTES + index for index, token in enumerate(SPECIALS)}
    vocab |= {f"w{index}": NUM_BYTES + len(SPECIALS) + index for index in range(fillers)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIALS[0],
        "pad_token": SPECIALS[0],
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes one indented JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n")
