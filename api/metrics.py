"""All metrics of one server: what is counted, by whom, and the scrape that shows it.

Three tell: the observed client of the gateway (`api.observation`) what requests do, the edge what it answers, and the
actors (`actors.telemetry`) what workers, scheduler and transfer do. Label values come from the server's own lists
(routes, workers, roles, reasons), never from a request, so that no client can make them grow.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
from prometheus_client import Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from actors.messages import Address
from actors.stage_clock import StageTimes
from actors.telemetry import RecoveryCause, StepRecord, WorkerLoad
from api.metric_families import FAST_S, POWERS, REQUEST_S, Definition, Distribution, Numbers

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_WORKER = ("worker", "role")
_STEP = (*_WORKER, "phase")
_PAIR = ("source", "target")


class MetricsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the metrics need to know of the server.

    `info` becomes the labels of one constant; `compiles` counts compilations since the warm-up; `page_bytes` are those
    of all KV heads of a page of `page_size` tokens.
    """

    model: str = ""
    info: Mapping[str, str] = {}
    page_size: int = 1
    page_bytes: int = 0
    compiles: Callable[[], int] = lambda: 0


class Metrics:
    """The counts; it is the actors' `Telemetry`."""

    def __init__(self, options: MetricsOptions | None = None) -> None:
        self._options = options or MetricsOptions()
        self.families: list[Numbers | Distribution] = []
        self.loads: dict[Address, WorkerLoad] = {}
        self._labels: dict[Address, tuple[str, str]] = {}
        self._requests()
        self._stages()
        self._scheduling()
        self._workers()
        self._server()

    def snapshot(self) -> "Snapshot":
        """Everything as it is now."""
        return Snapshot(tuple(self.collect()))

    # --- what there is

    def _requests(self) -> None:
        self.ttft = self._distribution(
            "time_to_first_token_seconds", "from a request's arrival to its first token", REQUEST_S,
            alias="vllm:time_to_first_token_seconds",
        )  # fmt: skip
        self.itl = self._distribution(
            "inter_token_latency_seconds", "between two tokens of a choice, as they leave for the client", FAST_S,
            alias="vllm:inter_token_latency_seconds",
        )  # fmt: skip
        self.e2e = self._distribution(
            "e2e_request_latency_seconds", "from a request's arrival to its last token", REQUEST_S,
            alias="vllm:e2e_request_latency_seconds",
        )  # fmt: skip
        self.prompt_tokens = self._counter(
            "prompt_tokens_total", "tokens of prompts whose first answer token is there", alias="vllm:prompt_tokens"
        )
        self.generation_tokens = self._counter(
            "generation_tokens_total", "tokens generated for clients", alias="vllm:generation_tokens"
        )
        self.finished = self._counter(
            "choices_finished_total", "choices that ended, by finish reason", ("finished_reason",),
            alias="vllm:request_success",
        )  # fmt: skip
        self.failed = self._counter(
            "requests_failed_total", "requests that were refused or failed behind the edge, by error code", ("code",)
        )
        self.aborted = self._counter("requests_aborted_total", "requests whose client went away before their end")
        self.http = self._counter("http_requests_total", "HTTP responses", ("route", "status"))

    def _stages(self) -> None:
        self.queue = self._stage("queue", "in the queue", alias="vllm:request_queue_time_seconds")
        self.prefill = self._stage("prefill", "being prefilled", alias="vllm:request_prefill_time_seconds")
        self.exposed = self._stage("transfer_exposed", "waiting for KV to arrive that prefill did not hide")
        self.handoff = self._stage("handoff", "waiting for the first decode step, with all KV there")
        self.decode = self._stage("decode", "being decoded", alias="vllm:request_decode_time_seconds")

    def _stage(self, name: str, where: str, alias: str = "") -> Distribution:
        return self._distribution(f"request_{name}_seconds", f"a choice's time {where}", REQUEST_S, alias=alias)

    def _scheduling(self) -> None:
        self.waiting = self._gauge(
            "requests_waiting", "groups that wait for a place", alias="vllm:num_requests_waiting"
        )
        self.running = self._gauge("requests_running", "groups that have a place", alias="vllm:num_requests_running")
        self.admissions = self._counter("admissions_total", "groups let in, by attempt: first or again", ("attempt",))
        self.recoveries = self._counter("recoveries_total", "further attempts at a choice, by cause", ("cause",))
        self.restarts = self._counter("restarts_total", "lives of actors that ended with an error", ("actor", "final"))

    def _workers(self) -> None:
        self.steps = self._distribution("step_seconds", "a slice's time for a step", FAST_S, _STEP)
        self.step_rows = self._distribution("step_rows", "choices that a step decodes", POWERS, _STEP)
        self.step_tokens = self._distribution("step_prefill_tokens", "prompt tokens of a step", POWERS, _STEP)
        self.cache_queries = self._counter(
            "prefix_cache_queries_total", "prompt tokens looked for in a prefix cache", _WORKER,
            alias="vllm:prefix_cache_queries",
        )  # fmt: skip
        self.cache_hits = self._counter(
            "prefix_cache_hits_total", "prompt tokens found in a prefix cache", _WORKER, alias="vllm:prefix_cache_hits"
        )
        self.preemptions = self._counter(
            "preemptions_total", "choices given up because the KV pool was exhausted", _WORKER,
            alias="vllm:num_preemptions",
        )  # fmt: skip
        self.pages = self._gauge("kv_pages", "pages of the KV pool by state", (*_WORKER, "state"))
        self.kv_usage = self._gauge(
            "kv_cache_usage_ratio", "share of the KV pool that is in use", _WORKER, alias="vllm:kv_cache_usage_perc"
        )
        self.choices = self._gauge("worker_choices", "choices and groups that a worker has", (*_WORKER, "state"))
        self.moves = self._distribution("kv_transfer_seconds", "a chunk's copy from slice to slice", FAST_S, _PAIR)
        self.moved_bytes = self._counter("kv_transfer_bytes_total", "KV copied from slice to slice", _PAIR)
        self.failed_moves = self._counter("kv_transfer_failures_total", "copies that failed", _PAIR)

    def _server(self) -> None:
        self.compiles = self._gauge("compiles_after_warm_up", "programs compiled while serving; 0 is expected")
        self.info = self._gauge("info", "always 1", tuple(self._options.info))
        self.info.set(1.0, *self._options.info.values())

    def _distribution(
        self, name: str, text: str, bounds: tuple[float, ...], labels: tuple[str, ...] = (), alias: str = ""
    ) -> Distribution:
        definition = Definition(
            name=f"runtime_{name}", kind="histogram", help=text, labels=labels, bounds=bounds, alias=alias
        )
        self.families.append(family := Distribution(definition))
        return family

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = (), alias: str = "") -> Numbers:
        definition = Definition(name=f"runtime_{name}", kind="counter", help=text, labels=labels, alias=alias)
        self.families.append(family := Numbers(definition))
        return family

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = (), alias: str = "") -> Numbers:
        definition = Definition(name=f"runtime_{name}", kind="gauge", help=text, labels=labels, alias=alias)
        self.families.append(family := Numbers(definition))
        return family

    def collect(self) -> Iterable[Metric]:
        """All families as they are now."""
        self.compiles.set(float(self._options.compiles()))
        for gauges in (self.pages, self.kv_usage, self.choices):
            gauges.values.clear()
        for worker, load in self.loads.items():
            self._show_load(self._of(worker), load)
        extra = {"model_name": self._options.model}
        for family in self.families:
            yield from family.families(extra)

    def _show_load(self, labels: tuple[str, str], load: WorkerLoad) -> None:
        self.pages.set(load.used_pages, *labels, "used")
        self.pages.set(load.cached_pages, *labels, "cached")
        self.pages.set(load.free_pages, *labels, "free")
        self.kv_usage.set(kv_usage(load), *labels)
        self.choices.set(load.running, *labels, "running")
        self.choices.set(load.leases, *labels, "leased")
        self.choices.set(load.prefills, *labels, "prefilling")

    def _of(self, worker: Address) -> tuple[str, str]:
        """A worker's labels: its name, which begins with its role."""
        labels = self._labels.get(worker)
        if labels is None:
            labels = self._labels[worker] = (worker, worker.partition(".")[0])
        return labels

    # --- what the observed client tells

    def completed(self, e2e_s: float, timings: Sequence[StageTimes]) -> None:
        """A request has its last token."""
        self.e2e.observe(e2e_s)
        for times in timings:
            self.queue.observe(times.queue_s)
            self.prefill.observe(times.prefill_s)
            self.exposed.observe(times.transfer_s)
            self.handoff.observe(times.handoff_s)
            self.decode.observe(times.decode_s)

    # --- what actors tell

    def queued(self, waiting: int, placed: int) -> None:
        """The scheduler's groups."""
        self.waiting.set(waiting)
        self.running.set(placed)

    def admitted(self, *, again: bool) -> None:
        """A group was let in."""
        self.admissions.add(1, "again" if again else "first")

    def recovered(self, cause: RecoveryCause) -> None:
        """Another attempt."""
        self.recoveries.add(1, cause)

    def died(self, actor: Address, *, final: bool) -> None:
        """A life ended with an error; what it held is gone."""
        self.loads.pop(actor, None)
        self.restarts.add(1, actor, "true" if final else "false")

    def moved(self, source: Address, target: Address, num_tokens: int, duration_s: float) -> None:
        """A chunk was copied."""
        pages = -(-num_tokens // self._options.page_size)
        self.moves.observe(duration_s, source, target)
        self.moved_bytes.add(pages * self._options.page_bytes, source, target)

    def move_failed(self, source: Address, target: Address) -> None:
        """A copy failed."""
        self.failed_moves.add(1, source, target)

    def stepped(self, worker: Address, step: StepRecord) -> None:
        """A step was read."""
        labels = (*self._of(worker), step.phase)
        self.steps.observe(step.duration_s, *labels)
        if step.rows:
            self.step_rows.observe(step.rows, *labels)
        if step.prefill_tokens:
            self.step_tokens.observe(step.prefill_tokens, *labels)

    def looked_up(self, worker: Address, num_tokens: int, cached_tokens: int) -> None:
        """A prefix cache was asked."""
        labels = self._of(worker)
        self.cache_queries.add(num_tokens, *labels)
        self.cache_hits.add(cached_tokens, *labels)

    def preempted(self, worker: Address, num_choices: int) -> None:
        """Choices were given up."""
        self.preemptions.add(num_choices, *self._of(worker))

    def holds(self, worker: Address, load: WorkerLoad) -> None:
        """Remembered for the next scrape."""
        self.loads[worker] = load


class Snapshot(Collector):
    """All families at one moment. It no longer changes, so that a thread can render it while the counts go on."""

    def __init__(self, families: tuple[Metric, ...]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """The families."""
        return self._families

    def render(self) -> bytes:
        """Everything in the text format. Takes tens of milliseconds where there are many workers."""
        return generate_latest(self)


def kv_usage(load: WorkerLoad) -> float:
    """Share of a worker's pages that are in use."""
    return load.used_pages / max(1, load.used_pages + load.cached_pages + load.free_pages)
