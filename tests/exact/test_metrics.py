"""Metrics against answers known in closed form."""

import numpy as np
import pytest
import scipy.linalg

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.frechet import Moments, fid, frechet_distance
from ddpm_jax.evaluation.mmd import kid, squared_mmd


def random_covariance(rng, dims, rank):
  factor = rng.standard_normal((dims, rank))
  return factor @ factor.T / rank


def test_moments_of_slices_add_up_to_the_moments_of_the_whole():
  features = np.random.default_rng(0).standard_normal((101, 7)) * 3 + 1000  # sums of squares lose 6 digits
  whole = Moments.of(features)
  parts = sum((Moments.of(part) for part in np.split(features, [1, 30, 31, 90])), Moments.of(features[:0]))
  assert parts.count == whole.count == 101
  np.testing.assert_allclose(parts.mean, features.mean(axis=0), rtol=1e-14)
  np.testing.assert_allclose(parts.covariance, np.cov(features, rowvar=False), rtol=1e-10, atol=1e-12)


def test_frechet_distance_of_commuting_gaussians():
  """For diagonal covariances (1) is sum (m - n)^2 + (sqrt(v) - sqrt(w))^2."""
  rng = np.random.default_rng(1)
  (m, n), (v, w) = rng.standard_normal((2, 5)), rng.uniform(0, 2, (2, 5))
  w[:2] = 0  # singular on one side
  rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
  a = Moments(100, rotation @ m, rotation @ np.diag(v) @ rotation.T)
  b = Moments(100, rotation @ n, rotation @ np.diag(w) @ rotation.T)
  expected = ((m - n) ** 2 + (np.sqrt(v) - np.sqrt(w)) ** 2).sum()
  np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-12)


def test_frechet_distance_equals_the_square_root_of_the_product():
  """The form of the published codes, scipy's sqrtm of C_1 C_2, where that is well conditioned."""
  rng = np.random.default_rng(2)
  c, d = random_covariance(rng, 12, 30), random_covariance(rng, 12, 30)
  expected = np.trace(c) + np.trace(d) - 2 * np.trace(scipy.linalg.sqrtm(c @ d)).real
  distance = frechet_distance(Moments(9, np.zeros(12), c), Moments(9, np.zeros(12), d))
  np.testing.assert_allclose(distance, expected, rtol=1e-12)


def test_frechet_distance_of_rank_one_gaussians():
  """C = u u^T, D = w w^T: the trace of the root is |u.w|; 63 of 64 eigenvalues are zero."""
  u, w = np.random.default_rng(3).standard_normal((2, 64))
  zero = np.zeros(64)
  distance = frechet_distance(Moments(2, zero, np.outer(u, u)), Moments(2, zero, np.outer(w, w)))
  np.testing.assert_allclose(distance, u @ u + w @ w - 2 * abs(u @ w), rtol=1e-12)


@pytest.mark.parametrize("count", [20, 500])  # fewer and more vectors than the 200 features
def test_distance_of_a_set_to_itself_is_zero(count):
  features = np.random.default_rng(4).standard_normal((count, 200)) * np.geomspace(1e-3, 10, 200)
  assert abs(fid(features, features)) < 1e-6


def test_squared_mmd_by_hand():
  """k(x, y) = (x y + 1)^3: k(1, 2) = 27, k(0, 3) = 1; crosswise k(., 0) = 1, k(1, 3) = 64, k(2, 3) = 343."""
  x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
  assert squared_mmd(x, y) == pytest.approx(27 + 1 - 2 * (1 + 1 + 64 + 343) / 4)


def test_kid_is_unbiased_and_deterministic():
  """Equal distributions give zero within 4 standard errors of 50 disjoint pairs; a seed gives one number."""
  rng = np.random.default_rng(5)
  values = [squared_mmd(*rng.standard_normal((2, 40, 8))) for _ in range(50)]
  assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(50)
  a, b = rng.standard_normal((2, 300, 8))
  assert kid(a, b, subsets=5, size=100) == kid(a, b, subsets=5, size=100)
  assert kid(a, b + 1, subsets=5, size=100).mean > 10 * abs(kid(a, b, subsets=5, size=100).mean)


def test_bad_features_are_refused_in_one_sentence():
  good = np.zeros((10, 4))
  bad = good.copy()
  bad[7, 2] = np.nan
  with pytest.raises(UserError, match="image 7 are not finite"):
    Moments.of(bad)
  with pytest.raises(UserError, match=r"shape \(10,\)"):
    Moments.of(good[:, 0])
  with pytest.raises(UserError, match="4 features and the other 3"):
    fid(good, good[:, :3])
  with pytest.raises(UserError, match="at least 2 images and got 1"):
    fid(good, good[:1])
  with pytest.raises(UserError, match="at least 2 images on each side"):
    kid(good, good[:1])
  with pytest.raises(UserError, match="cannot be added"):
    Moments.of(good) + Moments(None, np.zeros(4), np.eye(4))
