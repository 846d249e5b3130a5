"""A small random model, engines on it, and the same model computed densely without pages, batches or buckets."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from kernels.implementations import Implementation
from runtime.engine import EngineSpec, PrefillSegment, RowState, Sampled, Step
from runtime.jax_engine import JaxEngine
from runtime.kv_cache import pool_shape
from runtime.model_config import ModelConfig
from runtime.models import decoder
from runtime.models.parameters import Params, abstract_params, checkpoint_names
from runtime.placement import Placement
from runtime.sampling_params import SamplingParams
from runtime.topology import Role

PAGE = 8
MODEL = ModelConfig(
    architecture="Qwen2ForCausalLM",
    vocab_size=160,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rope_theta=10000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    qkv_bias=True,
    max_position_embeddings=512,
    eos_token_ids=(0,),
    dtype="float32",
)
BFLOAT16 = msgspec.structs.replace(MODEL, dtype="bfloat16")
SPEC = EngineSpec(
    page_size=PAGE,
    num_pages=64,
    num_rows=8,
    max_context_tokens=128,
    vocab_size=MODEL.vocab_size,
    chunk_tokens=64,
    max_prefill_segments=4,
    page_bytes=pool_shape(MODEL, PAGE, "cpu").page_bytes,
)
GREEDY = SamplingParams(seed=1, max_tokens=64, temperature=0.0)


def random_params(model: ModelConfig = MODEL, seed: int = 0) -> Params:
    """Random weights of the model's type on the host."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        scale, offset = (0.15, 0.0) if len(leaf.shape) > 1 else (0.1, 1.0)
        return (rng.standard_normal(leaf.shape, np.float32) * scale + offset).astype(leaf.dtype)

    params: Params = jax.tree.map(draw, abstract_params(model, model.dtype))
    return params


def make_engine(
    role: Role = "mixed",
    device: int = 0,
    *,
    model: ModelConfig = MODEL,
    tp: int = 1,
    kernels: Implementation = "xla",
    chunk_heads: int | None = None,
    checksums: bool = False,
    **sizes: int,
) -> JaxEngine:
    """An engine on `tp` virtual devices from `device` on. Programs compile when used unless the test warms it up."""
    devices = jax.devices()[device : device + tp]
    spec = msgspec.structs.replace(SPEC, **sizes)
    params = split_params(random_params(model), model, Placement(devices))
    return JaxEngine(
        model, params, spec, role=role, devices=devices, kernels=kernels, chunk_heads=chunk_heads, checksums=checksums
    )


def split_params(params: Params, model: ModelConfig, placement: Placement) -> Params:
    """Whole host parameters on a slice, kv heads repeated with numpy where it has more devices than heads."""
    copies = max(placement.tp // model.num_kv_heads, 1)

    def split(name: str, value: np.ndarray) -> jax.Array:
        if ".k_proj." in name or ".v_proj." in name:
            heads = value.reshape(model.num_kv_heads, model.head_dim, *value.shape[1:])
            value = np.repeat(heads, copies, axis=0).reshape(-1, *value.shape[1:])
        return jax.device_put(value, placement.parameter(name, value.shape))

    placed: Params = jax.tree.map(split, checkpoint_names(params), params)
    return placed


def dense_logprobs(tokens: Sequence[int], model: ModelConfig = MODEL) -> np.ndarray:
    """Log-softmax after every token, float32[len(tokens), V]."""

    def attend(
        kv: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, window: int | None
    ) -> tuple[jax.Array, jax.Array]:
        return kv, jax.nn.dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]

    params = jax.tree.map(jnp.asarray, random_params(model))
    positions = jnp.arange(len(tokens), dtype=jnp.int32)
    nothing = [jnp.zeros(0)] * model.num_layers
    hidden, _ = decoder.forward(params, model, jnp.asarray(tokens, jnp.int32), positions, nothing, attend)
    return np.asarray(jax.nn.log_softmax(decoder.logits(params, model, hidden)))


def assert_greedy(prompt: Sequence[int], output: Sequence[int], model: ModelConfig = MODEL) -> None:
    """Every output token is the dense model's most likely one, given those before it."""
    wanted = dense_logprobs([*prompt, *output], model).argmax(axis=1)
    assert list(output) == wanted[len(prompt) - 1 : -1].tolist()


def prompt_of(length: int, seed: int = 0) -> tuple[int, ...]:
    """Random token ids."""
    return tuple(np.random.default_rng([seed, length]).integers(0, MODEL.vocab_size, length).tolist())


def row_state(
    row: int,
    prompt: tuple[int, ...],
    pages: Sequence[int],
    *,
    sampling: SamplingParams = GREEDY,
    output: tuple[int, ...] = (),
    choice: int = 0,
) -> RowState:
    """A row that holds the prompt and all output tokens but the last, which is fed next."""
    return RowState(
        row=row,
        sampling=sampling,
        choice=choice,
        prompt=prompt,
        output=output,
        pages=tuple(pages),
        length=len(prompt) + max(len(output) - 1, 0),
        last_token=output[-1] if output else 0,
    )


def segment(
    prompt: tuple[int, ...],
    pages: Sequence[int],
    start: int = 0,
    end: int | None = None,
    rows: tuple[int, ...] = (),
    page_size: int = PAGE,
) -> PrefillSegment:
    """Tokens start..end-1 of a prompt, with the pages that they need."""
    tokens = prompt[start:end]
    return PrefillSegment(
        tokens=tokens, start=start, pages=tuple(pages)[: -(-(start + len(tokens)) // page_size)], sample_rows=rows
    )


class Runner:
    """Runs steps on an engine and collects each row's tokens."""

    def __init__(self, engine: JaxEngine) -> None:
        self.engine = engine
        self.sampled: dict[int, list[Sampled]] = {}

    def run(self, **step: object) -> tuple[Sampled, ...]:
        """One step, fetched at once."""
        sampled = self.engine.fetch(self.engine.dispatch(msgspec.convert(step, Step)))
        for one in sampled:
            self.sampled.setdefault(one.row, []).append(one)
        return sampled

    def tokens(self, row: int) -> list[int]:
        """What the row sampled so far."""
        return [one.token for one in self.sampled[row]]
