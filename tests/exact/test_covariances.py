"""Every estimate of a covariance on mixtures of Gaussians, where Cov[x_0 | x_t] is a formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import jacobian, lanczos, losses, moments, noise, schedule, steps
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.mixture import Mixture, joint_mixture
from ddpm_jax.diffusion.prediction import Eps, Network
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.diffusion.second_heads import TwoHeads
from ddpm_jax.errors import UserError

CHAIN = schedule.linear(100)
SHAPE = (2, 3, 1)  # of an image


def two_components():
  """Two Gaussians over images of six pixels, with correlated pixels of unequal variance."""
  rng = np.random.default_rng(0)
  factor = rng.normal(size=(2, 6, 6)) * np.linspace(0.1, 0.4, 6)[:, None]
  return joint_mixture([0.4, 0.6], 0.5 * rng.normal(size=(2, 6)), factor @ factor.swapaxes(1, 2) + 0.01 * np.eye(6))


DATA = two_components()


def at(n, count=5):
  """x_t [count,2,3,1] at level n."""
  level = CHAIN.level(np.int64(n))
  x_0 = DATA.sample(jax.random.key(1), (count, *SHAPE))
  return level.diffuse(x_0, noise.normal(noise.image_keys(np.arange(count)), SHAPE)), level


def test_a_joint_mixture_of_independent_pixels_is_a_mixture():
  single = Mixture(np.ones(1, np.float32), np.float32([0.3]), np.float32([0.2]))
  joint = joint_mixture([1.0], np.full((1, 6), 0.3), 0.2 * np.eye(6)[None])
  x_t, level = at(40)
  for ours, known in zip(jax.tree.leaves(joint(x_t, level)), jax.tree.leaves(single(x_t, level)), strict=True):
    np.testing.assert_allclose(ours, known, rtol=1e-5, atol=1e-6)  # float32


@pytest.mark.parametrize("n", [5, 40, 100])
def test_the_exact_diagonal_of_the_jacobian_is_the_variance(n):
  """Tweedie's identity of second order. The tolerance is float32 through 1 - sigma J, where the two nearly cancel."""
  x_t, level = at(n)
  found = jacobian.JacobianDiagonal(DATA, np.zeros(101, np.float32), probes=0)(x_t, level)
  known = DATA(x_t, level)
  np.testing.assert_allclose(found.eps_var, known.eps_var, rtol=1e-4, atol=2e-5)
  np.testing.assert_array_equal(found.x0, known.x0)


def test_probes_estimate_the_diagonal_without_bias():
  x_t, level = at(40, 2)
  found = jacobian.JacobianDiagonal(DATA, np.full(101, -9, np.float32), probes=4000)(x_t, level).eps_var
  _, cov = DATA.posterior(x_t, level)
  cov = np.asarray(cov) * float(level.alpha / level.sigma) ** 2
  spread = np.sqrt((cov**2).sum(-1) - np.diagonal(cov, axis1=1, axis2=2) ** 2) / 4000**0.5  # Hutchinson's variance
  assert (np.abs(found - DATA(x_t, level).eps_var).reshape(2, 6) < 4.5 * spread + 1e-5).all()


def test_the_floor_holds_and_images_do_not_depend_on_their_batch():
  x_t, _ = at(40)
  levels = CHAIN.level(np.array([3, 90, 40, 40, 7]))
  denoiser = jacobian.JacobianDiagonal(DATA, np.linspace(0, 1, 101, dtype=np.float32), probes=2)
  together = denoiser(x_t, levels).eps_var
  assert (together >= np.float32(levels.n / 100).reshape(-1, 1, 1, 1)).all()
  alone = denoiser(x_t[1:2], CHAIN.level(np.int64(90))).eps_var
  np.testing.assert_allclose(together[1:2], alone, rtol=1e-5)


def test_moments_of_pixels_are_the_mean_variances():
  """E Var[eps | x_n] of each pixel of Gaussian data, by both formulas. The pixels have variances of their own."""
  var = np.array([0.02, 0.1, 0.3, 0.5, 0.8, 1.0])
  data = joint_mixture([1.0], np.zeros((1, 6)), np.diag(var)[None])
  batches = [(data.sample(jax.random.key(i), (500, *SHAPE)), None) for i in range(2)]
  levels = np.array([20, 60, 100])
  *_, found = moments.estimate(CHAIN, data, batches, levels=levels, per_pixel=True)
  for n in levels:
    alpha_bar = CHAIN.alpha_bar[n]
    known = (alpha_bar * var / (alpha_bar * var + 1 - alpha_bar)).reshape(SHAPE)  # Var[eps | x_n]
    # 1000 squares of normal numbers: a relative standard error of sqrt(2 / 1000), here times 4.5
    np.testing.assert_allclose(1 - found.gamma_of_pixels(100)[n], known, rtol=0, atol=0.2)
    np.testing.assert_allclose(1 - found.gamma_of_pixels(100, residual=True)[n], known, rtol=0.2)
  np.testing.assert_allclose(found.pixels.mean((2, 3, 4)), found.mean, rtol=1e-5)
  between = found.gamma_of_pixels(100)[40]  # interpolated between the levels 20 and 60
  np.testing.assert_allclose(between, found.pixels[0, :2].mean(0), rtol=1e-5)


HEADS = {  # the constant that each regression should find on data of one Gaussian, from Var[eps | x_t] and E[y^2 | x_t]
  "residual": lambda var: var,
  "log_residual": np.log,
  "hessian": lambda var: var - 1,
}


@pytest.mark.parametrize("kind", HEADS)
def test_second_heads_find_the_exact_variance(kind):
  """The gradient of each loss vanishes, in the mean over draws, at a head that tells the exact variance."""
  data = Mixture(np.ones(1, np.float32), np.zeros(1, np.float32), np.float32([0.3]))
  n = 40
  alpha_bar = CHAIN.alpha_bar[n]
  var = alpha_bar * 0.3 / (alpha_bar * 0.3 + 1 - alpha_bar)

  def apply(c, x, time, cond):
    eps = data(x, CHAIN.level(np.int64(n))).eps
    return jnp.concatenate([eps, c + 0 * x], -1)

  keys = noise.image_keys(np.arange(4000))
  x_0 = data.sample(jax.random.key(0), (4000, *SHAPE))
  loss = losses.SecondHead(steps.gaussian(CHAIN, np.arange(100, -1, -1)), reduce="mean")

  @jax.jit
  @jax.grad
  def gradient(c):
    network = Network(c, apply, TwoHeads.named(Eps(), kind))
    return loss(keys, network, x_0, jnp.full(4000, n))[1]["head"].mean()

  best = HEADS[kind](var)
  # 24,000 squares of normal numbers, each with the relative deviation sqrt 2: 4 standard errors of the mean
  tolerance = 2 * 4 * np.sqrt(2 / 24000) * (0.5 if kind == "log_residual" else var)
  assert abs(gradient(jnp.float32(best))) < tolerance
  assert abs(gradient(jnp.float32(best + 0.1))) > tolerance / 2


# ---------------------------------------------------------------- covariances between pixels


def correlated():
  """Gaussian images of six correlated pixels, and their covariance."""
  factor = np.random.default_rng(1).normal(size=(6, 6)) * 0.3
  cov = factor @ factor.T + 0.05 * np.eye(6)
  return joint_mixture([1.0], 0.2 * np.ones((1, 6)), cov[None]), cov


UNIT = np.eye(6, dtype=np.float32).reshape(6, *SHAPE)  # a batch of the six unit images


@pytest.mark.parametrize("products", [1, 3, 6])
def test_lanczos_is_exact_with_as_many_products_as_eigenvalues(products):
  _, cov = correlated()
  vectors = np.linalg.eigh(cov)[1]
  values = np.resize([0.3, 1.0, 2.5, 0.7, 1.4, 0.1][:products], 6)
  matrix = np.float32(vectors * values @ vectors.T)

  class Matrix:
    def times(self, v):
      return (v.reshape(len(v), 6) @ matrix).reshape(v.shape)

  root = lanczos.apply(jnp.sqrt, Matrix(), UNIT, products).reshape(6, 6)
  np.testing.assert_allclose(root @ root.T, matrix, atol=2e-5)  # float32
  diagonal = lanczos.Diagonal(np.float32(values).reshape(1, *SHAPE))
  root = lanczos.apply(jnp.sqrt, diagonal, UNIT, 1).reshape(6, 6)  # a unit image is an eigenvector
  np.testing.assert_allclose(root, np.diag(np.sqrt(values)), atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_the_full_covariance_keeps_the_marginal_of_correlated_data(eta):
  """One step of any length, from the exact marginal of level t, gives the exact marginal of level s."""
  data, cov = correlated()
  denoiser = jacobian.JacobianOperator(data, np.zeros(101, np.float32))
  row = jax.tree.map(np.squeeze, steps.transitions(CHAIN, np.array([70]), np.array([20]), eta))
  kernel = ReverseKernel(lanczos.Full(steps=6))

  def step(x_t):
    return kernel(x_t, row, denoiser(x_t, row.t))

  def mean(x_t):
    return step(x_t[None]).mean[0]

  gain = np.asarray(jax.jacobian(mean)(UNIT[0]), float).reshape(6, 6)
  around = step(np.broadcast_to(UNIT[:1], UNIT.shape))
  root = np.asarray(around.draw(UNIT) - around.mean, float).reshape(6, 6)
  of = lambda n: CHAIN.alpha_bar[n] * cov + (1 - CHAIN.alpha_bar[n]) * np.eye(6)
  np.testing.assert_allclose(gain @ of(70) @ gain.T + root.T @ root, of(20), atol=5e-5)  # float32


def test_a_full_covariance_samples_within_the_cap_and_without_noise_in_the_last_step():
  data, _ = correlated()
  denoiser = jacobian.JacobianOperator(data, np.zeros(101, np.float32))
  table = steps.gaussian(CHAIN, np.array([100, 40, 1, 0]))
  sampler = GaussianSampler(table, ReverseKernel(lanczos.Full(6, cap_level=1, cap_pixels=1e-6)))
  keys = noise.image_keys(np.arange(3))
  x, saved = sample(keys, denoiser, sampler, noise.normal(keys, SHAPE), save=lambda x, pred: (x, pred.x0))
  states, beliefs = saved
  row = jax.tree.map(lambda column: column[1], table)
  capped = row.c_x0 * beliefs[1] + row.c_eps * (states[0] - row.t.alpha * beliefs[1]) / row.t.sigma
  np.testing.assert_allclose(states[1], capped, atol=1e-5)
  np.testing.assert_allclose(x, beliefs[2], atol=1e-6)


def test_a_full_covariance_needs_an_operator():
  row = jax.tree.map(np.squeeze, steps.transitions(CHAIN, np.array([70]), np.array([20])))
  with pytest.raises(UserError, match=r"Full\(\) needs Prediction.eps_cov"):
    ReverseKernel(lanczos.Full())(UNIT, row, DATA(UNIT, row.t))
