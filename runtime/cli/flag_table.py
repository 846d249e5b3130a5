"""The flags of `runtime up`: one row each, in the order of the help. Everything that lists flags reads this."""

from runtime.cli.flag import Flag
from runtime.cli.values import integer, key, keys, number, one_of, origins, power_of_two, switch, text, url
from runtime.settings import (
    DEMO_NAME,
    MAX_PAGE_SIZE,
    MIN_PAGE_SIZE,
    REASONING_PARSERS,
    TOOL_CALL_PARSERS,
    WHOLE_CONTEXT,
)

_MANY = 1 << 24
_DAY_S = 86400.0
_ON_CPU = "on cpu, else"
SECONDS = number(0, _DAY_S, unit="seconds")

MODEL = (
    Flag(
        names=("--model", "--model-path"), field="model", group="model", metavar="DIR|ORG/NAME",
        value=text("a model folder, or a hub id ORG/NAME"), default="the embedded demo model",
        effect="folder with config.json, *.safetensors and a fast tokenizer; or a model of the Hugging Face hub, looked"
        " for in --download-dir, then in the Hugging Face cache, and only then downloaded",
    ),
    Flag(
        names=("--revision",), field="revision", group="model", metavar="NAME",
        value=text("a branch, tag or commit"), default="main",
        effect="branch, tag or commit of a hub model; refused for a folder",
    ),
    Flag(
        names=("--download-dir",), field="download_dir", group="model", metavar="DIR",
        value=text("a folder"), default="the Hugging Face cache, $HF_HUB_CACHE or $HF_HOME/hub",
        effect="where a hub model is looked for first and downloaded to: as DIR/ORG/NAME, DIR/NAME, or in the layout"
        " of the Hugging Face cache",
    ),
    Flag(
        names=("--served-model-name",), field="served_model_name", group="model", metavar="NAME",
        value=text(), default=f"the folder's name, the hub id, or {DEMO_NAME} for the demo",
        effect="name that clients send as `model` and that answers carry",
    ),
    Flag(
        names=("--dtype",), field="dtype", group="model", metavar="TYPE", value=one_of("auto", "bfloat16", "float32"),
        effect="type of weights, KV and arithmetic: auto (the checkpoint's), bfloat16, or float32 with float32 matmuls",
    ),
    Flag(
        names=("--context-length",), field="context_length", group="model", metavar="TOKENS",
        value=integer(2, _MANY, unit="tokens"), default="the model's",
        effect="longest prompt and answer together, at most the model's",
    ),
    Flag(
        names=("--tool-call-parser",), field="tool_call_parser", group="model", metavar="NAME",
        value=one_of(*TOOL_CALL_PARSERS),
        effect="form in which the model writes tool calls; auto: the one that its chat template asks for; none: only"
        " forced calls are found",
    ),
    Flag(
        names=("--reasoning-parser",), field="reasoning_parser", group="model", metavar="NAME",
        value=one_of(*REASONING_PARSERS),
        effect="think: what the model writes between <think> and </think> is reasoning; think-open: so is all up to"
        " </think> when nothing opened the block; auto: think where template or vocabulary have the tags; none: it"
        " stays content",
    ),
    Flag(
        names=("--trust-remote-code",), field="trust_remote_code", group="model", value=switch(),
        effect="run the tokenizer code that a model folder names in tokenizer_config.json (auto_map); without it"
        " nothing from a folder is run and such a folder is refused. The model itself is never computed by such code",
    ),
)  # fmt: skip

PLACEMENT = (
    Flag(
        names=("--topology",), field="topology", group="devices and slices", metavar="SPEC",
        value=text("prefill=P[xTP],decode=D[xTP] or mixed=N[xTP]"),
        default="prefill=1,decode=1, or mixed=1 where there are too few devices",
        effect="slices: prefill=P,decode=D or mixed=N; xTP after a count gives that role's devices per slice",
    ),
    Flag(
        names=("--tp-size",), field="tp_size", group="devices and slices", metavar="N",
        value=integer(1, 1024, unit="devices"),
        effect="devices per slice of every role that does not say its own",
    ),
    Flag(
        names=("--engine",), field="engine", group="devices and slices", metavar="jax|emulated:FILE",
        value=text("jax, or emulated: and the path of a step-time table"),
        effect="jax computes; emulated:FILE computes nothing, answers with random tokens and lets every step last as"
        " long as a table says (docs/emulation.md): a server's scheduling on devices that are not there",
    ),
    Flag(
        names=("--emulation-stretch",), field="emulation_stretch", group="devices and slices", metavar="N",
        value=number(0, 1e6),
        effect="everything emulated lasts N times as long as the table says, so that the server's own work weighs less",
    ),
    Flag(
        names=("--device",), field="device", group="devices and slices", metavar="KIND",
        value=one_of("auto", "cpu", "tpu", "gpu"),
        effect="auto (what $JAX_PLATFORMS names, else what the machine has), cpu, tpu or gpu; a CPU is split into as"
        " many virtual devices as needed",
    ),
    Flag(
        names=("--attention-backend",), field="attention_backend", group="devices and slices", metavar="NAME",
        value=one_of("auto", "pallas", "pallas-interpret", "xla"),
        effect="what computes attention and moves KV: pallas (TPU kernels), xla (plain JAX, anywhere), pallas-interpret"
        " (the TPU kernels in an interpreter on a cpu: slow, for tests), or auto: on a TPU pallas where the kernels"
        " cover the model, else xla",
    ),
)  # fmt: skip

MEMORY = (
    Flag(
        names=("--page-size",), field="page_size", group="memory and batching", metavar="TOKENS",
        value=power_of_two(MIN_PAGE_SIZE, MAX_PAGE_SIZE), default=f"16 {_ON_CPU} 128",
        effect=f"tokens per KV page, a power of two from {MIN_PAGE_SIZE} to {MAX_PAGE_SIZE}",
    ),
    Flag(
        names=("--num-pages",), field="num_pages", group="memory and batching", metavar="PAGES",
        value=integer(2, _MANY, unit="pages"), default="what --mem-fraction-static leaves",
        effect="KV pages of each slice, the first of which holds no tokens",
    ),
    Flag(
        names=("--mem-fraction-static",), field="mem_fraction_static", group="memory and batching", metavar="F",
        value=number(0, 0.99), default="0.88; on cpu at most 1 GiB of KV per slice",
        effect="share of a device's memory for weights and KV together; on cpu the share of the machine's free memory"
        " for the KV of all slices together",
    ),
    Flag(
        names=("--chunked-prefill-size",), field="chunked_prefill_size", group="memory and batching", metavar="TOKENS",
        value=integer(MIN_PAGE_SIZE, _MANY, unit="tokens", also=WHOLE_CONTEXT), default=f"256 {_ON_CPU} 2048",
        effect="prompt tokens per prefill step, a multiple of the page; -1: no chunking, one step holds the whole"
        " context",
    ),
    Flag(
        names=("--max-running-requests",), field="max_running_requests", group="memory and batching", metavar="N",
        value=integer(1, 4096, unit="requests"), default=f"32 {_ON_CPU} 256",
        effect="choices that one decode or mixed slice runs at once",
    ),
    Flag(
        names=("--decode-reserve-tokens",), field="decode_reserve_tokens", group="memory and batching",
        metavar="TOKENS", value=integer(1, _MANY, unit="tokens"),
        effect="output tokens for which KV pages are reserved before a request starts",
    ),
    Flag(
        names=("--disable-radix-cache",), field="disable_radix_cache", group="memory and batching", value=switch(),
        effect="share no KV between requests: every prompt is computed and moved as a whole",
    ),
)  # fmt: skip

SAMPLING = (
    Flag(
        names=("--random-seed",), field="random_seed", group="sampling", metavar="SEED", value=integer(0, 2**63 - 1),
        default="the operating system's randomness",
        effect="where the seeds of requests without one are drawn from, in the order in which requests come",
    ),
    Flag(
        names=("--use-sort-for-toppk-minp",), field="use_sort_for_toppk_minp", group="sampling", value=switch(),
        effect="top-k, top-p and min-p with a full sort of the vocabulary; the result is the same without",
    ),
)  # fmt: skip

SERVER = (
    Flag(
        names=("--host",), field="host", group="server", metavar="ADDRESS", value=text("an address of this machine"),
        effect="address to listen on",
    ),
    Flag(
        names=("--port",), field="port", group="server", metavar="PORT", value=integer(0, 65535),
        effect="port to listen on; 0 picks a free one",
    ),
    Flag(
        names=("--api-key",), field="api_keys", group="server", metavar="KEY", value=keys(), is_secret=True,
        default="none: everybody is let in",
        effect="key that clients must send as a bearer token; can be repeated, a file takes a list",
    ),
    Flag(
        names=("--api-key-file",), field="api_key_file", group="server", metavar="FILE", value=text("a file of keys"),
        default="none",
        effect="more such keys, one a line, so that no list of processes shows them",
    ),
    Flag(
        names=("--cors-origin",), field="cors_origins", group="server", metavar="ORIGIN", value=origins(),
        default="none: browsers let no other page use the server",
        effect="page that may use the server from a browser, such as http://localhost:3000, or * for all; can be"
        " repeated, a file takes a list",
    ),
    Flag(
        names=("--max-body-bytes",), field="max_body_bytes", group="server", metavar="BYTES",
        value=integer(1024, 1 << 32, unit="bytes"), effect="longest body of a request; a longer one gets a 413",
    ),
    Flag(
        names=("--max-answers",), field="max_answers", group="server", metavar="N",
        value=integer(1, 4096, unit="choices"),
        effect="choices that one request may ask for, n for each of its prompts",
    ),
    Flag(
        names=("--admin-key",), field="admin_key", group="server", metavar="KEY", value=key(), is_secret=True,
        default="none: there are no admin routes",
        effect="serve /admin (docs/reliability.md) to clients on this machine that send KEY as a bearer token; @FILE"
        " reads KEY from a file",
    ),
    Flag(
        names=("--max-queued-requests",), field="max_queued_requests", group="server", metavar="N",
        value=integer(1, _MANY, unit="requests"), effect="requests that may wait; more get a 429",
    ),
    Flag(
        names=("--queue-timeout",), field="queue_timeout_s", group="server", metavar="SECONDS", value=SECONDS,
        effect="seconds to a request's first token; later it gets an error; at an expected wait of half of that, a 429",
    ),
    Flag(
        names=("--progress-timeout",), field="progress_timeout_s", group="server", metavar="SECONDS", value=SECONDS,
        effect="seconds that a running request may go without a token",
    ),
    Flag(
        names=("--drain-timeout",), field="drain_timeout_s", group="server", metavar="SECONDS", value=SECONDS,
        effect="seconds that running requests get after SIGTERM or Ctrl-C",
    ),
    Flag(
        names=("--response-store-size",), field="response_store_size", group="server", metavar="N",
        value=integer(0, _MANY, unit="responses"),
        effect="responses kept in memory for /v1/responses/ID and previous_response_id; 0: none (docs/responses.md)",
    ),
    Flag(
        names=("--response-store-bytes",), field="response_store_bytes", group="server", metavar="BYTES",
        value=integer(1, 1 << 50, unit="bytes"),
        effect="bytes that the kept responses may have together; those not used for the longest time go first",
    ),
    Flag(
        names=("--response-store-age",), field="response_store_age_s", group="server", metavar="SECONDS",
        value=number(0, 30 * _DAY_S, unit="seconds"), effect="seconds that a response is kept after its last use",
    ),
    Flag(
        names=("--skip-server-warmup",), field="skip_server_warmup", group="server", value=switch(),
        effect="serve without first sending one request through the whole path; programs are compiled before the first"
        " request all the same",
    ),
    Flag(
        names=("--verify-kv",), field="verify_kv", group="server", value=switch(),
        effect="compare checksums of KV before and behind its transfer and send again what arrives changed; costs the"
        " overlap of steps with the host's work",
    ),
    Flag(
        names=("--chaos",), field="chaos", group="server", metavar="SPEC",
        value=text("failures as in docs/reliability.md"), default="none",
        effect="fail on purpose, for game days: decode.0:crash@step=50,transfer:drop=0.01; drawn from --random-seed",
    ),
    Flag(
        names=("--log-level",), field="log_level", group="server", metavar="LEVEL",
        value=one_of("debug", "info", "warning", "error"),
        effect="least severe messages on standard error: debug, info (one line per request), warning or error",
    ),
    Flag(
        names=("--log-format",), field="log_format", group="server", metavar="FORMAT", value=one_of("text", "json"),
        effect="how messages on standard error are written: text, or json with one object a line",
    ),
    Flag(
        names=("--otlp-traces-endpoint",), field="otlp_traces_endpoint", group="server", metavar="URL", value=url(),
        is_secret=True,
        default="what $OTEL_EXPORTER_OTLP_ENDPOINT says, else no spans",
        effect="where OpenTelemetry spans are sent, such as http://localhost:4318/v1/traces; needs runtime[trace]",
    ),
    Flag(
        names=("--profile-dir",), field="profile_dir", group="server", metavar="DIR", value=text("a folder"),
        default="none: there are no profiles",
        effect="folder for profiles of the device, which POST /start_profile and /stop_profile write",
    ),
)  # fmt: skip

COMMAND = (
    Flag(
        names=("--config",), field=None, group="this command", metavar="FILE", value=text("a TOML file"),
        default="none",
        effect="TOML file with the same settings, named as the flags without their dashes; flags win over it",
    ),
    Flag(
        names=("--print-config",), field=None, group="this command", value=switch(), default="off",
        effect="print the settings in force and where each comes from, as TOML, and exit",
    ),
    Flag(
        names=("-h", "--help"), field=None, group="this command", value=switch(), default="off",
        effect="show this text",
    ),
)  # fmt: skip

FLAGS: tuple[Flag, ...] = (*MODEL, *PLACEMENT, *MEMORY, *SAMPLING, *SERVER, *COMMAND)
SETTINGS_FLAGS = tuple(flag for flag in FLAGS if flag.field is not None)
BY_NAME = {name: flag for flag in FLAGS for name in flag.names}
GROUPS = tuple(dict.fromkeys(flag.group for flag in FLAGS))
