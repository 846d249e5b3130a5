"""Whatever strikes the demo model's server, none of 32 clients notices more than a pause."""

import pytest

from actors.client import GenerateRequest
from runtime.compile_cache import compilations
from runtime.demo import MODEL_DIR
from tests.chaos.harness import Answer, Server, make_requests
from tests.chaos.judge import judge
from tests.reference_model import ReferenceModel

pytestmark = pytest.mark.slow

STRIKES = {
    "a decode worker crashes": "decode.0:crash@step=12",
    "both decode workers crash": "decode.0:crash@step=10,decode.1:crash@step=16",
    "a prefill worker crashes": "prefill.1:crash@chunk=9",
    "out of memory": "decode.1:oom@step=9,prefill.0:oom@step=4",
    "a decode worker hangs and comes back": "decode.0:hang@step=8/3s",
    "a prefill worker hangs and comes back": "prefill.0:hang@chunk=6/3s",
    "chunks vanish": "transfer:drop=0.2",
    "transfers fail": "transfer:fail=0.3",
    "chunks arrive changed": "transfer:corrupt=0.3",
    "everything at once": (
        "decode.0:crash@step=14,prefill.1:crash@chunk=9,decode.1:slow=1.5,"
        "transfer:drop=0.05,transfer:fail=0.1,transfer:corrupt=0.1,transfer:delay=5ms"
    ),
}


DEATHS = {
    "the scheduler dies while it places requests": {"scheduler": 12},
    "the scheduler dies while requests run": {"scheduler": 60},
    "transfer dies": {"transfer": 9},
    "both die": {"scheduler": 40, "transfer": 20},
}
"""With which message whose first life ends."""


@pytest.fixture(scope="module")
def server() -> Server:
    return Server()


@pytest.fixture(scope="module")
def requests(server: Server) -> list[GenerateRequest]:
    return make_requests(server.tokenizer, seed=0)


@pytest.fixture(scope="module")
def undisturbed(server: Server, requests: list[GenerateRequest]) -> dict[str, Answer]:
    answers, _ = server.run(requests, None, seed=0)
    assert sum(len(stream.tokens) for answer in answers.values() for stream in answer.streams) > 800
    assert {stream.finish for answer in answers.values() for stream in answer.streams} == {"stop", "length"}
    return answers


@pytest.fixture(scope="module")
def reference() -> ReferenceModel:
    return ReferenceModel(MODEL_DIR)


@pytest.mark.parametrize("spec", STRIKES.values(), ids=STRIKES.keys())
def test_no_client_notices(
    server: Server,
    requests: list[GenerateRequest],
    undisturbed: dict[str, Answer],
    reference: ReferenceModel,
    spec: str,
) -> None:
    before = compilations.count
    answers, campaign = server.run(requests, spec, seed=1)
    assert campaign is not None
    assert all(campaign.hits().values()), f"not everything struck: {campaign.hits()}"
    assert len(judge(reference, requests, undisturbed, answers)) <= 2
    assert compilations.count == before


@pytest.mark.parametrize("deaths", DEATHS.values(), ids=DEATHS.keys())
def test_no_client_notices_the_death_of_an_actor_without_a_slice(
    server: Server,
    requests: list[GenerateRequest],
    undisturbed: dict[str, Answer],
    reference: ReferenceModel,
    deaths: dict[str, int],
) -> None:
    """They come back with nothing, and learn what there is from the workers."""
    before = compilations.count
    answers, _ = server.run(requests, None, seed=1, deaths=deaths)
    assert len(judge(reference, requests, undisturbed, answers)) <= 2
    assert compilations.count == before
