"""Randomness: one key per image, so that an image does not depend on its batch, its device or its neighbours."""

import jax
from flax import struct


def image_keys(seeds: jax.Array) -> jax.Array:
  """Keys [B] from integer seeds [B]; seed 17 is the same picture everywhere."""
  return jax.vmap(jax.random.key)(seeds)


def normal(keys: jax.Array, shape: tuple[int, ...], fold: int | jax.Array = 0) -> jax.Array:
  """Standard normal float32 [B, *shape]; image b uses fold_in(keys[b], fold)."""
  return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, fold), shape))(keys)


@struct.dataclass
class PerImage:
  """Fresh noise for a row: fold_in(key of the image, row.stream).

  The stream of a step is the level t that it leaves, and 0 is x_T's, since nothing leaves level 0 downwards. Levels
  rather than step counts, so that consecutive samplers never repeat a draw, and grids of different lengths share the
  draws of the levels that they share. Only who leaves a level twice has to count (editing.py).
  """

  keys: jax.Array  # [B]

  def initial(self, shape: tuple[int, ...]) -> jax.Array:
    """x_T ~ N(0, I), [B, *shape]."""
    return normal(self.keys, shape)

  def __call__(self, row, x: jax.Array) -> jax.Array:
    return normal(self.keys, x.shape[1:], row.stream).astype(x.dtype)
