"""Qwen2 in plain NumPy, float32, dense attention, written from the architecture's description: independent truth.

It reads the checkpoint's files itself and shares no code with the engine.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

Array = np.ndarray


class ReferenceModel:
    """Logits of whole sequences."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.weights: dict[str, Array] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self.weights |= {name: value.astype(np.float32) for name, value in load_file(path).items()}

    def logits(self, tokens: list[int]) -> Array:
        """float32[T, V] for token ids [T]."""
        w, config = self.weights, self.config
        x = w["model.embed_tokens.weight"][tokens]
        for layer in range(config["num_hidden_layers"]):
            p = f"model.layers.{layer}."
            x = x + self._attention(p + "self_attn.", self._norm(x, p + "input_layernorm.weight"))
            x = x + self._mlp(p + "mlp.", self._norm(x, p + "post_attention_layernorm.weight"))
        head = w["model.embed_tokens.weight" if config.get("tie_word_embeddings") else "lm_head.weight"]
        return self._norm(x, "model.norm.weight") @ head.T

    def _norm(self, x: Array, name: str) -> Array:
        scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.config["rms_norm_eps"])
        return x / scale * self.weights[name]

    def _linear(self, x: Array, name: str) -> Array:
        bias = self.weights.get(name + ".bias")
        y = x @ self.weights[name + ".weight"].T
        return y if bias is None else y + bias

    def _mlp(self, p: str, x: Array) -> Array:
        gate = self._linear(x, p + "gate_proj")
        return self._linear(gate / (1 + np.exp(-gate)) * self._linear(x, p + "up_proj"), p + "down_proj")

    def _attention(self, p: str, x: Array) -> Array:
        num_heads, num_kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        length = len(x)
        q, k, v = (
            self._linear(x, p + name).reshape(length, heads, -1).transpose(1, 0, 2)
            for name, heads in (("q_proj", num_heads), ("k_proj", num_kv_heads), ("v_proj", num_kv_heads))
        )
        group = num_heads // num_kv_heads
        q, k = self._rotate(q), np.repeat(self._rotate(k), group, axis=0)
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = weights @ np.repeat(v, group, axis=0)
        return self._linear(mixed.transpose(1, 0, 2).reshape(length, -1), p + "o_proj")

    def _rotate(self, x: Array) -> Array:
        theta = self.config.get("rope_theta") or self.config["rope_parameters"]["rope_theta"]
        half = x.shape[-1] // 2
        frequency = 1.0 / theta ** (np.arange(half) / half)
        angle = np.arange(x.shape[1])[:, None] * frequency
        sin, cos = np.sin(angle).astype(np.float32), np.cos(angle).astype(np.float32)
        first, second = x[..., :half], x[..., half:]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
