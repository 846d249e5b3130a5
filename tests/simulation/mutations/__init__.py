"""Planted bugs: each takes one safeguard away from the real actors, and the simulator must notice.

A mutation patches one method. It is undone by the test's monkeypatch.
"""

from tests.simulation.mutations.delivery import DELIVERY
from tests.simulation.mutations.features import FEATURES
from tests.simulation.mutations.pages import PAGES
from tests.simulation.mutations.planted import SEEDS, Planted
from tests.simulation.mutations.recovery import RECOVERY
from tests.simulation.mutations.requests import REQUESTS
from tests.simulation.mutations.timing import TIMING

MUTATIONS: tuple[Planted, ...] = (*PAGES, *DELIVERY, *REQUESTS, *RECOVERY, *TIMING, *FEATURES)

__all__ = ["MUTATIONS", "SEEDS", "Planted"]
