"""The responses that clients may come back to: in memory, bounded by number, bytes and age.

What was not used for the longest time goes first. A response that is kept can be continued, whatever else has been
dropped: it shares the blocks of its conversation with those it continues, and a block goes with the last of them.
Running background responses are not dropped, but their number counts. Lives on the event loop; only `find_item` may be
called from elsewhere.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from api.responses.items import Item
from runtime.errors import RequestError


class StoreLimits(msgspec.Struct, frozen=True, kw_only=True):
    """At most `max_responses` of together `max_bytes`, each for `max_age_s` after its last use. 0 keeps nothing."""

    max_responses: int = 1024
    max_bytes: int = 256 * 2**20
    max_age_s: float = 86400.0


class Block(msgspec.Struct, frozen=True):
    """Items that were added to a conversation at once, as JSON. Those in `ids` can be referred to."""

    data: bytes
    ids: tuple[str, ...] = ()

    @classmethod
    def of_input(cls, items: Sequence[Item]) -> "Block":
        """The block of a client's items. Their ids may be the client's own, which another could guess."""
        return cls(msgspec.json.encode(items))

    @classmethod
    def of_output(cls, items: Sequence[Item]) -> "Block":
        """The block of an answer's items, whose ids nobody can guess."""
        return cls(msgspec.json.encode(items), tuple(item.id for item in items))

    def items(self) -> tuple[Item, ...]:
        """The items as they were."""
        return _decoder.decode(self.data)


_decoder = msgspec.json.Decoder(tuple[Item, ...])


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A response that is over. `input` is all that it was made from, `output` what came of it.

    `events` are those of a background stream, by number, each as it was sent.
    """

    id: str
    body: bytes
    status: str
    background: bool
    input: tuple[Block, ...]
    output: Block
    events: tuple[bytes, ...] = ()

    @property
    def conversation(self) -> tuple[Block, ...]:
        """What a response that continues this one begins with."""
        return (*self.input, self.output)

    @property
    def own_bytes(self) -> int:
        """Bytes that no other response shares."""
        return len(self.body) + sum(map(len, self.events))


class ResponseStore:
    """The kept responses. `now` gives seconds that never go back."""

    def __init__(self, limits: StoreLimits, now: Callable[[], float]) -> None:
        self.limits = limits
        self.size_bytes = 0
        self._now = now
        self._kept: OrderedDict[str, tuple[float, Kept]] = OrderedDict()
        self._uses: Counter[int] = Counter()
        self._by_item: dict[str, Block] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, response_id: object) -> bool:
        return response_id in self._kept

    def put(self, response: Kept) -> bool:
        """Keeps a response and drops others for it; False for one that is too large by itself."""
        assert response.id not in self._kept
        alone = response.own_bytes + sum(len(block.data) for block in response.conversation)
        if alone > self.limits.max_bytes or not self.limits.max_responses:
            return False
        self._add(response)
        self._trim()
        return True

    def get(self, param: str, response_id: str) -> Kept:
        """The response, which counts as used. Raises RequestError, a 404, for one that is not there."""
        self._drop_old()
        found = self._kept.get(response_id)
        if found is None:
            raise self.unknown(param, response_id)
        self._kept[response_id] = (self._now(), found[1])
        self._kept.move_to_end(response_id)
        return found[1]

    def find_item(self, item_id: str) -> Item | None:
        """The item of an answer in any conversation that is kept. May be called from another thread."""
        block = self._by_item.get(item_id)
        return None if block is None else next(item for item in block.items() if item.id == item_id)

    def delete(self, response_id: str) -> None:
        """Drops a response."""
        response = self._kept.pop(response_id)[1]
        self.size_bytes -= response.own_bytes
        for block in response.conversation:
            self._uses[id(block)] -= 1
            if not self._uses[id(block)]:
                del self._uses[id(block)]
                self.size_bytes -= len(block.data)
                for item_id in block.ids:
                    del self._by_item[item_id]

    def unknown(self, param: str, response_id: str) -> RequestError:
        """The refusal of an id that is not, or no longer, there."""
        limits = self.limits
        return RequestError(
            f"{param}: no response {response_id[:80]!r} is kept here: it was never stored, or deleted, or dropped"
            f" (at most {limits.max_responses} responses and {limits.max_bytes} bytes are kept, each for"
            f" {limits.max_age_s:g} seconds after its last use)",
            param=param,
            status=404,
            code="response_not_found",
        )

    def _add(self, response: Kept) -> None:
        self._kept[response.id] = (self._now(), response)
        self.size_bytes += response.own_bytes
        for block in response.conversation:
            if not self._uses[id(block)]:
                self.size_bytes += len(block.data)
                self._by_item |= dict.fromkeys(block.ids, block)
            self._uses[id(block)] += 1

    def _trim(self) -> None:
        self._drop_old()
        while self._kept and (len(self) > self.limits.max_responses or self.size_bytes > self.limits.max_bytes):
            self.delete(next(iter(self._kept)))

    def _drop_old(self) -> None:
        oldest = self._now() - self.limits.max_age_s
        while self._kept and next(iter(self._kept.values()))[0] < oldest:
            self.delete(next(iter(self._kept)))
