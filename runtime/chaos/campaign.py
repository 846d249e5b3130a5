"""The chaos of one process: which strikes are in force, what they have hit, and the counts that decide.

Engines and mover ask from threads of their own, the HTTP edge begins and ends campaigns on the event loop. Whatever is
asked without a campaign costs one attribute.
"""

import logging
import threading
from collections import Counter
from random import Random

from runtime.chaos.spec import TRANSFER, SpecError, Strike, check_targets, parse_chaos
from runtime.topology import Topology

logger = logging.getLogger(__name__)

UNNOTICED = "without --verify-kv nobody notices corrupt chunks: answers will be wrong"


class Campaign:
    """Strikes in force from their ordering until `over` is set. Thread safe."""

    def __init__(self, spec: str, strikes: tuple[Strike, ...], seed: str, warning: str | None) -> None:
        self.spec = spec
        self.warning = warning
        self.over = threading.Event()
        self.transfer = tuple(strike for strike in strikes if strike.target == TRANSFER)
        self._strikes = strikes
        self._random = Random(seed)
        self._lock = threading.Lock()
        self._done: Counter[tuple[str, str]] = Counter()
        self._hits: Counter[str] = Counter({strike.text: 0 for strike in strikes})

    def slowness(self, worker: str) -> Strike | None:
        """What slows the worker's steps, if anything does."""
        return next((strike for strike in self._strikes if strike.target == worker and strike.kind == "slow"), None)

    def due(self, worker: str, num_chunks: int) -> list[Strike]:
        """Counts one more step of the worker with so many prompt chunks; returns what strikes in it."""
        with self._lock:
            due = list[Strike]()
            for unit, more in (("step", 1), ("chunk", num_chunks)):
                before = self._done[worker, unit]
                self._done[worker, unit] = before + more
                due += [
                    strike
                    for strike in self._strikes
                    if strike.target == worker and strike.unit == unit and before < strike.count <= before + more
                ]
        for strike in due:
            self.hit(strike)
        return due

    def drawn(self, strike: Strike) -> bool:
        """Whether this chunk is among the strike's share; counted and logged if so."""
        with self._lock:
            drawn = self._random.random() < strike.share
        if drawn:
            self.hit(strike)
        return drawn

    def draw_below(self, limit: int) -> int:
        """A drawn number, for strikes that need one."""
        with self._lock:
            return self._random.randrange(limit)

    def hit(self, strike: Strike) -> None:
        """The strike happens now. What goes on and on (slow steps, delayed moves) is logged when it begins."""
        with self._lock:
            self._hits[strike.text] += 1
            first = self._hits[strike.text] == 1
        if first or strike.kind not in ("slow", "delay"):
            logger.warning("chaos strikes: %s", strike.text)

    def hits(self) -> dict[str, int]:
        """How often each part of the spec has struck."""
        with self._lock:
            return dict(self._hits)


class Chaos:
    """Where engines, mover and the HTTP edge find the campaign. There is at most one; None means peace."""

    def __init__(self, topology: Topology, seed: int | None, *, verifies_kv: bool = False, has_kv: bool = True) -> None:
        """`verifies_kv` tells that what is corrupted will be noticed, `has_kv` that there is something to corrupt."""
        self._verifies_kv = verifies_kv
        self._has_kv = has_kv
        self._topology = topology
        self._seed = seed
        self._begun = 0
        self.campaign: Campaign | None = None

    def check(self, spec: str) -> tuple[Strike, ...]:
        """What the spec orders of this topology. Raises SpecError."""
        strikes = parse_chaos(spec)
        check_targets(strikes, self._topology)
        corrupting = [strike for strike in strikes if strike.kind == "corrupt"]
        if corrupting and not self._has_kv:
            raise SpecError(
                f"{corrupting[0].text!r}: emulated slices hold no KV; allowed: drop=P, fail=P or delay=50ms"
            )
        return strikes

    def begin(self, spec: str) -> Campaign:
        """Ends the campaign that there is and begins another. Raises SpecError, and then nothing changes."""
        strikes = self.check(spec)
        self.end()
        self._begun += 1
        seed = Random().getrandbits(64) if self._seed is None else self._seed
        corrupts = any(strike.kind == "corrupt" for strike in strikes)
        warning = UNNOTICED if corrupts and not self._verifies_kv else None
        self.campaign = Campaign(spec, strikes, f"chaos {seed} {self._begun}", warning)
        logger.warning("CHAOS IS ON: %s%s", spec, f" ({warning})" if warning else "")
        return self.campaign

    def end(self) -> None:
        """Peace: hangs end, and nothing strikes any more."""
        if self.campaign is not None:
            campaign, self.campaign = self.campaign, None
            campaign.over.set()
            logger.warning("chaos is over: %s", campaign.hits())
