"""KID: the unbiased squared maximum mean discrepancy of two feature sets, cubic kernel (Bińkowski 2018)."""

from typing import NamedTuple

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.metrics import parallel


class Kid(NamedTuple):
  """Mean and standard deviation over the subsets. It is zero on average for equal distributions."""

  mean: float
  std: float


def kid(features_a: np.ndarray, features_b: np.ndarray, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> Kid:
  """KID of features [N, d] and [M, d]: `squared_mmd` averaged over random subsets (paper: 100 of 1,000).

  Sets smaller than `size` are used whole. Subsets are drawn without replacement by a generator with `seed`.

  Raises:
    UserError: if a set has fewer than two vectors or the sets differ in the number of features.
  """
  if features_a.shape[1] != features_b.shape[1]:
    raise UserError(
      f"One side has {features_a.shape[1]} features and the other {features_b.shape[1]}; "
      "both need the same feature extractor."
    )
  size = min(size, len(features_a), len(features_b))
  if size < 2:
    raise UserError(f"KID needs at least 2 images on each side and got {len(features_a)} and {len(features_b)}.")
  rng = np.random.default_rng(seed)

  pairs = [[rng.choice(len(side), size, replace=False) for side in (features_a, features_b)] for _ in range(subsets)]

  def value(pair: list[np.ndarray]) -> float:
    return squared_mmd(features_a[pair[0]].astype(np.float64), features_b[pair[1]].astype(np.float64))

  values = list(parallel.each(value, pairs))
  return Kid(float(np.mean(values)), float(np.std(values)))


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
  """Unbiased E k(x, x') + E k(y, y') - 2 E k(x, y), k(x, y) = (x.y / d + 1)^3; x [n, d], y [m, d]."""

  def kernel(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    base = u @ v.T / u.shape[1] + 1
    return base * base * base  # ** 3 takes 30 times as long

  def mean_of_pairs(u: np.ndarray) -> float:
    gram = kernel(u, u)
    return (gram.sum() - np.trace(gram)) / (len(u) * (len(u) - 1))

  return float(mean_of_pairs(x) + mean_of_pairs(y) - 2 * kernel(x, y).mean())
