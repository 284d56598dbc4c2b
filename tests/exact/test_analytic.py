"""Moments and the optimal covariance on data whose exact denoiser is known (Analytic-DPM sections 3 and 4)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import grid, moments, noise, schedule, step_costs, steps, trajectory
from ddpm_jax.diffusion.covariance import Optimal, fix_last_to_full_chain, marginal, optimal_bounds, posterior
from ddpm_jax.diffusion.gaussian import Gaussian
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.likelihood import bits_per_dim
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.prediction import Prediction
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.diffusion.transforms import AnalyticMoments

CHAIN = schedule.linear(100)
GAUSSIAN = Mixture(np.float32([0.5, 0.5]), np.float32([0.2, 0.2]), np.float32([0.09, 0.09]))  # one program for both
TWO = Mixture(np.float32([0.3, 0.7]), np.float32([-0.6, 0.4]), np.float32([0.02, 0.05]))


Z = np.linspace(-9, 9, 361)  # the trapezoid rule on a bell curve is exact to rounding
W = np.exp(-0.5 * Z**2) / np.exp(-0.5 * Z**2).sum()


def expectation(data, alpha, sigma, f):
  """E f(x_t) for a pixel of `data` diffused to (alpha, sigma), by quadrature in float64."""
  total = 0.0
  for weight, mean, var in zip(*map(np.float64, (data.weight, data.mean, data.var)), strict=True):
    total += weight * W @ f(alpha * mean + np.sqrt(alpha**2 * var + sigma**2) * Z)
  return total


def posterior_of_x0(data, x_t, alpha, sigma):
  """Mean and variance of x_0 given a pixel x_t [N], by quadrature over x_0: Bayes' rule and nothing else."""
  first = second = total = 0.0
  for weight, mean, var in zip(*map(np.float64, (data.weight, data.mean, data.var)), strict=True):
    x_0 = mean + np.sqrt(var) * Z
    likelihood = weight * W * np.exp(-0.5 * ((x_t[:, None] - alpha * x_0) / sigma) ** 2)
    first = first + likelihood @ x_0
    second = second + likelihood @ x_0**2
    total = total + likelihood.sum(1)
  return first / total, second / total - (first / total) ** 2


def levels_in_float64(chain, n):
  return np.sqrt(chain.alpha_bar[n]), np.sqrt(1 - chain.alpha_bar[n])


def exact_gamma(data, chain):
  """Gamma [T+1] = (1 - E Var[x_0 | x_n] alpha^2 / sigma^2), by quadrature of the exact posterior."""
  gamma = np.zeros(chain.T + 1)
  for n in range(1, chain.T + 1):
    alpha, sigma = levels_in_float64(chain, n)
    eps = lambda x, alpha=alpha, sigma=sigma: np.square(x - alpha * components(data, x, alpha, sigma)[0]) / sigma**2
    gamma[n] = expectation(data, alpha, sigma, eps)
  return gamma


def components(data, x_t, alpha, sigma):
  """The same posterior in closed form, float64."""
  weight, mean, var = (np.float64(a)[:, None] for a in (data.weight, data.mean, data.var))
  var_t = alpha**2 * var + sigma**2
  share = weight * np.exp(-0.5 * (x_t - alpha * mean) ** 2 / var_t) / np.sqrt(var_t)
  share /= share.sum(0)
  each = mean + alpha * var / var_t * (x_t - alpha * mean)
  x0 = (share * each).sum(0)
  return x0, (share * (var * sigma**2 / var_t + (each - x0) ** 2)).sum(0)


@pytest.mark.parametrize("data", [GAUSSIAN, TWO], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("n", [20, 50, 90])
def test_beliefs_about_a_mixture_are_bayes_rule(data, n):
  alpha, sigma = levels_in_float64(CHAIN, n)
  x_t = np.linspace(-1.5, 1.5, 9)
  mean, var = posterior_of_x0(data, x_t, alpha, sigma)
  pred = data(jnp.asarray(x_t, jnp.float32).reshape(1, 3, 3, 1), CHAIN.level(n))
  np.testing.assert_allclose(np.ravel(pred.x0), mean, rtol=1e-4, atol=1e-5)  # float32
  x0_var = np.ravel(pred.eps_var) * (sigma / alpha) ** 2
  np.testing.assert_allclose(np.broadcast_to(x0_var, var.shape), var, rtol=1e-4, atol=1e-5)


@functools.cache
def measured(data_id, count=4000):
  """Moments of 4 x 4 images, in batches of 1000."""
  data = {"gaussian": GAUSSIAN, "mixture": TWO}[data_id]
  x_0 = data.sample(jax.random.key(1), (count, 4, 4, 1))
  batches = ((x_0[i : i + 1000], None) for i in range(0, count, 1000))
  *_, last = moments.estimate(CHAIN, data, batches, chunk=30)  # 30 does not divide 100
  return last


@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_estimated_moments_agree_with_quadrature_within_their_standard_error(name):
  data = {"gaussian": GAUSSIAN, "mixture": TWO}[name]
  found = measured(name)
  gamma = exact_gamma(data, CHAIN)
  if name == "gaussian":  # eps_hat = sigma (x_t - alpha m) / (alpha^2 v + sigma^2)
    alpha_bar = CHAIN.alpha_bar[1:]
    v = float(data.var[0])
    np.testing.assert_allclose(gamma[1:], (1 - alpha_bar) / (alpha_bar * v + 1 - alpha_bar), rtol=1e-10)
  off = (found.mean - [gamma[1:], 1 - gamma[1:]]) / found.standard_error  # by both formulas
  assert np.abs(off).max() < 4.5 and 0.5 < np.sqrt(np.mean(off**2)) < 1.5  # 200 numbers from 4000 images of 16 pixels
  # What the covariance is made of, (sigma / alpha)^2 (1 - gamma), at the noisiest level:
  by_square, by_error = found.standard_error[:, -1]
  assert by_error < 1e-3 * by_square


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_optimal_variance_is_the_mean_square_of_what_the_step_gets_wrong(eta):
  """E over x_t of Var[x_s | x_t] = var + c_cov E Var[x_0 | x_t], in closed form and by the tables (Analytic-DPM eq. 10)."""
  gamma = exact_gamma(TWO, CHAIN)
  table = steps.gaussian(CHAIN, grid.uniform(100, 6), eta)
  found = np.exp(Optimal()(Prediction(None, None, eps_var=1 - gamma[table.t.n]), table))
  for k, (t, s) in enumerate(zip(table.t.n, table.s.n, strict=True)):
    (alpha_t, sigma_t) = levels_in_float64(CHAIN, t)
    (alpha_s, sigma_s) = levels_in_float64(CHAIN, s)
    var = (eta * sigma_s / sigma_t) ** 2 * (1 - (alpha_t / alpha_s) ** 2)
    apart = (alpha_s - np.sqrt(sigma_s**2 - var) * alpha_t / sigma_t) ** 2
    x0_var = expectation(TWO, alpha_t, sigma_t, lambda x, a=alpha_t, b=sigma_t: components(TWO, x, a, b)[1])
    np.testing.assert_allclose(found[k], var + apart * x0_var, rtol=1e-4)  # 1 - gamma in float32


def test_the_optimal_variance_keeps_the_bounds_of_the_theorem():
  table = steps.gaussian(schedule.linear(1000), grid.uniform(1000, 50))
  low, high = optimal_bounds(table)
  for gamma in np.linspace(0, 1, 5):
    var = np.exp(Optimal()(Prediction(None, None, eps_var=np.float32(1 - gamma)), table))
    assert (var >= low * (1 - 1e-5)).all() and (var <= high * (1 + 1e-5)).all()
  np.testing.assert_allclose(np.exp(Optimal()(Prediction(None, None, eps_var=np.float32(1)), table)), high, rtol=1e-5)


@pytest.mark.parametrize(
  ("chain", "K", "posterior_var", "upper_bound"),
  [
    # Analytic-DPM table 7: the step from the second visited level to level 1, three digits
    ("linear", 10, 9.99e-5, 1.45e-1),
    ("linear", 25, 9.96e-5, 2.24e-2),
    ("linear", 50, 9.84e-5, 6.20e-3),
    ("linear", 100, 9.55e-5, 2.10e-3),
    ("cosine", 10, 4.12e-5, 3.56e-2),
    ("cosine4000", 25, 9.85e-6, 5.93e-3),
  ],
)
def test_bounds_are_those_of_table_7(chain, K, posterior_var, upper_bound):
  chain = {"linear": schedule.linear(1000), "cosine": schedule.cosine(1000), "cosine4000": schedule.cosine(4000)}[chain]
  table = steps.gaussian(chain, grid.uniform(chain.T, K))
  low, high = (bound[-2] for bound in optimal_bounds(table))
  assert (float(f"{low:.2e}"), float(f"{high:.2e}")) == (posterior_var, upper_bound)


@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_in_five_steps_only_the_optimal_covariance_makes_samples_of_the_right_variance(name):
  """The figure of the README: fixed-small collapses, fixed-large explodes, the estimated optimum is right."""
  data = {"gaussian": GAUSSIAN, "mixture": TWO}[name]
  chain = schedule.linear(1000)
  x_0 = data.sample(jax.random.key(2), (500, 4, 4, 1))
  visited = grid.uniform(1000, 5)
  *_, found = moments.estimate(chain, data, [(x_0, None)], levels=visited[:-1], chunk=5)
  denoiser = AnalyticMoments(data, found.gamma(1000, residual=True).astype(np.float32))
  keys = noise.image_keys(np.arange(2000))
  x_T = noise.PerImage(keys).initial((4, 4, 1))

  def variance(covariance):
    sampler = GaussianSampler(steps.gaussian(chain, visited), ReverseKernel(covariance))
    return float(sample(keys, denoiser, sampler, x_T)[0].var())

  optimal, small, large = (variance(covariance) / data.data_var for covariance in (Optimal(), posterior, marginal))
  assert small < 0.75 and large > 1.5
  # 32,000 pixels: 0.8 % of chance. For the mixture, Gaussian steps have the right variance only if x_t has its law.
  assert abs(optimal - 1) < (0.03 if name == "gaussian" else 0.15), optimal


def test_a_measured_cost_is_the_gain_in_variance():
  """With the exact denoiser and its optimal covariance the expected divergence is log(optimal / posterior) / 2."""
  chain = schedule.linear(30)
  x_0 = GAUSSIAN.sample(jax.random.key(3), (100, 8, 8, 1))
  *_, (count, table) = step_costs.estimate(chain, GAUSSIAN, Optimal(), [(x_0, None)])
  assert count == 100
  s, t = np.triu_indices(31, 1)
  t = t[s > 0]
  s = s[s > 0]
  assert np.isinf(table[np.tril_indices(31)]).all()
  rows = steps.transitions(chain, t, s)
  v = float(GAUSSIAN.var[0])
  alpha_bar = chain.alpha_bar[t]
  x0_var = v * (1 - alpha_bar) / (alpha_bar * v + 1 - alpha_bar)
  expected = 0.5 * np.log2(1 + np.float64(rows.c_cov) / rows.var * x0_var)
  np.testing.assert_allclose(table[s, t], expected, rtol=0.05)  # 6,400 pixels: 1.8 % of chance
  x_1 = chain.level(1).diffuse(x_0, jax.random.normal(jax.random.key(4), x_0.shape))
  pixels = Gaussian(GAUSSIAN(x_1, chain.level(1)).x0, step_costs.log_posterior_21(chain)).log_prob_of_pixels(x_0)
  assert table[0, 1] == pytest.approx(-float(pixels.mean()) / np.log(2), rel=0.05)  # the same up to chance


@pytest.mark.parametrize("covariance", [marginal, Optimal()], ids=["one for all pixels", "per pixel"])
def test_the_costs_along_a_path_are_its_bound(covariance):
  """The same draws: image i has the same noise at level t in the table and in bits_per_dim."""
  chain = schedule.linear(30)
  x_0 = TWO.sample(jax.random.key(3), (100, 8, 8, 1))
  *_, (_, table) = step_costs.estimate(chain, TWO, covariance, [(x_0, None)], seed=3)
  kernel = ReverseKernel(fix_last_to_full_chain(covariance, chain))
  for visited in (grid.uniform(30, 3), np.array([30, 11, 4, 0]), trajectory.dp_vb(table, 3)):
    bound = bits_per_dim(moments.numbered_keys(3, 0, 100), TWO, kernel, steps.gaussian(chain, visited), x_0)
    expected = table[visited[1:], visited[:-1]].sum() + bound.prior.mean()
    np.testing.assert_allclose(bound.total.mean(), expected, rtol=1e-5)


def test_the_two_dynamic_programs_choose_the_same_levels():
  """For the analytic covariance the measured costs are those of the moments, up to what all paths share."""
  chain = schedule.linear(60)
  gamma = exact_gamma(TWO, chain)
  rows = steps.transitions(chain, *np.maximum(np.broadcast_arrays(np.arange(61), np.arange(61)[:, None]), [[[1]], [[0]]]))
  with np.errstate(divide="ignore", invalid="ignore"):
    cost = np.array(Optimal(clip=False)(Prediction(None, None, eps_var=1 - gamma[rows.t.n]), rows) - np.log(rows.var))
  cost[0] = np.inf
  cost[0, 1] = -1e3  # end at level 1, as dp_seg does
  for K in (4, 8, 20):
    np.testing.assert_array_equal(trajectory.dp_vb(cost, K), trajectory.dp_seg(chain, gamma, K))


@pytest.mark.parametrize("cut", [1, 3])
def test_estimation_goes_on_where_it_stopped(cut):
  x_0 = np.asarray(TWO.sample(jax.random.key(1), (20, 4, 4, 1)))
  batches = [(x_0[i : i + 5], None) for i in range(0, 20, 5)]
  levels = np.array([1, 40, 100])
  *_, straight = moments.estimate(CHAIN, TWO, batches, levels=levels, seed=7)
  *_, half = moments.estimate(CHAIN, TWO, batches[:cut], levels=levels, seed=7)
  *_, rest = moments.estimate(CHAIN, TWO, batches[cut:], levels=levels, seed=7, start=half)
  assert rest.count == straight.count == 20
  np.testing.assert_array_equal(rest.mean, straight.mean)
  np.testing.assert_array_equal(rest.deviations, straight.deviations)


def test_moments_of_parts_are_the_moments_of_the_whole():
  values = np.random.default_rng(0).normal(1, 0.01, (2, 3, 50))

  def of(part):
    mean = part.mean(-1)
    return moments.Moments(np.arange(1, 4), part.shape[-1], mean, ((part - mean[..., None]) ** 2).sum(-1))

  whole = of(values[..., :7]).merge(of(values[..., 7:20])).merge(of(values[..., 20:]))
  np.testing.assert_allclose(whole.mean, values.mean(-1), rtol=1e-12)
  np.testing.assert_allclose(whole.standard_error, values.std(-1, ddof=1) / np.sqrt(50), rtol=1e-10)


def test_levels_between_measured_ones_are_interpolated():
  found = moments.Moments(np.array([10, 20]), 1, np.array([[0.5, 0.7], [0.4, 0.3]]), np.zeros((2, 2)))
  np.testing.assert_allclose(found.gamma(30)[[0, 5, 10, 15, 20, 30]], [0, 0.5, 0.5, 0.6, 0.7, 0.7])
  np.testing.assert_allclose(found.gamma(30, residual=True)[[0, 5, 15, 30]], [0, 0.6, 0.65, 0.7])


def test_an_error_larger_than_the_noise_says_that_nothing_is_known():
  found = moments.Moments(np.array([10, 20]), 1, np.array([[0.5, 0.7], [0.4, 1.3]]), np.zeros((2, 2)))
  np.testing.assert_allclose(found.gamma(20, residual=True)[[10, 20]], [0.6, 0])


@pytest.mark.parametrize("count", [50, 100, 7, 97])
def test_the_cost_is_one_evaluation_per_image_and_level(count):
  """So that 10,000 images cost 10,000 x levels: no part of a chunk is run for nothing."""
  table = steps.gaussian(CHAIN, np.arange(count, -1, -1))
  parts = list(moments.chunks(table, 50))
  np.testing.assert_array_equal(np.concatenate([part.t.n for part in parts]), table.t.n)
  assert len({len(part.left) for part in parts}) == 1  # one program


def test_one_program_serves_all_levels_and_batches():
  x_0 = TWO.sample(jax.random.key(1), (6, 4, 4, 1))
  before = moments._moments._cache_size()
  for _ in moments.estimate(CHAIN, TWO, [(x_0[:3], None), (x_0[3:], None)], chunk=40):
    pass
  assert moments._moments._cache_size() == before + 1
