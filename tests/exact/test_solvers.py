"""Fast solvers: their order on a problem with a known solution, their formulas written out a second time, and their ends."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from ddpm_jax.diffusion import adams, dpm_solver, grid, noise, schedule, steps
from ddpm_jax.diffusion.guidance import ClassifierFree
from ddpm_jax.diffusion.heun import heun
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.prediction import Eps, Network, Prediction
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.diffusion.second_heads import TwoHeads
from ddpm_jax.diffusion.solvers import Solver
from ddpm_jax.diffusion.transforms import ClipX0
from ddpm_jax.diffusion.unipc import unipc
from ddpm_jax.errors import UserError

S = schedule.linear(1000)
MIXTURE = Mixture(np.float32([0.5, 0.5]), np.float32([-1, 1]), np.float32([0.09, 0.09]))
TABLES = {
  "1": functools.partial(dpm_solver.multistep, order=1),
  "2M": functools.partial(dpm_solver.multistep, order=2),
  "3M": functools.partial(dpm_solver.multistep, order=3),
  "2S": dpm_solver.singlestep,
  "heun": heun,
  "unipc1": functools.partial(unipc, order=1),
  "unipc2": functools.partial(unipc, order=2),
  "unipc3": functools.partial(unipc, order=3),
  "unipc2-bh1": functools.partial(unipc, order=2, variant="bh1"),
  "ipndm4": functools.partial(adams.ipndm, order=4),
  "deis2": functools.partial(adams.t_ab, order=2),
  "deis3": functools.partial(adams.t_ab, order=3),
  "deis4": functools.partial(adams.t_ab, order=4),
  "deis2-rho": functools.partial(adams.rho_ab, order=2),
  "deis3-rho": functools.partial(adams.rho_ab, order=3),
  "deis4-rho": functools.partial(adams.rho_ab, order=4),
}
FLOWS = tuple(TABLES)
TABLES["sde1"] = functools.partial(dpm_solver.multistep, order=1, sde=True)
TABLES["sde2M"] = functools.partial(dpm_solver.multistep, order=2, sde=True)


def final_orders(name):
  """The option without which the last steps are of lower order."""
  return {} if name in ("2S", "heun") else {"lower_order_final": False}


def run(table, x_T, denoiser=MIXTURE, cond=None, **options):
  return sample(noise.image_keys(np.arange(len(x_T))), denoiser, Solver(table), x_T, cond, **options)[0]


# ---------------------------------------------------------------- order of convergence

FINE = schedule.vp_sde(2**14)  # levels fine enough that a grid of 256 steps can be equal in log-SNR


@jax.tree_util.Partial
def two_peaks(x_t, level, cond):
  """E[x_0 | x_t] of N(-1, 0.3^2) and N(1, 0.3^2), half each, in float64 (the levels' own alphas are float32)."""
  alpha_bar = jnp.asarray(FINE.alpha_bar)[level.n]
  alpha = jnp.sqrt(alpha_bar)
  var = 0.09 * alpha_bar + 1 - alpha_bar
  mean = jnp.tanh(alpha * x_t / var)
  x0 = mean + 0.09 * alpha / var * (x_t - alpha * mean)
  return Prediction(x0, (x_t - alpha * x0) / jnp.sqrt(1 - alpha_bar))


def flowed(x_t, t, s):
  """Where the flow takes x_t [B]: in one dimension it keeps quantiles, so that no solver is needed."""

  def quantile(n, x):
    alpha = FINE.alpha_bar[n] ** 0.5
    std = (0.09 * alpha**2 + 1 - alpha**2) ** 0.5
    return 0.5 * norm.cdf((x - alpha) / std) + 0.5 * norm.cdf((x + alpha) / std)

  return np.array([brentq(lambda y, q=quantile(t, x): quantile(s, y) - q, -9, 9, xtol=1e-14) for x in x_t])


STEPS = (16, 32, 64, 128)
X_T = np.array([-1.3, -0.4, 0.25, 0.9])


@pytest.fixture(scope="module")
def truth():
  """(grids of equal log-SNR, the solution at their common end)."""
  top = 2**14
  end = 2**8
  levels = [np.linspace(*FINE.log_snr[[top, end]], K + 1) for K in STEPS]
  grids = [np.abs(FINE.log_snr[1:] - wanted[:, None]).argmin(1) + 1 for wanted in levels]
  return grids, flowed(X_T, top, end)


# Slopes in theory 1, 2, 2, 2, 3, and one more than its predictor's for UniPC, thanks to the corrector. Measured here: 1.03,
# 2.09, 1.95, 2.10, 3.49, 1.93, 3.08, 3.15, 3.81. 3M and UniPC-3 begin with steps of lower order, but at log-SNR -5, where
# beliefs hardly move; that their slopes are uneven comes from errors of both signs. DEIS: in time 1.91, 2.90 and 3.13 (3.4
# between the two finest grids), in rho 1.85, 2.59 and 3.31 (3.7 between the two finest).
@pytest.mark.parametrize(
  "name, low, high",
  [
    ("1", 0.9, 1.1),
    ("2M", 1.85, 2.25),
    ("2S", 1.85, 2.25),
    ("heun", 1.85, 2.25),
    ("3M", 2.9, 3.6),
    ("unipc1", 1.85, 2.25),
    ("unipc2", 2.9, 3.3),
    ("unipc2-bh1", 2.9, 3.3),
    ("unipc3", 3.5, 4.2),
    ("deis2", 1.8, 2.1),
    ("deis3", 2.7, 3.1),
    ("deis4", 3.0, 4.2),
    ("deis2-rho", 1.7, 2.1),
    ("deis3-rho", 2.4, 3.1),
    ("deis4-rho", 3.1, 4.2),
  ],
)
def test_order_of_convergence(truth, name, low, high):
  grids, solution = truth
  with jax.enable_x64(True):
    x_T = jnp.asarray(X_T).reshape(4, 1, 1, 1)
    tables = [TABLES[name](FINE, g, dtype=np.float64, **final_orders(name)) for g in grids]
    errors = [np.abs(np.asarray(run(table, x_T, two_peaks)).ravel() - solution).max() for table in tables]
  slope = -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]
  assert low < slope < high, errors


# ---------------------------------------------------------------- the same formulas, as the papers write them


class Paper:
  """float64 loops with the papers' ifs; x0(x, n) is the belief at level n."""

  def __init__(self, levels, x0):
    self.alpha = np.sqrt(levels.alpha_bar)
    self.sigma = np.sqrt(1 - levels.alpha_bar)
    with np.errstate(divide="ignore"):
      self.lam = np.log(self.alpha) - np.log(self.sigma)
    self.x0 = x0

  def ddim(self, x, D, t, s):
    if s == 0:
      return D
    h = self.lam[s] - self.lam[t]
    return self.sigma[s] / self.sigma[t] * x - self.alpha[s] * (math.exp(-h) - 1) * D

  def multistep(self, x, levels, order):
    lam = self.lam
    D = []
    for i in range(len(levels) - 1):
      t = levels[i]
      s = levels[i + 1]
      D.append(self.x0(x, t))
      p = min(order, i + 1, len(levels) - 1 - i)
      if p == 1:
        x = self.ddim(x, D[-1], t, s)
        continue
      h = lam[s] - lam[t]
      h_0 = lam[t] - lam[levels[i - 1]]
      if p == 2:
        r = h_0 / h
        x = self.ddim(x, (1 + 1 / (2 * r)) * D[-1] - 1 / (2 * r) * D[-2], t, s)
        continue
      # order 3: the integral of e^(lambda) times the parabola, by quadrature
      past = [levels[i], levels[i - 1], levels[i - 2]]
      nodes, weights = np.polynomial.legendre.leggauss(20)
      at = lam[t] + h * (nodes + 1) / 2
      integral = 0
      for j in range(3):
        others = [k for k in range(3) if k != j]
        basis = np.prod([(at - lam[past[k]]) / (lam[past[j]] - lam[past[k]]) for k in others], axis=0)
        integral = integral + h / 2 * (weights * np.exp(at) * basis).sum() * D[-1 - j]
      x = self.sigma[s] / self.sigma[t] * x + self.sigma[s] * integral
    return x

  def singlestep(self, x, levels):
    pairs = (len(levels) - 2) // 2  # the last step, into level 0, is of first order
    for i in range(pairs):
      t, u, s = levels[2 * i : 2 * i + 3]
      h = self.lam[s] - self.lam[t]
      r = (self.lam[u] - self.lam[t]) / (self.lam[s] - self.lam[t])
      D_t = self.x0(x, t)
      D_u = self.x0(self.ddim(x, D_t, t, u), u)
      x = self.sigma[s] / self.sigma[t] * x - self.alpha[s] * np.expm1(-h) * ((1 - 1 / (2 * r)) * D_t + 1 / (2 * r) * D_u)
    for t, s in zip(levels[2 * pairs : -1], levels[2 * pairs + 1 :], strict=True):
      x = self.ddim(x, self.x0(x, t), t, s)
    return x

  def heun(self, x, levels):
    """EDM's algorithm 1 in x / alpha and sigma / alpha."""
    z = x / self.alpha[levels[0]]
    r = self.sigma / self.alpha
    for t, s in zip(levels[:-1], levels[1:], strict=True):
      d = (z - self.x0(z * self.alpha[t], t)) / r[t]
      z_s = z + (r[s] - r[t]) * d
      if s != 0:
        d_s = (z_s - self.x0(z_s * self.alpha[s], s)) / r[s]
        z_s = z + (r[s] - r[t]) * (d + d_s) / 2
      z = z_s
    return z

  def unipc(self, x, levels, order, variant):
    lam = self.lam
    D = [self.x0(x, levels[0])]
    for i in range(len(levels) - 1):
      t = levels[i]
      s = levels[i + 1]
      p = min(order, i + 1, len(levels) - 1 - i)
      if s == 0:
        return self.ddim(x, D[-1], t, s)
      h = lam[s] - lam[t]
      B = {"bh1": -h, "bh2": math.exp(-h) - 1}[variant]
      r = [(lam[levels[i - j]] - lam[t]) / h for j in range(1, p)]
      differences = [(D[-1 - j] - D[-1]) / r[j - 1] for j in range(1, p)]
      b = [math.factorial(k) * -h * phi(k + 1, -h) / B for k in range(1, p + 1)]
      base = self.ddim(x, D[-1], t, s)
      rho = {1: [], 2: [0.5]}.get(p)
      if rho is None:
        rho = np.linalg.solve([[q**k for q in r] for k in range(p - 1)], b[:-1])
      predicted = base - self.alpha[s] * B * sum(w * d for w, d in zip(rho, differences, strict=True))
      D.append(self.x0(predicted, s))
      r = [*r, 1.0]
      differences = [*differences, D[-1] - D[-2]]
      rho = [0.5] if p == 1 else np.linalg.solve([[q**k for q in r] for k in range(p)], b)
      x = base - self.alpha[s] * B * sum(w * d for w, d in zip(rho, differences, strict=True))
    return x


def adams_bashforth(paper, x, levels, order, variable):
  """Multistep in eps: Lagrange polynomials in variable(rho) by quadrature, or None: the weights of equal steps."""
  rho = paper.sigma / paper.alpha
  u = x / paper.alpha[levels[0]]
  eps = []
  for i in range(len(levels) - 2):
    t = levels[i]
    s = levels[i + 1]
    eps.append((u - paper.x0(u * paper.alpha[t], t)) / rho[t])
    past = levels[max(0, i - order + 1) : i + 1][::-1]
    if variable is None:
      table = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
      weights = (rho[s] - rho[t]) * np.array(table[len(past)])
    else:
      nodes = variable(rho[past])
      basis = [np.poly1d(np.poly(np.delete(nodes, j))) / np.prod(nodes[j] - np.delete(nodes, j)) for j in range(len(past))]
      weights = [quad(lambda r, b=b: b(variable(r)), rho[t], rho[s], epsabs=1e-13, epsrel=1e-12)[0] for b in basis]
    u = u + sum(w * e for w, e in zip(weights, eps[::-1], strict=False))
  return paper.x0(u * paper.alpha[levels[-2]], levels[-2])


def vp_time(rho):
  """When a process with beta(t) = 0.1 + 19.9 t reaches sigma / alpha = rho."""
  return (-0.1 + np.sqrt(0.01 + 2 * 19.9 * np.log1p(rho**2))) / 19.9


def phi(k, z):
  """The functions of exponential integrators, phi_k(z) = sum over j of z^j / (j + k)!."""
  return sum(z**j / math.factorial(j + k) for j in range(80))


def belief(x, n):
  """two_peaks in NumPy."""
  alpha = FINE.alpha_bar[n] ** 0.5
  var = 1 - 0.91 * FINE.alpha_bar[n]
  mean = np.tanh(alpha * x / var)
  return mean + 0.09 * alpha / var * (x - alpha * mean)


PAPER = {
  "1": lambda paper, x, g: paper.multistep(x, g, 1),
  "2M": lambda paper, x, g: paper.multistep(x, g, 2),
  "3M": lambda paper, x, g: paper.multistep(x, g, 3),
  "2S": lambda paper, x, g: paper.singlestep(x, g),
  "heun": lambda paper, x, g: paper.heun(x, g),
  "unipc1": lambda paper, x, g: paper.unipc(x, g, 1, "bh2"),
  "unipc2": lambda paper, x, g: paper.unipc(x, g, 2, "bh2"),
  "unipc3": lambda paper, x, g: paper.unipc(x, g, 3, "bh2"),
  "unipc2-bh1": lambda paper, x, g: paper.unipc(x, g, 2, "bh1"),
  "ipndm4": lambda paper, x, g: adams_bashforth(paper, x, g, 4, None),
  "deis2": lambda paper, x, g: adams_bashforth(paper, x, g, 2, vp_time),
  "deis3": lambda paper, x, g: adams_bashforth(paper, x, g, 3, vp_time),
  "deis4": lambda paper, x, g: adams_bashforth(paper, x, g, 4, vp_time),
  "deis2-rho": lambda paper, x, g: adams_bashforth(paper, x, g, 2, lambda rho: rho),
  "deis3-rho": lambda paper, x, g: adams_bashforth(paper, x, g, 3, lambda rho: rho),
  "deis4-rho": lambda paper, x, g: adams_bashforth(paper, x, g, 4, lambda rho: rho),
}


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("spacing", ["even", "uneven"])
def test_tables_are_the_papers_formulas(name, spacing):
  g = {"even": grid.log_snr(FINE, 9), "uneven": np.array([16384, 12000, 11000, 7000, 4000, 900, 400, 3, 0])}[spacing]
  with jax.enable_x64(True):
    ours = run(TABLES[name](FINE, g, dtype=np.float64), jnp.asarray(X_T).reshape(4, 1, 1, 1), two_peaks)
  theirs = PAPER[name](Paper(FINE, belief), X_T, list(g))
  np.testing.assert_allclose(np.asarray(ours).ravel(), theirs, rtol=0, atol=1e-10)  # float64; quadrature in 3M


# ---------------------------------------------------------------- relations to what is known


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_is_deis_where_steps_are_equal(order):
  even = schedule.Schedule(1 / (1 + (0.1 * np.arange(41)) ** 2))  # sigma / alpha = n / 10
  tables = [make(even, np.arange(40, -1, -4), order, dtype=np.float64) for make in (adams.ipndm, adams.rho_ab)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), *tables)  # float64, weights below 10


def test_first_order_is_ddim():
  g = grid.uniform(1000, 10)
  x_T = jnp.linspace(-2, 2, 5).reshape(5, 1, 1, 1)
  ddim = GaussianSampler(steps.gaussian(S, g, eta=0.0), ReverseKernel())
  theirs = sample(noise.image_keys(np.arange(5)), MIXTURE, ddim, x_T)[0]
  np.testing.assert_allclose(run(TABLES["1"](S, g), x_T), theirs, atol=1e-5)  # rounding of numbers below 3, 10 steps


def test_first_order_sde_is_ddpm():
  g = grid.uniform(1000, 10)
  ours = TABLES["sde1"](S, g)
  theirs = steps.gaussian(S, g)
  # mean = c_x0 x0 + c_eps (x - alpha x0) / sigma
  c_x = theirs.c_eps / theirs.t.sigma
  np.testing.assert_allclose(ours.next_a, c_x, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(ours.next_x0[:, 0], theirs.c_x0 - theirs.t.alpha * c_x, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(ours.std, np.sqrt(theirs.var), rtol=1e-5)


@pytest.mark.parametrize("name", ["sde1", "sde2M"])
def test_sde_draws_from_gaussian_data(name):
  data = Mixture(np.float32([1]), np.float32([0.5]), np.float32([0.25]))
  count = 4096
  keys = noise.image_keys(np.arange(count))
  table = TABLES[name](S, grid.log_snr(S, 80))
  x = sample(keys, data, Solver(table), noise.PerImage(keys).initial((1, 1, 1)))[0]
  assert abs(x.mean() - 0.5) < 5 * 0.5 / count**0.5  # 5 standard errors
  # 5 standard errors, and 80 steps of what is of first order in the noise: measured 0.03 and 0.004
  assert abs(x.var() / 0.25 - 1) < 5 * (2 / count) ** 0.5 + (0.05 if name == "sde1" else 0.02)


@pytest.mark.parametrize("name, ddim_steps", [("2M", 50), ("3M", 100), ("unipc2", 100)])
def test_twenty_fast_steps_beat_many_of_ddim(name, ddim_steps):
  """Measured: 2M 0.024, 3M 0.010, UniPC-2 0.008; DDIM 0.036 with 50 steps and 0.017 with 100."""
  solution = flowed(X_T, 2**14, 1)

  def error(name, K):
    table = TABLES[name](FINE, grid.log_snr(FINE, K), dtype=np.float64)
    return np.abs(np.asarray(run(table, jnp.asarray(X_T).reshape(4, 1, 1, 1), two_peaks)).ravel() - solution).max()

  with jax.enable_x64(True):
    assert error(name, 20) < error("1", ddim_steps)


def test_inversion_of_second_order_returns_closer():
  up = grid.log_snr(S, 20)[-2::-1]
  x_0 = MIXTURE.sample(jax.random.key(0), (8, 1, 1, 1))

  def round_trip(name):
    x_T = run(TABLES[name](S, up), x_0)
    return jnp.abs(run(TABLES[name](S, np.append(up[::-1], 0)), x_T) - x_0).max()

  assert round_trip("2M") < 0.5 * round_trip("1")


# ---------------------------------------------------------------- ends, grids and networks


@pytest.mark.parametrize("name", TABLES)
def test_ends_in_the_last_belief_and_is_finite_everywhere(name):
  """Also from pure noise, where log-SNR is -infinity, and with very few steps."""
  x_T = jnp.linspace(-2, 2, 5).reshape(5, 1, 1, 1)
  for levels in (S, schedule.cosine(50), schedule.jsd(50)):
    for g in (np.array([levels.T, 0]), np.array([levels.T, 5, 0]), np.array([levels.T, 9, 4, 1, 0])):
      table = TABLES[name](levels, g)
      assert all(np.isfinite(column).all() for column in jax.tree.leaves(table)), (levels.T, g)
      assert table.next_a[-1] == 0 and table.anchor_a.shape == table.left.shape
      np.testing.assert_array_equal(table.next_x0[-1], np.eye(table.next_x0.shape[1])[0])
  x, x0 = sample(noise.image_keys(np.arange(5)), MIXTURE, Solver(table), x_T, save=belief_of)
  np.testing.assert_array_equal(x, x0[-1])


def belief_of(x, pred):
  return pred.x0


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_evaluations_of_the_network(name):
  g = grid.karras(S, 7)
  corrected = np.insert(g[:-1], np.arange(2, 8), g[1:-1]) if name == "heun" else g[:-1]  # twice at every level but the first
  np.testing.assert_array_equal(TABLES[name](S, g).t.n, corrected)


@pytest.mark.parametrize("name", ["3M", "2S", "heun", "unipc3", "sde2M"])
def test_guided_networks_with_a_learned_variance(name):
  """Guidance and clipping act, a second head does not; images do not depend on their batch; other grids compile nothing."""
  traces = []

  def heads(params, x, time, cond):
    traces.append(0)
    return jnp.concatenate([jnp.sin(x + cond["label"][:, None, None, None]), 100 * x], axis=-1)

  def images(grid_of_7, apply=heads, parameterization=TwoHeads.named(Eps(), "range"), count=2):
    guided = ClipX0(ClassifierFree(Network(None, apply, parameterization), 2.0, {"label": 3}))
    x_T = jnp.linspace(-2, 2, 4).reshape(2, 1, 1, 2)
    cond = {"label": jnp.asarray([0, 2])}
    return run(TABLES[name](S, grid_of_7(S, 7)), x_T[:count], guided, jax.tree.map(lambda a: a[:count], cond))

  x = images(grid.log_snr)
  images(grid.karras)
  assert len(traces) == 1
  np.testing.assert_allclose(x, images(grid.log_snr, lambda *inputs: heads(*inputs)[..., :2], Eps()), atol=1e-6)
  np.testing.assert_allclose(x[:1], images(grid.log_snr, count=1), atol=1e-6)


def test_bad_choices_are_refused():
  g = grid.uniform(1000, 5)
  for build, match in [
    (lambda: dpm_solver.multistep(S, g, 4), "orders 1, 2 and 3"),
    (lambda: dpm_solver.multistep(S, g, 3, sde=True), "SDE form 1 and 2"),
    (lambda: dpm_solver.multistep(S, g[-2::-1], 2, sde=True), "without noise"),
    (lambda: unipc(S, g, 2, variant="bh3"), "bh3"),
    (lambda: heun(S, np.array([10, 10, 0])), "strictly"),
    (lambda: dpm_solver.singlestep(S, np.array([0, 10])), "level 0"),
  ]:
    with pytest.raises(UserError, match=match):
      build()
