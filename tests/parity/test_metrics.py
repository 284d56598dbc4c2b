"""Metrics against the official evaluators' numbers (tests/golden/metrics.npz, and Ho's in ho_tf.npz)."""

import numpy as np
import pytest

from ddpm_jax.evaluation.frechet import Moments, fid, frechet_distance


@pytest.mark.parametrize("group", ["fid/a", "fid/b"])
def test_frechet_distance_equals_openai_and_pytorch_fid(golden, group):
  numbers = golden("metrics")
  first, second = numbers[f"{group}/feats_1"], numbers[f"{group}/feats_2"]
  a, b = Moments.of(first), Moments.of(second)
  # group b averages its means in float32
  np.testing.assert_allclose(a.mean, numbers[f"{group}/mu_1"], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(a.covariance, numbers[f"{group}/sigma_1"], rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(frechet_distance(a, b), numbers[f"{group}/fid"], rtol=1e-6)
  np.testing.assert_allclose(frechet_distance(a, b), numbers[f"{group}/fid_analytic_dpm"], rtol=1e-6)
  assert abs(frechet_distance(a, a)) < 1e-6


def test_frechet_distance_of_singular_covariances(golden):
  """10 and 13 vectors of 24 features; sqrtm and the generator's eigenvalue form differ by 6e-9 relative."""
  numbers = golden("metrics")
  group = "fid/rank_deficient"
  distance = fid(numbers[f"{group}/feats_1"], numbers[f"{group}/feats_2"])
  np.testing.assert_allclose(distance, numbers[f"{group}/fid"], rtol=1e-6)
  # roots of eigenvalues within 1e-16 of zero: 1e-8 each
  np.testing.assert_allclose(distance, numbers[f"{group}/fid_eigenvalue_form"], rtol=3e-8)


def test_frechet_distance_equals_ho(golden):
  numbers = golden("ho_tf")
  group = "classifier_metrics_numpy"
  distance = fid(numbers[f"{group}/real"], numbers[f"{group}/generated"])
  np.testing.assert_allclose(distance, numbers[f"{group}/frechet"], rtol=1e-10)
