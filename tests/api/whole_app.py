"""The application with every route that there can be, in front of a scripted engine."""

from functools import cache

from starlette.applications import Starlette

from actors.messages import Address, DrainAnswer, WorkerStatus
from actors.worker_board import WorkerBoard
from api.admin import Admin
from api.app import create_app
from api.model import ApiSettings, Readiness, ServedModel
from runtime.chaos.campaign import Chaos
from runtime.model_config import GenerationDefaults
from runtime.tokens import Tokenizer
from runtime.topology import parse_topology
from tests.api.fake_client import FakeClient
from tests.runtime.tiny_tokenizer import END, TURN_END, tiny_tokenizer

API_KEY, ADMIN_KEY = "an-api-key", "an-admin-key"
TEXTS = ("The answer is 95 \U0001f600.", "Hello world", "stop here, please")
TOPOLOGY = parse_topology("prefill=1,decode=2")
shared_tokenizer = cache(tiny_tokenizer)


def tiny_model(tokenizer: Tokenizer) -> ServedModel:
    """A model with a context that is quickly full."""
    return ServedModel(
        names=("tiny", "org/tiny-alias"),
        tokenizer=tokenizer,
        max_context_tokens=256,
        max_request_tokens=1000,
        vocab_size=400,
        eos_token_ids=tuple(tokenizer.encode(text)[0] for text in (TURN_END, END)),
        created=1_700_000_000,
        defaults=GenerationDefaults(temperature=0.6, top_p=0.95),
        max_choices=8,
        max_answers=8,
        draw_seed=lambda: 12345,
    )


class Workers:
    """Drains as the gateway does, with a board of its own."""

    def __init__(self) -> None:
        self.board = WorkerBoard({Address(part.name): part.role for part in TOPOLOGY.slices})
        for status in self.board.statuses():
            self.board.up(status.name, 1)

    def statuses(self) -> tuple[WorkerStatus, ...]:
        return self.board.statuses()

    async def drain_worker(self, worker: Address, timeout_s: float) -> DrainAnswer | None:
        error = self.board.drain(worker, timeout_s)
        return DrainAnswer(worker=self.board.status(worker), error=error)

    async def resume_worker(self, worker: Address) -> DrainAnswer | None:
        error = self.board.resume(worker)
        return DrainAnswer(worker=self.board.status(worker), error=error)


def whole_app() -> Starlette:
    """With keys for clients and for the operator."""
    tokenizer, workers = shared_tokenizer(), Workers()
    admin = Admin(key=ADMIN_KEY, client=workers, workers=workers.statuses, chaos=Chaos(TOPOLOGY, seed=1))
    settings = ApiSettings(api_keys=(API_KEY,), ping_interval_s=3600)
    client = FakeClient(tokenizer, TEXTS)
    return create_app(tiny_model(tokenizer), client, lambda: Readiness(state="ready"), settings, admin)
