"""A fingerprint of an array's bits that does not depend on where the array lives.

    digest_k(x) = sum over elements i of  h(bits(x_i) xor h(c i + seed_k))   mod 2^32,   k = 1, 2

h is a bijection of 32-bit words (MurmurHash3's finalizer), so one wrong element always changes the digest, and any
other damage does but once in 2^64. Sums of integers do not depend on their order: the digest is computed on the
devices, each on its shard, and is the same on every mesh. Small arrays are fetched: they have many shapes, and to trace,
compile and load a program for each would take longer than all the arithmetic.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SEEDS = (0x243F6A88, 0x85A308D3)  # the fraction of pi
_STRIDE = 0x9E3779B1  # odd, hence i -> c i is a bijection too


# Arrays at a time. XLA's CPU backend queues 32 programs per device. In several processes of several devices each, the
# thread that waits there with one more is the one that another device needs for its part of a sum: all wait forever.
_AT_ONCE = 16

_SMALL = 2**17  # elements; a millisecond or two of the host


def digests(tree: Any) -> Any:
  """The same tree with a string of 16 hexadecimal digits for each array; waits for the arrays."""
  words = _reduced(tree, _digest, _digest_here)
  return jax.tree.map(lambda pair: "".join(f"{word:08x}" for word in pair), words)


def finite(tree: Any) -> Any:
  """The same tree with, for each array, whether all its elements are finite; waits for the arrays."""
  return jax.tree.map(bool, _reduced(tree, _finite, lambda x: np.isfinite(x).all()))


def _reduced(tree: Any, on_device: Callable[[Any], Any], on_host: Callable[[np.ndarray], Any]) -> Any:
  """The same tree with the result of one of the two functions for each array."""
  arrays, structure = jax.tree.flatten(tree)
  found: list[np.ndarray] = []
  for first in range(0, len(arrays), _AT_ONCE):
    some = arrays[first : first + _AT_ONCE]
    found += jax.device_get([x if _is_small(x) else on_device(x) for x in some])
  found = [on_host(each) if _is_small(x) else each for x, each in zip(arrays, found, strict=True)]
  return jax.tree.unflatten(structure, found)


def _is_small(x: jax.Array) -> bool:
  return x.size <= _SMALL and (isinstance(x, np.ndarray) or x.is_fully_addressable or x.is_fully_replicated)


@jax.jit
def _digest(x: jax.Array) -> jax.Array:
  x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
  width = min(x.dtype.itemsize, 4)  # a 64-bit element becomes two words
  bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * width}")).astype(jnp.uint32)
  index = jnp.zeros(bits.shape, jnp.uint32)
  for axis, size in enumerate(bits.shape):
    index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
  return jnp.stack(_sums(bits, index))


@jax.jit
def _finite(x: jax.Array) -> jax.Array:
  return jnp.isfinite(x).all()


def _digest_here(x: np.ndarray) -> np.ndarray:
  x = np.ascontiguousarray(x).reshape(-1)
  bits = x.view(f"<u{min(x.dtype.itemsize, 4)}").astype(np.uint32)
  return np.stack(_sums(bits, np.arange(bits.size, dtype=np.uint32)))


def _sums(bits: Any, index: Any) -> list[Any]:
  index = index * np.uint32(_STRIDE)
  return [_mix(bits ^ _mix(index + np.uint32(seed))).sum(dtype=np.uint32) for seed in _SEEDS]


def _mix(h: Any) -> Any:
  h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
  return h ^ (h >> 16)
