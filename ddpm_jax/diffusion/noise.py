"""Random numbers with one key per image, so that an image does not depend on its batch, device or neighbors."""

from collections.abc import Callable
from typing import Any

import jax
from flax import struct

Noise = Callable[[Any, jax.Array], jax.Array]
"""(row, x) -> standard normal noise for the step `row`, shaped as x [B,...]."""


def image_keys(seeds: jax.Array) -> jax.Array:
  """Keys [B] from integer seeds [B]. A seed gives the same image on every machine."""
  return jax.vmap(jax.random.key)(seeds)


def normal(keys: jax.Array, shape: tuple[int, ...], fold: int | jax.Array = 0) -> jax.Array:
  """Standard normal float32 [B, *shape]. Image b uses fold_in(keys[b], fold)."""
  return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, fold), shape))(keys)


def signs(keys: jax.Array, shape: tuple[int, ...], fold: int | jax.Array = 0) -> jax.Array:
  """Rademacher float32 [B, *shape], +1 or -1 with equal probability. Image b uses fold_in(keys[b], fold)."""
  return jax.vmap(lambda key: jax.random.rademacher(jax.random.fold_in(key, fold), shape, "float32"))(keys)


@struct.dataclass
class PerImage:
  """Fresh noise for a row: fold_in(key of the image, row.stream).

  The stream of a step is the level t that it leaves. Stream 0 is the noise of x_T, since no downward step leaves level 0.
  Streams are levels instead of step counts, so that consecutive samplers never repeat a draw, and grids of different lengths
  share the draws of the levels that they share. Only a sampler that leaves a level twice must count (editing.py).
  """

  keys: jax.Array  # [B]

  def initial(self, shape: tuple[int, ...]) -> jax.Array:
    """x_T ~ N(0, I), [B, *shape]."""
    return normal(self.keys, shape)

  def __call__(self, row: Any, x: jax.Array) -> jax.Array:
    return normal(self.keys, x.shape[1:], row.stream).astype(x.dtype)
