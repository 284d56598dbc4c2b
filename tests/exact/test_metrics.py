"""Metrics against answers known in closed form."""

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial

from ddpm_jax.errors import UserError
from ddpm_jax.metrics.frechet import Moments, fid, frechet_distance
from ddpm_jax.metrics.inception_score import inception_score
from ddpm_jax.metrics.mmd import kid, squared_mmd
from ddpm_jax.metrics.neighbours import nearest, nearest_pixels
from ddpm_jax.metrics.precision_recall import precision_recall, radii


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
  (m, n) = rng.standard_normal((2, 5))
  (v, w) = rng.uniform(0, 2, (2, 5))
  w[:2] = 0  # singular on one side
  rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
  a = Moments(100, rotation @ m, rotation @ np.diag(v) @ rotation.T)
  b = Moments(100, rotation @ n, rotation @ np.diag(w) @ rotation.T)
  expected = ((m - n) ** 2 + (np.sqrt(v) - np.sqrt(w)) ** 2).sum()
  np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-12)


def test_frechet_distance_equals_the_square_root_of_the_product():
  """The form of the published codes, scipy's sqrtm of C_1 C_2, where that is well conditioned."""
  rng = np.random.default_rng(2)
  c = random_covariance(rng, 12, 30)
  d = random_covariance(rng, 12, 30)
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
  x = np.array([[1.0], [2.0]])
  y = np.array([[0.0], [3.0]])
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


def test_inception_score_of_certain_and_uncertain_labels():
  """Certain, balanced labels score the number of classes; equal predictions score 1; a split of one image scores 1."""
  certain = np.eye(10).repeat(7, axis=0) * 1e4
  assert inception_score(certain, split_size=None).mean == pytest.approx(10, rel=1e-12)
  assert inception_score(np.ones((30, 10))).mean == pytest.approx(1, rel=1e-12)
  assert inception_score(certain, split_size=1).mean == pytest.approx(1, rel=1e-12)
  mean, std = inception_score(certain, split_size=35)  # halves of five classes each
  assert (mean, std) == (pytest.approx(5, rel=1e-12), pytest.approx(0, abs=1e-12))


def test_precision_and_recall_on_a_line():
  """Points 0..9 with balls of radius^2 1 (k = 1): samples at 0.5, 9.9 are inside, 11.1 and 20 are not.

  The samples' balls: 9.9 and 11.1 reach 1.2, 20 reaches 8.9 (down to 11.1), 0.5 reaches 9.4: all points but none missed.
  """
  reference = np.arange(10, dtype=np.float32)[:, None]
  samples = np.array([[0.5], [9.9], [11.1], [20.0]], np.float32)
  np.testing.assert_allclose(radii(samples, 1), np.square([9.4, 1.2, 1.2, 8.9]), rtol=1e-5)
  assert precision_recall(reference, samples, k=1) == (0.5, 1.0)
  assert precision_recall(reference, samples[1:], k=1) == (1 / 3, 0.1)  # only the point 9 is near 9.9


def test_precision_and_recall_by_brute_force():
  """Against all float64 distances at once, with more columns than a tile has rows and more than are folded."""
  rng = np.random.default_rng(6)
  a = rng.standard_normal((1500, 5)).astype(np.float32)
  b = 1.3 * rng.standard_normal((1100, 5)).astype(np.float32)
  squared = lambda u, v: scipy.spatial.distance.cdist(u.astype(np.float64), v.astype(np.float64), "sqeuclidean")
  r_a, r_b = (np.sort(squared(x, x), axis=1)[:, 3] for x in (a, b))
  np.testing.assert_allclose(radii(a, 3), r_a, rtol=1e-3, atol=1e-5)  # float32: |u|^2 - 2 u.v + |v|^2 cancels
  between = squared(a, b)
  expected = (between <= r_a[:, None]).any(0).mean(), (between <= r_b).any(1).mean()
  assert precision_recall(a, b) == expected


def test_a_set_covers_itself_and_nothing_far_away():
  x = np.random.default_rng(7).standard_normal((200, 4)).astype(np.float32)
  assert precision_recall(x, x) == (1, 1)
  assert precision_recall(x, x + 100) == (0, 0)


def test_bad_input_to_scores_is_one_sentence():
  x = np.zeros((3, 4), np.float32)
  with pytest.raises(UserError, match="3 images has no 3-th nearest"):
    precision_recall(x, x)
  with pytest.raises(UserError, match="4 features and the other 2"):
    precision_recall(x, x[:, :2])
  with pytest.raises(UserError, match="float32 or float16, not in 'half'"):
    radii(x, 1, arithmetic="half")
  with pytest.raises(UserError, match="not 0 and 5000"):
    inception_score(x[:0])


def test_nearest_neighbours_by_brute_force():
  rng = np.random.default_rng(8)
  queries = rng.standard_normal((7, 5)).astype(np.float32)
  keys = rng.standard_normal((300, 5)).astype(np.float32)
  distances = scipy.spatial.distance.cdist(queries, keys)
  np.testing.assert_array_equal(nearest(queries, keys, 4), distances.argsort(axis=1)[:, :4])
  np.testing.assert_array_equal(nearest(queries, keys[:3], 4), distances[:, :3].argsort(axis=1))  # there are no more
  images = rng.integers(0, 256, (20, 3, 3, 1), np.uint8)
  np.testing.assert_array_equal(nearest_pixels(images[5:8], images, 2)[:, 0], images[5:8])  # each is its own nearest
