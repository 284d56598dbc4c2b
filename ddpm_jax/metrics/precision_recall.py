"""Improved precision and recall (Kynkäänniemi et al. 2019) as ADM's evaluator computes them.

The manifold of a set is a union of balls, one around each of its points, whose radius is the distance to the point's k-th
nearest neighbor in the set. Precision is the fraction of samples inside the manifold of the reference. Recall is the
fraction of the reference inside the manifold of the samples (ADM: 10,000 reference images, 50,000 samples, k = 3, pool_3).

All distances are squared, d(u, v) = max(|u|^2 - 2 u.v + |v|^2, 0), and compared with <=. They are computed in tiles of a
few rows; at 50,000 columns a tile is 100 MB.

`arithmetic`: ADM computes these distances in float16, and repeats a tile in float32 only if it overflows. Inception's
features have |u|^2 of several hundred, where float16 has steps of 0.25 to 0.5, which creates false ties. The default is
float32, which is accurate. "float16" rounds as ADM does, for comparison with its tables.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.metrics import parallel

ROWS = 512  # rows of a tile
FOLD = 64  # columns that share a minimum in the search for the nearest points

Result = TypeVar("Result")


class PrecisionRecall(NamedTuple):
  """Fractions, 0..1."""

  precision: float
  recall: float


def precision_recall(
  reference: np.ndarray, samples: np.ndarray, *, k: int = 3, arithmetic: str = "float32"
) -> PrecisionRecall:
  """Precision and recall of `samples` [M, d] against `reference` [N, d].

  Raises:
    UserError: if the sets differ in the number of features, or one is too small for k neighbors.
  """
  if reference.shape[1] != samples.shape[1]:
    raise UserError(
      f"One side has {reference.shape[1]} features and the other {samples.shape[1]}; both need the same feature extractor."
    )
  reference_radii = radii(reference, k, arithmetic=arithmetic)
  sample_radii = radii(samples, k, arithmetic=arithmetic)

  def inside(rows: slice, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(samples inside a ball of these reference images, those of the latter inside a ball of a sample)."""
    return (distances <= reference_radii[rows, None]).any(axis=0), (distances <= sample_radii).any(axis=1)

  samples_inside, reference_inside = zip(*tiles(inside, reference, samples, arithmetic), strict=True)
  return PrecisionRecall(float(np.any(samples_inside, axis=0).mean()), float(np.concatenate(reference_inside).mean()))


def radii(features: np.ndarray, k: int, *, arithmetic: str = "float32") -> np.ndarray:
  """Squared distance of each of `features` [N, d] to its k-th nearest neighbor in the set, float32 [N]."""
  if not 1 <= k < len(features):
    raise UserError(f"A set of {len(features)} images has no {k}-th nearest neighbors: use more images.")
  # the 0-th smallest is the point itself
  return np.concatenate(list(tiles(lambda _, distances: _smallest(distances, k), features, features, arithmetic)))


def tiles(work: Callable[[slice, np.ndarray], Result], u: np.ndarray, v: np.ndarray, arithmetic: str) -> Iterator[Result]:
  """work(rows, squared distances [rows, M]) of u [N, d] to all of v [M, d], for all tiles of rows, in their order."""
  if arithmetic not in ("float32", "float16"):
    raise UserError(f"Distances are computed in float32 or float16, not in {arithmetic!r}.")
  v = np.asarray(v, np.float32)
  v_norm = _norm(v)
  v_half = _rounded(v) if arithmetic == "float16" else None

  def tile_at(start: int) -> Result:
    rows = slice(start, min(start + ROWS, len(u)))
    tile = np.asarray(u[rows], np.float32)
    distances = None if v_half is None else _half_distances(_rounded(tile), v_half)
    if distances is None or not np.isfinite(distances).all():
      distances = tile @ v.T
      distances *= -2
      distances += _norm(tile)[:, None]
      distances += v_norm
      np.maximum(distances, 0, out=distances)
    return work(rows, distances)

  return parallel.each(tile_at, range(0, len(u), ROWS))


def _norm(x: np.ndarray) -> np.ndarray:
  return np.einsum("nd,nd->n", x, x)


def _rounded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(x rounded to float16 but kept as float32, squared norms in float16)."""
  with np.errstate(over="ignore"):
    x = x.astype(np.float16).astype(np.float32)
    return x, (x * x).astype(np.float16).astype(np.float32).sum(axis=1).astype(np.float16)


def _half_distances(u: tuple[np.ndarray, np.ndarray], v: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
  """Squared distances, each operation rounded to float16 but sums in float32 as in accelerators; perhaps not finite."""
  with np.errstate(over="ignore", invalid="ignore"):
    products = (u[0] @ v[0].T).astype(np.float16)
    return np.maximum(u[1][:, None] - np.float16(2) * products + v[1], np.float16(0)).astype(np.float32)


def _smallest(distances: np.ndarray, k: int) -> np.ndarray:
  """The k-th smallest (from 0) of each row [rows, columns].

  The k + 1 smallest of a row lie in the k + 1 groups of columns with the smallest minima. This takes a tenth of the
  time of partitioning all columns.
  """
  rows, columns = distances.shape
  groups = columns // FOLD
  if groups > k + 1:
    folded = distances[:, : groups * FOLD].reshape(rows, FOLD, groups)
    nearest = np.argpartition(folded.min(axis=1), k, axis=1)[:, None, : k + 1]
    candidates = np.take_along_axis(folded, nearest, axis=2).reshape(rows, -1)
    distances = np.concatenate([candidates, distances[:, groups * FOLD :]], axis=1)
  return np.partition(distances, k, axis=1)[:, k]
