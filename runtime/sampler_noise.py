"""Counter-based Gumbel noise: what makes a sampled token depend on its request alone.

The noise of token v is a pure function of (seed, choice, output index, v): no state is carried, nothing
depends on the batch, its size, the vocabulary size, the worker or a jax flag. It is Threefry-2x32 with 20
rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), the bits being those of
`jax.random.bits` under `fold_in(fold_in(fold_in(fold_in(key(0), seed low), seed high), choice), index)`. The
rounds are written out here because XLA then fuses hash, uniform and logarithms into one loop: on a CPU half
the time of `jax.random.gumbel` (measured with 16 rows of 151,936 tokens: 5.2 against 10.9 ms).
"""

import jax
import jax.numpy as jnp

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_LARGEST_BELOW_ONE = 1.0 - 2.0**-24


def threefry(key: tuple[jax.Array, jax.Array], x0: jax.Array, x1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32-20 of the counter `(x0, x1)` under `key`; all uint32, shapes broadcast."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x0, x1 = x0 + schedule[0], x1 + schedule[1]
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = ((x1 << distance) | (x1 >> (32 - distance))) ^ x0
        x0 = x0 + schedule[(group + 1) % 3]
        x1 = x1 + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return x0, x1


def row_keys(seed: jax.Array, choice: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The key of each row's next token, two uint32[B].

    `seed` is uint32[B, 2] (low half, high half: 5 and 2^32+5 are different seeds), `choice` and `index`
    int32[B].
    """
    zeros = jnp.zeros(seed.shape[:1], jnp.uint32)
    key = (zeros, zeros)
    for word in (seed[:, 0], seed[:, 1], choice.astype(jnp.uint32), index.astype(jnp.uint32)):
        key = threefry(key, zeros, word)
    return key


def random_bits(key: tuple[jax.Array, jax.Array], vocab_size: int) -> jax.Array:
    """uint32[B, V], element v being a function of the row's key and v alone."""
    tokens = jnp.arange(vocab_size, dtype=jnp.uint32)[None, :]
    high, low = threefry((key[0][:, None], key[1][:, None]), jnp.zeros_like(tokens), tokens)
    return high ^ low


def gumbel(key: tuple[jax.Array, jax.Array], vocab_size: int) -> jax.Array:
    """Standard Gumbel noise, float32[B, V], a function of the row's key and the token alone."""
    return gumbel_of_bits(random_bits(key, vocab_size))


def gumbel_of_bits(bits: jax.Array) -> jax.Array:
    """Standard Gumbel numbers, float32, finite for every uint32.

    -log(E) with E = -log(1 - u) exponential. The large values, which decide an argmax, come from u near 0,
    where float32 resolves all 32 bits: they reach 22.9 (u built near 1 would stop at 16.6 and never choose a
    token less probable than 6e-8 of the likeliest).
    """
    uniform = bits.astype(jnp.float32) * 2.0**-32 + 2.0**-33
    return -jnp.log(-jnp.log1p(-jnp.minimum(uniform, _LARGEST_BELOW_ONE)))
