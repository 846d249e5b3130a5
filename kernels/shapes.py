"""The heads of the models that kernels are tuned, compiled and reported for: what one device of a slice computes."""

from typing import NamedTuple


class Heads(NamedTuple):
    """Attention heads of one device: `num_layers` layers, N query heads, K kv heads, head dim H."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads of one kv head."""
        return self.num_heads // self.num_kv_heads

    def on_one_of(self, tp: int) -> "Heads":
        """The share of one of `tp` devices; kv heads are repeated where there are more devices than heads.

        Raises ValueError if `tp` does not divide the query heads, or neither divides the kv heads nor is a multiple.
        """
        kv = self.num_kv_heads
        if self.num_heads % tp or (kv % tp and tp % kv):
            raise ValueError(f"{self.num_heads} query heads and {kv} kv heads cannot be shared by {tp} devices")
        return self._replace(num_heads=self.num_heads // tp, num_kv_heads=max(kv // tp, 1))


MODELS = {
    "deepseek-r1-distill-qwen-1.5b": Heads(num_layers=28, num_heads=12, num_kv_heads=2, head_dim=128),
    "qwen3-8b": Heads(num_layers=36, num_heads=32, num_kv_heads=8, head_dim=128),
    "llama-3.1-8b": Heads(num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128),
    "qwen3-32b": Heads(num_layers=64, num_heads=64, num_kv_heads=8, head_dim=128),
}
