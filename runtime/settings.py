"""What `runtime up` was asked for, checked as far as that is possible without loading anything.

`Settings` holds what the operator said; `None` means "decide it from the device or the model", which happens
in `runtime.composition` once those are known. Flags that exclude each other are refused here, in one message
that names both with their values.
"""

from typing import Literal

import msgspec

from runtime.chaos.spec import SpecError, parse_chaos
from runtime.errors import UsageError
from runtime.topology import Topology, parse_topology

DeviceKind = Literal["auto", "cpu", "tpu", "gpu"]
Platform = Literal["cpu", "tpu", "gpu"]
DType = Literal["auto", "bfloat16", "float32"]
AttentionBackend = Literal["auto", "pallas", "pallas-interpret", "xla"]

TOOL_CALL_PARSERS = ("auto", "none", "hermes", "llama3", "mistral", "deepseek")
REASONING_PARSERS = ("auto", "none", "think", "think-open")

MIN_PAGE_SIZE = 8
"""A decode write is a read-modify-write of an aligned group of 8 tokens."""

MAX_PAGE_SIZE = 1024
WHOLE_CONTEXT = -1
"""As chunk size: prompts are not cut, one prefill step holds a whole context."""

DEMO_NAME = "runtime-demo"

REAL_ENGINE = "jax"
EMULATED_PREFIX = "emulated:"


class BatchSizes(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens per page, prompt tokens per prefill step, and choices that one slice runs at once.

    Without a chunk size, a step holds a whole context (`chunk_tokens`).
    """

    page_size: int
    chunked_prefill_size: int | None
    max_running_requests: int

    def chunk_tokens(self, max_context_tokens: int) -> int:
        """Prompt tokens per prefill step, a multiple of the page."""
        return self.chunked_prefill_size or -(-max_context_tokens // self.page_size) * self.page_size


_ACCELERATOR = BatchSizes(page_size=128, chunked_prefill_size=2048, max_running_requests=256)
PLATFORM_DEFAULTS: dict[Platform, BatchSizes] = {
    "cpu": BatchSizes(page_size=16, chunked_prefill_size=256, max_running_requests=32),
    "tpu": _ACCELERATOR,
    "gpu": _ACCELERATOR,
}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the server. Raises UsageError when flags do not go together."""

    model: str | None = None
    revision: str | None = None
    download_dir: str | None = None
    trust_remote_code: bool = False
    served_model_name: str | None = None
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    topology: str | None = None
    tp_size: int = 1
    engine: str = REAL_ENGINE
    emulation_stretch: float = 1.0
    device: DeviceKind = "auto"
    dtype: DType = "auto"
    attention_backend: AttentionBackend = "auto"
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    api_key_file: str | None = None
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 16 * 2**20
    max_answers: int = 256
    admin_key: str | None = None
    page_size: int | None = None
    num_pages: int | None = None
    chunked_prefill_size: int | None = None
    max_running_requests: int | None = None
    context_length: int | None = None
    mem_fraction_static: float | None = None
    decode_reserve_tokens: int = 512
    max_queued_requests: int = 1024
    random_seed: int | None = None
    use_sort_for_toppk_minp: bool = False
    disable_radix_cache: bool = False
    skip_server_warmup: bool = False
    queue_timeout_s: float = 600.0
    progress_timeout_s: float = 300.0
    drain_timeout_s: float = 30.0
    response_store_size: int = 1024
    response_store_bytes: int = 256 * 2**20
    response_store_age_s: float = 86400.0
    verify_kv: bool = False
    chaos: str | None = None
    log_level: str = "warning"
    log_format: str = "text"
    otlp_traces_endpoint: str | None = None
    profile_dir: str | None = None

    def __post_init__(self) -> None:
        if self.page_size is not None and self.chunked_prefill_size is not None:
            check_chunk(self.chunked_prefill_size, self.page_size)
        if self.revision is not None and self.model is None:
            raise UsageError(f"--revision {self.revision!r} without --model: allowed: with a hub id ORG/NAME")
        self.parsed_topology()
        check_chaos(self.chaos)
        if self.table_file is None and self.emulation_stretch != 1:
            raise UsageError(
                f"--emulation-stretch {self.emulation_stretch:g} with --engine {self.engine}: "
                f"allowed: with --engine {EMULATED_PREFIX}FILE"
            )

    @property
    def allows_chaos(self) -> bool:
        """Whether failures may be ordered, now or later."""
        return self.chaos is not None or self.admin_key is not None

    @property
    def table_file(self) -> str | None:
        """The step-time table of an emulated engine, None for the real one. Raises UsageError for anything else."""
        if self.engine == REAL_ENGINE:
            return None
        path = self.engine.removeprefix(EMULATED_PREFIX)
        if path == self.engine or not path:
            raise UsageError(f"--engine {self.engine!r}: allowed: {REAL_ENGINE}, {EMULATED_PREFIX}FILE")
        return path

    def sizes_for(self, platform: Platform) -> BatchSizes:
        """Page, chunk and batch: what was asked for, completed with what suits the platform."""
        default = PLATFORM_DEFAULTS[platform]
        asked = self.chunked_prefill_size
        whole = asked == WHOLE_CONTEXT
        page_size = self.page_size or (default.page_size if whole else min(default.page_size, asked or MAX_PAGE_SIZE))
        chunk = asked or max(default.chunked_prefill_size or 0, page_size)
        check_chunk(chunk, page_size)
        return BatchSizes(
            page_size=page_size,
            chunked_prefill_size=None if whole else chunk,
            max_running_requests=self.max_running_requests or default.max_running_requests,
        )

    def check_attention_backend(self, platform: Platform) -> None:
        """Raises UsageError for kernels that `platform` cannot run."""
        wanted = {"pallas": "tpu", "pallas-interpret": "cpu"}.get(self.attention_backend, platform)
        if wanted != platform:
            others = {"cpu": "pallas-interpret, ", "tpu": "pallas, ", "gpu": ""}[platform]
            raise UsageError(f"--attention-backend {self.attention_backend} on {platform}: allowed: {others}auto, xla")

    def parsed_topology(self) -> Topology | None:
        """The topology that was asked for, or None when none was."""
        return None if self.topology is None else parse_topology(self.topology, self.tp_size)


def check_chaos(spec: str | None) -> None:
    """Whether failures are ordered in the right words; which workers there are is known only later."""
    try:
        if spec is not None:
            parse_chaos(spec)
    except SpecError as error:
        raise UsageError(f"--chaos {error}") from error


def check_chunk(chunk_tokens: int, page_size: int) -> None:
    """A prefill chunk ends on a page boundary, so that only whole pages travel before the last chunk."""
    if page_size & (page_size - 1) or not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE:
        raise UsageError(f"--page-size {page_size}: allowed: a power of two from {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE}")
    if chunk_tokens == WHOLE_CONTEXT:
        return
    if chunk_tokens < page_size or chunk_tokens % page_size:
        raise UsageError(
            f"--chunked-prefill-size {chunk_tokens} with --page-size {page_size}: "
            "allowed: a chunk that is a multiple of the page, or -1 for no chunks"
        )
