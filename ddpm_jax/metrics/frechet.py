"""Fréchet distance of two feature sets (FID, sFID), in float64 on the host.

Two Gaussians N(m_1, C_1), N(m_2, C_2) have the squared 2-Wasserstein distance (Fréchet 1957, Heusel 2017)

    d^2 = |m_1 - m_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1 C_2)^{1/2}.                                       (1)

The published codes compute the last trace with scipy's `sqrtm(C_1 @ C_2)`, the root of a nonsymmetric matrix. With
fewer images than features the product is singular: sqrtm then warns and returns complex numbers or NaN, unless 1e-6
is added to the diagonals. The trace does not need this root. Let C_i = A_i A_i^T, with
A_i = eigenvectors times roots of eigenvalues. The product C_1 C_2 = A_1 (A_1^T A_2 A_2^T) has the nonzero
eigenvalues of (A_1^T A_2 A_2^T) A_1 = (A_1^T A_2)(A_1^T A_2)^T, the squared singular values of A_1^T A_2. Hence

    tr (C_1 C_2)^{1/2} = sum of the singular values of A_1^T A_2,                                       (2)

the number that sqrtm approximates. Each singular value is accurate to rounding of the largest one, even for singular
covariances. Roots of eigenvalues near zero would lose half of the digits.
"""

import dataclasses

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.metrics import parallel

CHUNK = 4096  # rows turned to float64 at a time: 64 MB at 2,048 features


@dataclasses.dataclass(frozen=True)
class Moments:
  """Mean and covariance of `count` feature vectors. The sum of two Moments is that of the union.

  Attributes:
    count: number of vectors, or None if a reference file does not state it (such moments cannot be added).
    mean: [d] float64.
    covariance: [d, d] float64, unbiased (divided by count - 1); zero for fewer than two vectors.
  """

  count: int | None
  mean: np.ndarray
  covariance: np.ndarray

  @classmethod
  def of(cls, features: np.ndarray) -> "Moments":
    """Moments of `features` [N, d], which are read in slices and may be a memory map.

    Raises:
      UserError: if the array is not [N, d] or holds a number that is not finite.
    """
    if np.ndim(features) != 2:
      raise UserError(f"Features have shape {np.shape(features)}; their moments need [N, d].")

    count, dims = features.shape
    starts = range(0, count, CHUNK)

    def rows(start: int) -> np.ndarray:
      return np.array(features[start : start + CHUNK], np.float64)

    def total(start: int) -> np.ndarray:
      chunk = rows(start)
      if not (finite := np.isfinite(chunk).all(axis=1)).all():
        raise UserError(
          f"The features of image {start + int(np.argmin(finite))} are not finite: check that image, or the network."
        )
      return chunk.sum(axis=0)

    mean = sum(parallel.each(total, starts), np.zeros(dims)) / max(count, 1)

    def scatter(start: int) -> np.ndarray:
      centred = rows(start)
      centred -= mean  # in place: new memory would cost as much time as the arithmetic
      return centred.T @ centred

    covariance = np.zeros((dims, dims))
    for piece in parallel.each(scatter, starts):
      covariance += piece
    covariance /= max(count - 1, 1)
    return cls(count, mean, covariance)

  def __add__(self, other: "Moments") -> "Moments":
    """Moments of the union (Chan, Golub & LeVeque 1979): no sum of squares, hence no cancellation."""
    if self.count is None or other.count is None:
      raise UserError("Moments of an unknown number of images cannot be added: compute them from the images.")
    count = self.count + other.count
    delta = other.mean - self.mean
    between = self.count * other.count / max(count, 1)
    scatter = max(self.count - 1, 0) * self.covariance + max(other.count - 1, 0) * other.covariance
    scatter += between * np.outer(delta, delta)
    return Moments(count, self.mean + delta * (other.count / max(count, 1)), scatter / max(count - 1, 1))


def frechet_distance(a: Moments, b: Moments) -> float:
  """Squared Fréchet distance (1) of the Gaussians with these moments: FID for Inception's features.

  It is never below zero by more than rounding (about 1e-14 of the traces), and is not clipped.

  Raises:
    UserError: if the features differ in number, or a side has fewer than two vectors.
  """
  if a.mean.shape != b.mean.shape:
    raise UserError(
      f"One side has {a.mean.size} features and the other {b.mean.size}; both need the same feature extractor."
    )
  for side in (a, b):
    if side.count is not None and side.count < 2:
      raise UserError(f"A covariance needs at least 2 images and got {side.count}.")
  factor_a, factor_b = parallel.each(_factor, (a.covariance, b.covariance))
  (overlap,) = parallel.each(lambda product: np.linalg.svdvals(product).sum(), [factor_a.T @ factor_b])  # (2)
  shift = a.mean - b.mean
  return float(shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap)


def fid(features_a: np.ndarray, features_b: np.ndarray) -> float:
  """Fréchet distance of two feature sets [N, d] and [M, d]."""
  return frechet_distance(Moments.of(features_a), Moments.of(features_b))


def _factor(covariance: np.ndarray) -> np.ndarray:
  """A [d, rank] with A A^T = covariance [d, d], which is positive semi-definite.

  Eigenvalues below d * rounding * largest (NumPy's rule for the rank) are treated as zero. The root of a rounding
  error of 1e-16 is 1e-8, and d of these would be visible in (2).
  """
  values, vectors = np.linalg.eigh(covariance)  # SciPy's holds the lock, so the other side would wait
  kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
  return vectors[:, kept] * np.sqrt(values[kept])
