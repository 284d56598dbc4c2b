"""Metrics against the official evaluators' numbers (tests/golden/metrics.npz, and Ho's in ho_tf.npz)."""

import numpy as np
import pytest

from ddpm_jax.metrics.frechet import Moments, fid, frechet_distance
from ddpm_jax.metrics.inception_score import inception_score
from ddpm_jax.metrics.precision_recall import precision_recall, radii


@pytest.mark.parametrize("group", ["fid/a", "fid/b"])
def test_frechet_distance_equals_openai_and_pytorch_fid(golden, group):
  numbers = golden("metrics")
  first = numbers[f"{group}/feats_1"]
  second = numbers[f"{group}/feats_2"]
  a = Moments.of(first)
  b = Moments.of(second)
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


@pytest.mark.parametrize("split_size", [5000, 1000, 300, 100])
def test_inception_score_equals_openai(golden, split_size):
  numbers = golden("metrics")
  score = inception_score(np.log(numbers["inception_score/preds"]), split_size)
  # the reference works in float32 on probabilities that sum to 1 within 1e-7
  np.testing.assert_allclose(score.mean, numbers[f"inception_score/is_split{split_size}"], rtol=1e-6)


def test_inception_score_equals_ho(golden):
  numbers = golden("ho_tf")
  score = inception_score(numbers["classifier_metrics_numpy/logits"], split_size=None)
  np.testing.assert_allclose(score.mean, numbers["classifier_metrics_numpy/classifier_score"], rtol=1e-10)


@pytest.mark.parametrize("arithmetic", ["float32", "float16"])
@pytest.mark.parametrize("group", ["fp16_path", "fp32_path", "batched", "k_1_3_5"])
def test_precision_and_recall_equal_adm(golden, group, arithmetic):
  numbers = golden("metrics")
  group = f"precision_recall/{group}"
  reference = numbers[f"{group}/feats_1"]
  samples = numbers[f"{group}/feats_2"]
  for column, k in enumerate(golden("metrics").args(group)["k"]):
    found = precision_recall(reference, samples, k=k, arithmetic=arithmetic)
    assert found == (numbers[f"{group}/precision"][column], numbers[f"{group}/recall"][column])
    if arithmetic == "float32":
      np.testing.assert_allclose(radii(reference, k), numbers[f"{group}/radii_1_f64"][:, column], rtol=1e-6)


def test_half_precision_radii_are_those_of_adm_to_the_bit(golden):
  """The one group that TensorFlow computed in float16 in one piece; batches of 16 differ in float16's last place."""
  numbers = golden("metrics")
  group = "precision_recall/fp16_path"
  for side in (1, 2):
    found = radii(numbers[f"{group}/feats_{side}"], 3, arithmetic="float16")
    np.testing.assert_array_equal(found, numbers[f"{group}/radii_{side}_tf"][:, 0])
