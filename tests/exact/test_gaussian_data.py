"""Gaussian data, where the exact denoiser is known and every quantity has a formula.

With pixels x_0 ~ N(m, v), every x_t is N(alpha m, alpha^2 v + sigma^2), beliefs are affine in x_t, and so is every step.
So a sampler's means and variances can be read off without chance: its response to x_T and to each draw of noise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from reference import Stored

from ddpm_jax.diffusion import grid, noise, prediction, schedule, second_heads, steps
from ddpm_jax.diffusion.covariance import FixLast, Optimal, marginal, posterior
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.likelihood import bits_per_dim
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.diffusion.schedule import like
from ddpm_jax.diffusion.transforms import AnalyticMoments

LEVELS = schedule.linear(100)


def gaussian_data(m, v):
  return Mixture(np.ones(1, np.float32), np.float32([m]), np.float32([v]))


def marginals(levels, n, m, v):
  """float64 means and variances of x_n."""
  alpha_bar = levels.alpha_bar[n]
  return np.sqrt(alpha_bar) * m, alpha_bar * v + 1 - alpha_bar


@jax.jit
def beliefs(denoiser, x_t, level):
  return denoiser(x_t, level)


def test_the_score_is_the_gradient_of_the_log_density():
  x = np.float32(np.linspace(-2, 2, 8).reshape(1, 2, 4, 1))
  for n in (1, 50, 100):
    level = LEVELS.level(np.int64(n))
    mean, var = marginals(LEVELS, n, 0.3, 0.2)
    score = gaussian_data(0.3, 0.2)(x, level).score(x, level)
    # float32: at level 1, alpha x0 - x_t is divided by sigma^2 = 1e-4
    np.testing.assert_allclose(score, -(x - mean) / var, rtol=1e-4, atol=5e-3 if n == 1 else 1e-5)


def test_the_score_at_pure_noise_is_that_of_the_standard_normal():
  """Also of a prediction of eps, whose x0 is infinite there."""
  x = np.float32(np.linspace(-2, 2, 8).reshape(1, 2, 4, 1))
  level = schedule.Level(np.int64(1), np.float32(0), np.float32(1))
  np.testing.assert_array_equal(prediction.Prediction(jnp.full(x.shape, jnp.inf), jnp.asarray(x)).score(x, level), -x)


def states(x, pred):
  return x


def moments(denoiser, sampler, mean, var):
  """Mean and variance [K] after each step, from x_T ~ N(mean, var): one run with a unit impulse per image."""
  K = len(sampler.steps.left)
  x_T = np.zeros((K + 2, 1, 1, 1), np.float32)
  x_T[1] = 1
  draws = np.zeros((K, *x_T.shape), np.float32)
  draws[np.arange(K), 2 + np.arange(K)] = 1
  keys = noise.image_keys(np.arange(K + 2))  # not used: the noise is given
  response = np.float64(sample(keys, denoiser, sampler, x_T, save=states, noise=Stored(draws))[1])[..., 0, 0, 0]  # [K,K+2]
  offset = response[:, 0]
  gain = response[:, 1:] - offset[:, None]
  return offset + gain[:, 0] * mean, gain[:, 0] ** 2 * var + (gain[:, 1:] ** 2).sum(1)


def check_marginals(m, v, covariance, eta, K):
  visited = grid.uniform(LEVELS.T, K)[:-1]  # ends at level 1
  sampler = GaussianSampler(steps.gaussian(LEVELS, visited, eta), ReverseKernel(covariance))
  mean, var = moments(gaussian_data(m, v), sampler, *marginals(LEVELS, LEVELS.T, m, v))
  expected_mean, expected_var = marginals(LEVELS, visited[1:], m, v)
  # float32 throughout; at alpha = 0.006 beliefs about x_0 multiply roundings by 160
  np.testing.assert_allclose(mean, expected_mean, rtol=0, atol=2e-5)
  np.testing.assert_allclose(var, expected_var, rtol=2e-5)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("K", [2, 4, 11])
def test_the_optimal_covariance_keeps_every_marginal_in_any_number_of_steps(eta, K):
  check_marginals(0.3, 0.2, Optimal(), eta, K)


@pytest.mark.parametrize("K", [2, 11])
def test_fixed_large_is_exact_for_unit_gaussian_data(K):
  check_marginals(0.0, 1.0, marginal, 1.0, K)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_the_posterior_is_exact_for_a_single_point(eta):
  check_marginals(-0.7, 0.0, posterior, eta, 4)


def test_fixed_small_makes_too_little_variance_and_fixed_large_too_much():
  truth = marginals(LEVELS, 1, 0.3, 0.2)[1]
  table = steps.gaussian(LEVELS, grid.uniform(100, 4)[:-1])
  small, large = (
    moments(gaussian_data(0.3, 0.2), GaussianSampler(table, ReverseKernel(covariance)), *marginals(LEVELS, 100, 0.3, 0.2))
    for covariance in (posterior, marginal)
  )
  assert small[1][-1] < truth < large[1][-1]


def test_the_last_step_returns_the_mean_belief():
  m = 0.3
  v = 0.2
  sampler = GaussianSampler(steps.gaussian(LEVELS, grid.uniform(100, 5)), ReverseKernel(Optimal()))
  mean, var = moments(gaussian_data(m, v), sampler, *marginals(LEVELS, 100, m, v))
  alpha_bar = LEVELS.alpha_bar[1]
  np.testing.assert_allclose(mean[-1], m, atol=2e-5)
  np.testing.assert_allclose(var[-1], v * (alpha_bar * v) / (alpha_bar * v + 1 - alpha_bar), rtol=2e-5)  # Var[E[x_0 | x_1]]


def test_analytic_moments_are_the_exact_covariance():
  """For Gaussian data Var[eps | x_t] is one number per level, 1 - E[eps_hat^2] (Analytic-DPM eq. 8)."""
  m = 0.3
  v = 0.2
  alpha_bar = LEVELS.alpha_bar
  gamma = np.float32((1 - alpha_bar) / (alpha_bar * v + 1 - alpha_bar))
  x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 2, 2, 1)
  level = LEVELS.level(np.array([100, 50, 1]))
  exact = beliefs(gaussian_data(m, v), x, level).eps_var
  ours = beliefs(AnalyticMoments(gaussian_data(m, v), gamma), x, level).eps_var
  np.testing.assert_allclose(np.broadcast_to(ours, exact.shape), exact, rtol=1e-5, atol=6e-8)  # rounding of gamma


@pytest.mark.parametrize("mean", [prediction.Eps(), prediction.X0(), prediction.V()])
@pytest.mark.parametrize("kind", ["residual", "second_moment"])
def test_second_heads_tell_the_exact_variance(mean, kind):
  """A head that knows E[(y - out)^2] or E[y^2] of what its network regresses knows Var[eps | x_t]."""
  data = gaussian_data(0.3, 0.2)
  level = LEVELS.level(np.array([90, 50, 10]))
  x = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 2, 2, 1)
  exact = beliefs(data, x, level)
  wide = like(level, x)
  out = mean.target(exact.x0, exact.eps, level)
  # x_0 and eps move together given x_t: alpha dx_0 = -sigma deps
  y_var = exact.eps_var * np.square(mean.target(-wide.sigma / wide.alpha, jnp.ones_like(x), level))
  second = y_var if kind == "residual" else y_var + out**2
  ours = second_heads.TwoHeads.named(mean, kind).decode(jnp.concatenate([out, second], -1), x, level)
  np.testing.assert_allclose(ours.x0, exact.x0, rtol=1e-4, atol=2e-5)
  np.testing.assert_allclose(ours.eps_var, np.broadcast_to(exact.eps_var, x.shape), rtol=1e-4, atol=1e-6)


def flow(levels, x, t, s, m, v):
  """The exact solution of DDIM's differential equation: standardized x stays put."""
  (mean_t, var_t) = marginals(levels, t, m, v)
  (mean_s, var_s) = marginals(levels, s, m, v)
  return mean_s + np.sqrt(var_s / var_t) * (x - mean_t)


def test_ddim_is_a_first_order_method_up_and_down():
  levels = schedule.vp_sde(1280)
  m = 0.3
  v = 0.05
  x = np.linspace(-2, 2, 16, dtype=np.float32).reshape(1, 4, 4, 1)
  keys = noise.image_keys(np.arange(1))
  for first, last in ((1280, 256), (256, 1280)):
    errors = []
    for K in (16, 32, 64):
      visited = np.linspace(first, last, K + 1).astype(int)
      ours, _ = sample(keys, gaussian_data(m, v), GaussianSampler(steps.gaussian(levels, visited, eta=0.0)), x)
      errors.append(np.abs(ours - flow(levels, x, first, last, m, v)).max())
    order = -np.polyfit(np.log([16, 32, 64]), np.log(errors), 1)[0]
    assert 0.9 < order < 1.1, (order, errors)


def test_inversion_and_decoding_return_the_image():
  levels = schedule.vp_sde(1280)
  data = gaussian_data(0.3, 0.05)
  x_0 = np.linspace(-0.5, 1, 16, dtype=np.float32).reshape(1, 4, 4, 1)
  keys = noise.image_keys(np.arange(1))
  errors = []
  for stride in (32, 16, 8):
    visited = np.append(np.arange(1280, 0, -stride), 1)
    down, up = (GaussianSampler(steps.gaussian(levels, way, eta=0.0)) for way in (visited, visited[::-1]))
    latent, _ = sample(keys, data, up, x_0)  # level 1 passes for the image
    errors.append(np.abs(sample(keys, data, down, latent)[0] - x_0).max())
  assert errors[2] < 0.06 and errors[2] < 0.6 * errors[1] < 0.36 * errors[0], errors


# The bound. The reverse transitions of Gaussian data are Gaussian, so the model with the optimal covariance is the data's
# own law p(x_0 ... x_T) = q(x_0 ... x_T), and -log p(x_0:T) / q(x_1:T | x_0) = -log q(x_0) for each x_0 and each path: the
# bound is tight, image by image, in any number of steps. What remains: 8-bit pixels are bins of width 2/255 and not points,
# which is nothing where the first level's noise is much wider (here 0.1); and q(x_T) is not quite N(0, I) (alpha_T = 0.01).
M = 0.1
V = 0.09
WIDE = schedule.from_betas(np.linspace(0.01, 0.5, 30))


def constant_images(levels_of_grey):
  return np.broadcast_to(np.float32(levels_of_grey)[:, None, None, None] / 127.5 - 1, (len(levels_of_grey), 16, 16, 1))


def information(x_0):
  """-log2 of the probability of a pixel's bin, [B]."""
  x = np.float64(x_0[:, 0, 0, 0])
  cdf = lambda edge: scipy.special.ndtr((edge - M) / np.sqrt(V))
  return -np.log2(cdf(x + 1 / 255) - cdf(x - 1 / 255))


def bound(levels, visited, covariance, x_0):
  """Bits/dim [B], with noise whose 256 pixels are the quantiles of a normal of mean 0 and variance 1."""
  quantiles = scipy.special.ndtri((np.arange(256) + 0.5) / 256)
  draw = np.float32(quantiles / quantiles.std()).reshape(16, 16, 1)
  draws = np.broadcast_to(draw, (len(visited) - 1, len(x_0), 16, 16, 1))
  table = steps.gaussian(levels, visited)
  keys = noise.image_keys(np.arange(len(x_0)))
  return bits_per_dim(keys, gaussian_data(M, V), ReverseKernel(covariance), table, x_0, noise=Stored(draws)).total


@pytest.mark.parametrize("K", [1, 30])
def test_bits_per_dim_are_the_information_of_each_image(K):
  x_0 = constant_images([90, 128, 150, 190])
  bits = bound(WIDE, grid.uniform(30, K), Optimal(), x_0)
  # The decoder's tanh is not quite the normal CDF: its density is off by 0.3 %, or 0.004 bits, within 1.5 deviations.
  np.testing.assert_allclose(bits, information(x_0), rtol=0, atol=5e-3)


def test_a_chain_that_begins_before_all_is_noise_pays_for_it():
  """By E[log q(x_t) - log N(x_t; 0, I)] given x_0, since the model believes N(0, I)."""
  x_0 = constant_images([90, 128, 150, 190])
  t = 8
  bits = bound(WIDE, np.arange(t, -1, -1), Optimal(), x_0)
  mean_t, var_t = marginals(WIDE, t, M, V)
  x = np.float64(x_0[:, 0, 0, 0])
  alpha = np.sqrt(WIDE.alpha_bar[t])
  sigma2 = 1 - WIDE.alpha_bar[t]
  mismatch = (-np.log(var_t) - ((alpha * x - mean_t) ** 2 + sigma2) / var_t + (alpha * x) ** 2 + sigma2) / 2 / np.log(2)
  assert (np.abs(mismatch) > 0.05).any()
  np.testing.assert_allclose(bits, information(x_0) + mismatch, rtol=0, atol=5e-3)  # as above


def test_the_bound_of_fixed_large_comes_down_to_the_information_like_1_over_T():
  """As T grows beta is the true variance. (The posterior's is not near the image, where it is beta (n - 1) / n.)"""
  x_0 = constant_images([90, 128, 190])
  excess = []
  for T in (40, 80):
    levels = schedule.vp_sde(T)
    beta = levels.betas[0]
    decoder = np.log(beta * V / ((1 - beta) * V + beta))  # Var[x_0 | x_1]; fixed-large borrows another
    excess.append(np.mean(bound(levels, grid.full(T), FixLast(marginal, float(decoder)), x_0) - information(x_0)))
  assert 0 < excess[1] < 0.55 * excess[0], excess
