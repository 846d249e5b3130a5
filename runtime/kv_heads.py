"""How a model's kv heads lie on the devices of one slice. Pure, no jax.

Device d of TP holds the kv heads that its query heads attend with. With TP up to K those are K/TP consecutive heads;
beyond K every head is held by TP/K consecutive devices, and the slice's pool has TP heads, one per device.
"""

import msgspec


class KvHeads(msgspec.Struct, frozen=True):
    """`num_heads` kv heads (K) on `tp` devices. Raises ValueError where neither divides the other."""

    num_heads: int
    tp: int

    def __post_init__(self) -> None:
        if self.num_heads % self.tp and self.tp % self.num_heads:
            raise ValueError(f"{self.num_heads} kv heads and TP {self.tp}: one must divide the other")

    @property
    def local(self) -> int:
        """Heads that one device holds."""
        return max(self.num_heads // self.tp, 1)

    @property
    def replicas(self) -> int:
        """Devices that hold the same head."""
        return max(self.tp // self.num_heads, 1)

    @property
    def pool_heads(self) -> int:
        """Heads of the slice's pool, replicas counted."""
        return self.local * self.tp

    def first_on(self, device: int) -> int:
        """The first of the model's heads that `device` (0..tp-1) holds."""
        return device * self.local // self.replicas
