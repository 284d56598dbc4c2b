"""Restoring Gaussian images, whose posterior given a measurement is a formula; and the measures of quality."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import grid, jacobian, noise, restoring, schedule, steps
from ddpm_jax.diffusion.mixture import joint_mixture
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.errors import UserError
from ddpm_jax.metrics.restoration import psnr, ssim

CHAIN = schedule.linear(1000)
SHAPE = (4, 4, 1)
FACTOR = np.random.default_rng(0).normal(size=(16, 16)) * np.linspace(0.05, 0.3, 16)
COV = FACTOR @ FACTOR.T + 0.02 * np.eye(16)
MEAN = np.full(16, 0.2)
DATA = jacobian.JacobianOperator(joint_mixture([1.0], MEAN[None], COV[None]), np.zeros(1001, np.float32))
NOISE = 0.1


def cumulative(x):
  """An operator that is none of the built-in ones."""
  return jnp.cumsum(x, axis=1)[:, ::2]


OPERATORS = {
  "mask": restoring.Mask(np.float32(np.arange(16).reshape(1, *SHAPE) % 3 > 0)),
  "blur": restoring.blur(4, 4, 0.8),
  "downsample": restoring.downsample(4, 4, 2),
  "a function": restoring.Function(cumulative),
}
UNIT = np.eye(16, dtype=np.float32).reshape(16, *SHAPE)


def matrix(operator):
  """[measurements,16]."""
  return np.asarray(operator(UNIT), float).reshape(16, -1).T


def posterior(operator, y, x_t=None, level=None):
  """Mean and covariance of x_0 given y and, if there is one, x_t, in float64."""
  A = matrix(operator)
  precision = np.linalg.inv(COV) + A.T @ A / NOISE**2
  shift = np.linalg.inv(COV) @ MEAN + A.T @ y / NOISE**2
  if x_t is not None:
    alpha = float(level.alpha)
    sigma = float(level.sigma)
    precision += (alpha / sigma) ** 2 * np.eye(16)
    shift += alpha / sigma**2 * x_t
  return np.linalg.solve(precision, shift), np.linalg.inv(precision)


@jax.jit
def beliefs(denoiser, x_t, level):
  return denoiser(x_t, level)


def measured(operator, count=1):
  x_0 = DATA.inner.sample(jax.random.key(3), (count, *SHAPE))
  clean = operator(x_0)
  return x_0, clean + NOISE * jax.random.normal(jax.random.key(4), clean.shape)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("n", [30, 1000])
def test_the_denoiser_is_that_of_the_posterior(name, n):
  """E[x_0 | x_t, y] exactly, for the covariance of the Jacobian. Conjugate gradients end after 16 steps or fewer."""
  operator = OPERATORS[name]
  x_0, y = measured(operator, 2)
  level = CHAIN.level(np.int64(n))
  x_t = level.diffuse(x_0, noise.normal(noise.image_keys(np.arange(2)), SHAPE))
  denoiser = restoring.Restore(DATA, operator, y, np.float32(NOISE), iterations=24)
  pred = beliefs(denoiser, x_t, level)
  for b in range(2):
    known, _ = posterior(operator, np.ravel(y[b]), np.ravel(x_t[b]), level)
    # float32; at n = 1000 the covariance is (sigma / alpha)^2 = 24,000 times a difference that nearly cancels
    np.testing.assert_allclose(np.ravel(pred.x0[b]), known, atol=3e-2 if n == 1000 else 2e-3)
  wide = level.alpha * pred.x0 + level.sigma * pred.eps
  np.testing.assert_allclose(wide, x_t, atol=1e-4)  # the two beliefs agree


def test_samples_follow_the_posterior():
  """The whole chain without noise is affine in x_T, so a batch of unit latents tells its mean and covariance."""
  operator = OPERATORS["downsample"]
  _, y = measured(operator)
  latents = np.concatenate([np.zeros((1, *SHAPE), np.float32), UNIT])
  denoiser = restoring.Restore(DATA, operator, jnp.broadcast_to(y, (17, *y.shape[1:])), np.float32(NOISE), iterations=8)
  sampler = GaussianSampler(steps.gaussian(CHAIN, grid.log_snr(CHAIN, 200), 0.0))
  x = np.asarray(sample(noise.image_keys(np.arange(17)), denoiser, sampler, latents)[0], float).reshape(17, 16)
  mean, cov = posterior(operator, np.ravel(y))
  gain = (x[1:] - x[0]).T
  # DDIM of 200 steps has an error of first order in the step
  np.testing.assert_allclose(x[0], mean, atol=0.02)
  np.testing.assert_allclose(gain @ gain.T, cov, atol=0.02)


def test_less_is_believed_of_less():
  """Coarser covariances give other denoisers; each pulls towards the measurement."""
  operator = OPERATORS["mask"]
  x_0, y = measured(operator, 4)
  level = CHAIN.level(np.int64(300))
  x_t = level.diffuse(x_0, noise.normal(noise.image_keys(np.arange(4)), SHAPE))
  plain = DATA.inner(x_t, level).x0
  off = np.mean((operator(plain) - y) ** 2)
  for covariance in (restoring.unit_gaussian, restoring.believed):
    restored = restoring.Restore(DATA.inner, operator, y, np.float32(NOISE), covariance)
    restored = beliefs(restored, x_t, level).x0
    assert np.mean((operator(restored) - y) ** 2) < off


def test_conjugate_gradients_solve_each_image():
  rng = np.random.default_rng(0)
  roots = rng.normal(size=(3, 5, 5))
  systems = np.float32(roots @ roots.swapaxes(1, 2) + np.eye(5))
  b = np.float32(rng.normal(size=(3, 5)))
  u = restoring.conjugate_gradients(lambda v: jnp.einsum("bij,bj->bi", systems, v), b, 8)
  np.testing.assert_allclose(u, np.linalg.solve(systems, b[..., None])[..., 0], rtol=1e-3, atol=1e-4)
  indefinite = restoring.conjugate_gradients(lambda v: -v, b, 8)
  np.testing.assert_array_equal(indefinite, 0 * b)


def test_grey_and_built_in_operators_are_linear():
  restoring.check_linear(restoring.Grey(), (4, 4, 3))
  for operator in OPERATORS.values():
    restoring.check_linear(operator, SHAPE)
  np.testing.assert_allclose(matrix(restoring.downsample(4, 4, 2)).sum(1), 1, rtol=1e-6)
  np.testing.assert_allclose(matrix(restoring.blur(4, 4, 1.0)).sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize(
  "act, sentence",
  [
    (lambda: restoring.check_linear(jnp.abs, SHAPE), "is not linear"),
    (lambda: restoring.check_linear(lambda x: x + 1, SHAPE), "is not linear"),
    (lambda: restoring.check_linear(lambda x: x - x.mean(0, keepdims=True), SHAPE), "mixes the images"),
    (lambda: restoring.check_linear(lambda x: x @ jnp.ones((3, 3)), SHAPE), "The operator fails on images"),
    (lambda: restoring.downsample(28, 28, 3), "cannot be reduced by the factor 3"),
  ],
)
def test_refusals(act, sentence):
  with pytest.raises(UserError, match=sentence):
    act()


def test_quality_has_known_values():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
  assert np.isinf(psnr(images, images)).all()
  np.testing.assert_allclose(ssim(images, images), 1)
  flat = np.full((1, 8, 8, 1), 100, np.uint8)
  np.testing.assert_allclose(psnr(flat, flat + 10), 20 * np.log10(25.5))
  c_1 = 2.55**2  # of constant images only the means count
  np.testing.assert_allclose(ssim(flat, flat + 20), (2 * 100 * 120 + c_1) / (100**2 + 120**2 + c_1))
  assert (ssim(images, 255 - images) < 0).all()
