"""The real images nearest to generated ones, to check whether a network has memorized its data (DDPM, appendix)."""

import numpy as np

from ddpm_jax.metrics.precision_recall import tiles


def nearest(queries: np.ndarray, keys: np.ndarray, k: int) -> np.ndarray:
  """Indices [Q, k] of the `keys` [N, d] nearest to each of `queries` [Q, d], nearest first; all if N < k."""
  k = min(k, len(keys))

  def first(_: slice, distances: np.ndarray) -> np.ndarray:
    some = np.argpartition(distances, k - 1, axis=1)[:, :k]
    order = np.take_along_axis(distances, some, axis=1).argsort(axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)

  return np.concatenate(list(tiles(first, queries, keys, "float32")))


def nearest_pixels(samples: np.ndarray, real: np.ndarray, k: int) -> np.ndarray:
  """The `k` images of `real` [N, H, W, C] nearest to each of `samples` [Q, H, W, C] in pixel space: [Q, k, H, W, C]."""
  flat = lambda images: images.reshape(len(images), -1).astype(np.float32) / 255
  return real[nearest(flat(samples), flat(real), k)]
