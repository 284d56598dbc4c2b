"""A fingerprint of an array's bits that does not depend on where the array lives.

    digest_k(x) = sum over elements i of  h(bits(x_i) xor h(c i + seed_k))   mod 2^32,   k = 1, 2

h is a bijection of 32-bit words (MurmurHash3's finalizer), so one wrong element always changes the digest, and any
other damage does but once in 2^64. Sums of integers do not depend on their order: the digest is computed on the
devices, each on its shard, and is the same on every mesh.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SEEDS = (0x243F6A88, 0x85A308D3)  # the fraction of pi
_STRIDE = 0x9E3779B1  # odd, hence i -> c i is a bijection too


# Arrays at a time. XLA's CPU backend queues 32 programs per device. In several processes of several devices each, the
# thread that waits there with one more is the one that another device needs for its part of a sum: all wait for ever.
_AT_ONCE = 16


def digests(tree: Any) -> Any:
  """The same tree with a string of 16 hexadecimal digits for each array; waits for the arrays."""
  arrays, structure = jax.tree.flatten(tree)
  words: list[np.ndarray] = []
  for first in range(0, len(arrays), _AT_ONCE):
    words += jax.device_get([_digest(x) for x in arrays[first : first + _AT_ONCE]])
  return jax.tree.unflatten(structure, ["".join(f"{word:08x}" for word in pair) for pair in words])


@jax.jit
def _digest(x: jax.Array) -> jax.Array:
  x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
  width = min(x.dtype.itemsize, 4)  # a 64-bit element becomes two words
  bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * width}")).astype(jnp.uint32)
  index = jnp.zeros(bits.shape, jnp.uint32)
  for axis, size in enumerate(bits.shape):
    index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
  index = index * np.uint32(_STRIDE)
  return jnp.stack([jnp.sum(_mix(bits ^ _mix(index + np.uint32(seed))), dtype=jnp.uint32) for seed in _SEEDS])


def _mix(h: jax.Array) -> jax.Array:
  h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
  return h ^ (h >> 16)
