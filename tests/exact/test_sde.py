"""The VP-SDE on Gaussian data, where its samplers converge to known variances and its ODE has a solution."""

import jax
import numpy as np
import pytest
import scipy.integrate
from measured import after_the_step
from reference import Stored

from ddpm_jax.diffusion import grid, noise, ode_likelihood, schedule
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.prediction import Network, TimeScale
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.diffusion.sde import VpSde, euler_maruyama

SDE = VpSde()
V = 0.09
DATA = Mixture(np.float32([1]), np.float32([0]), np.float32([V]))
KEYS = noise.image_keys(np.arange(4))


@pytest.mark.parametrize("ode", [False, True])
def test_euler_maruyama_is_the_formula(ode):
  """Extended-Analytic-DPM's sampler written out: drift f - g^2 score (half of it for the ODE), time running down."""
  K = 12
  shape = (4, 2, 2, 1)
  rng = np.random.default_rng(0)
  x_T = rng.standard_normal(shape)
  draws = rng.standard_normal((K, *shape))
  times = np.append(0, np.linspace(1e-3, 1, K))
  x = x_T
  expected = []
  for k in range(K):
    t = times[K - k]
    s = times[K - k - 1]
    integral = schedule.vp_integral(t)
    dt = s - t
    alpha_bar = np.exp(-integral)
    eps = np.sqrt(1 - alpha_bar) * x / (alpha_bar * V + 1 - alpha_bar)
    score = -eps / np.sqrt(1 - alpha_bar)
    x = x + (-0.5 * SDE.beta(t) * x - (0.5 if ode else 1) * SDE.beta(t) * score) * dt
    if s > 0 and not ode:
      x = x + np.sqrt(SDE.beta(t) * -dt) * draws[k]
    expected.append(x)
  levels = schedule.vp_sde(11_000)  # contains those times
  table = euler_maruyama(levels, np.rint(times[::-1] * 11_000).astype(int), ode=ode)
  draws = Stored(np.float32(draws))
  _, states = sample(KEYS, DATA, GaussianSampler(table), np.float32(x_T), save=after_the_step, noise=draws)
  np.testing.assert_allclose(states, expected, rtol=1e-4, atol=1e-4)  # at t = 1 beliefs about x_0 multiply roundings by 150


def test_the_ode_sampler_is_of_first_order():
  """Exact: x(0.2) = x(1) sqrt(var(0.2) / var(1)); Euler's error halves with the step."""
  x_T = np.ones((1, 1, 1, 1), np.float32)
  errors = []
  levels = schedule.vp_sde(1000)
  var = levels.alpha_bar * V + 1 - levels.alpha_bar
  for stride in (16, 8, 4):  # finer, float32 shows: at t = 1 beliefs about x_0 multiply roundings by 150
    visited = np.append(np.arange(1000, 199, -stride), 0)
    _, states = sample(KEYS[:1], DATA, GaussianSampler(euler_maruyama(levels, visited, ode=True)), x_T, save=after_the_step)
    errors.append(abs(float(states[-2, 0, 0, 0, 0]) / np.sqrt(var[200] / var[1000]) - 1))
  assert 1.8 < errors[0] / errors[1] < 2.2 and 1.8 < errors[1] / errors[2] < 2.2, errors


def test_the_sde_sampler_makes_the_datas_variance():
  """With 500 steps from 1,000 images of 16 pixels: 1 % of chance, 1 % of Euler's."""
  keys = noise.image_keys(np.arange(1000))
  levels = schedule.vp_sde(1000)
  x_T = noise.PerImage(keys).initial((4, 4, 1))
  x_0, _ = sample(keys, DATA, GaussianSampler(euler_maruyama(levels, grid.uniform(1000, 500))), x_T)
  assert float(x_0.var()) == pytest.approx(V, rel=0.04)


def test_bits_per_dim_of_the_ode_are_those_of_its_linear_flow():
  """dx/dt = a(t) x stretches x by sqrt(var(1) / var(first)), so that the likelihood has a formula, image by image."""
  x_0 = np.random.default_rng(1).integers(0, 256, (4, 4, 4, 1)).astype(np.float32) / 127.5 - 1
  first = 1e-5
  found = ode_likelihood.ode_bits_per_dim(KEYS, DATA, SDE, x_0, first=first)
  var = lambda t: np.exp(-schedule.vp_integral(t)) * V - np.expm1(-schedule.vp_integral(t))
  stretch = np.sqrt(var(1.0) / var(first))
  x = found.latent / stretch  # the dequantized image
  assert (np.abs((x * 128 + 128) - (x_0 + 1) * 127.5 - 0.5) <= 0.51).all()
  nats = 0.5 * (found.latent**2 + np.log(2 * np.pi)) - np.log(stretch)
  np.testing.assert_allclose(found.bits, nats.mean((1, 2, 3)) / np.log(2) + 7, rtol=1e-4)  # tolerance 1e-5 a step
  assert (found.steps > 5).all() and (found.steps < 200).all()


def test_an_image_does_not_depend_on_its_batch():
  x_0 = np.random.default_rng(1).integers(0, 256, (4, 4, 4, 1)).astype(np.float32) / 127.5 - 1
  together = ode_likelihood.ode_bits_per_dim(KEYS, DATA, SDE, x_0)
  alone = ode_likelihood.ode_bits_per_dim(KEYS[2:3], DATA, SDE, x_0[2:3])
  np.testing.assert_allclose(alone.bits, together.bits[2:3], rtol=1e-6)
  assert alone.steps[0] == together.steps[2]


def test_runge_kutta_follows_scipys():
  """The same method, controller and tolerance: as many steps, and answers as good."""
  slope = lambda t, y: np.array([y[1], -25 * y[0] * (1 + t)])
  reference = scipy.integrate.solve_ivp(slope, (0.0, 2.0), [1.0, 0.0], rtol=1e-5, atol=1e-5, method="RK45")
  exact = scipy.integrate.solve_ivp(slope, (0.0, 2.0), [1.0, 0.0], rtol=1e-10, atol=1e-12, method="DOP853").y[:, -1]

  def ours(t, y):
    return jax.numpy.stack([y[:, 1], -25 * y[:, 0] * (1 + t)], 1)

  y, steps, done = jax.jit(ode_likelihood.integrate, static_argnums=(0, 5))(ours, np.float32([[1, 0]]), 0.0, 2.0, 1e-5, 1000)
  assert done.all()
  assert abs(int(steps[0]) - (len(reference.t) - 1)) <= 5
  np.testing.assert_allclose(y[0], exact, atol=2e-3)
  assert np.abs(reference.y[:, -1] - exact).max() < 2e-3


def test_networks_of_the_chain_are_told_the_time_of_the_sde():
  """CT2DT of the authors is a TimeScale: level n of T is t = n / T, told as 999 t."""
  echo = Network(None, lambda params, x, time, cond: x + time[:, None, None, None], time=TimeScale(999 / 1000, shift=0))
  heard = echo.output(np.zeros((3, 1, 1, 1), np.float32), schedule.vp_sde(1000).level(np.array([1, 500, 1000])))
  np.testing.assert_allclose(heard[:, 0, 0, 0], [0.999, 499.5, 999], rtol=1e-6)
