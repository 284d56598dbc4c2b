"""iPNDM, DEIS and DPM-Solver-v3 against their authors' code, in float64: zju-pi/diff-sampler and thu-ml/DPM-Solver-v3."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import coupled

from ddpm_jax.diffusion import adams, dpm_solver, noise, schedule
from ddpm_jax.diffusion.dpm_solver_v3 import Statistics, dpm_solver_v3
from ddpm_jax.diffusion.prediction import Prediction
from ddpm_jax.diffusion.samplers import sample
from ddpm_jax.diffusion.solvers import Solver

S = schedule.linear(1000)


@jax.tree_util.Partial
def denoiser(x, level, cond=None):
  """`coupled` as a denoiser in float64 (the levels' own alphas are float32)."""
  alpha_bar = jnp.asarray(S.alpha_bar)[level.n]
  eps = coupled(x, level.n - 1.0)
  return Prediction((x - jnp.sqrt(1 - alpha_bar) * eps) / jnp.sqrt(alpha_bar), eps)


def last_state(table, x_T):
  return np.asarray(sample(noise.image_keys(np.arange(len(x_T))), denoiser, Solver(table), jnp.asarray(x_T))[0])


# The authors' variable-step iPNDM is rhoAB at order 2. At orders 3 and 4 a slip of operator precedence makes it another
# method, without its order; there we have rhoAB only.
EDM_BETA = (-0.004715818328307364, 17.533134832612316)  # of the time that they fit to EDM's levels
SOLVERS = {
  "ipndm": adams.ipndm,
  "ipndm_v": adams.rho_ab,
  "deis_rhoab": adams.rho_ab,
  "deis_tab/vp_linear": adams.t_ab,
  "deis_tab/edm_default": functools.partial(adams.t_ab, beta=EDM_BETA),
}
# The authors' float64 runs. For tAB they integrate by a sum over 400,000 points, hence 5e-5, as the index says. The ends of
# their time in "vp_linear" differ from 0.1 and 20 by 5e-5.
TOLERANCE = {"ipndm": 1e-9, "ipndm_v": 1e-9, "deis_rhoab": 1e-9, "deis_tab/vp_linear": 5e-5, "deis_tab/edm_default": 5e-5}


def sums_in_edm_time(nodes, rho, end, variable):
  """The authors' integrals: means over 10,000 points of time with both ends, 1 / 10,000 away from ours.

  Their runs in "vp_linear", which also exist with 400,000 points, show what this costs: up to 8e-4 in the images.
  """
  if len(nodes) == 1:
    return np.array([end - rho[0]])  # their first step is Euler's
  start = EDM_BETA[0]
  rise = EDM_BETA[1] - start
  time = np.linspace(variable(rho[0]), variable(end), 10_000)
  growth = np.exp(rise * time**2 / 2 + start * time)  # 1 + rho^2
  speed = growth * (rise * time + start) / 2 / np.sqrt(growth - 1)
  others = [np.delete(nodes, j) for j in range(len(nodes))]
  parts = [np.prod((time[:, None] - rest) / (node - rest), axis=1) for node, rest in zip(nodes, others, strict=True)]
  return np.array([(speed * part).mean() * (time[-1] - time[0]) for part in parts])


@pytest.mark.parametrize("K", ["K5", "K8", "K12", "K8_to0"])
@pytest.mark.parametrize("name", SOLVERS)
def test_multistep_in_eps(golden, monkeypatch, name, K):
  if name == "deis_tab/edm_default":
    monkeypatch.setattr(adams, "_integrals", sums_in_edm_time)
  numbers = golden("methods_solvers")
  grid = numbers[f"multistep/levels/{K.removesuffix('_to0')}/t"] + 1
  if K.endswith("_to0"):
    grid = np.append(grid, 0)
  orders = [order for order in (2, 3, 4) if f"multistep/{name}/order{order}/{K}" in numbers.arrays.files]
  with jax.enable_x64(True):
    for order in orders:
      table = SOLVERS[name](S, grid, order, lower_order_final=False, dtype=np.float64)
      theirs = numbers[f"multistep/{name}/order{order}/{K}"]
      np.testing.assert_allclose(last_state(table, numbers["multistep/x_T"]), theirs, rtol=0, atol=TOLERANCE[name])
  assert orders or (name.startswith("deis_tab") and K == "K8_to0")


# ---------------------------------------------------------------- DPM-Solver-v3

OPTIONS = {  # as the groups are named
  "pred": dict(corrector=False),
  "corr": dict(),
  "pred_pseudo": dict(corrector=False, pseudo=True, lower_order_final=False),
  "corr_pseudo": dict(pseudo=True, pseudo_corrector=True, lower_order_final=False),
}


def of_level(x, level, cond, alpha_bar, time):
  """`coupled` at levels between the integer ones: level n has alpha_bar[n] and the network's time[n]."""
  alpha_bar = alpha_bar[level.n]
  eps = coupled(x, time[level.n])
  return Prediction((x - jnp.sqrt(1 - alpha_bar) * eps) / jnp.sqrt(alpha_bar), eps)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("K", ["K5", "K8", "K12"])
@pytest.mark.parametrize("name", [*OPTIONS, "degenerated"])
def test_dpm_solver_v3(golden, name, K, order):
  """Level i of a schedule that holds the authors' levels alone, from the noisiest, K + 1, to 1."""
  numbers = golden("methods_solvers")
  group = f"v3/{name}/order{order}/{K}"
  if group not in numbers.arrays.files:
    pytest.skip("the authors' run does not exist")
  alpha, time = (numbers[f"v3/levels/{K}/{what}"] for what in ("alpha", "t_model"))
  levels = schedule.Schedule(np.append(1.0, alpha[::-1] ** 2))
  found = Statistics(numbers["v3/integrals/lambda_grid"], *(numbers[f"v3/{letter}"] for letter in "lsb"))
  if name == "degenerated":
    found = Statistics(found.log_snr, np.ones_like(found.l), 0 * found.s, 0 * found.b)
  with jax.enable_x64(True):
    options = OPTIONS.get(name, dict(corrector=False))
    table = dpm_solver_v3(levels, np.arange(len(alpha), 0, -1), order, found, dtype=np.float64, **options)
    network = jax.tree_util.Partial(of_level, alpha_bar=levels.alpha_bar, time=np.append([0, 0], time[::-1]))
    x = sample(noise.image_keys(np.arange(2)), network, Solver(table), jnp.asarray(numbers["v3/x_T"]))[0]
  # both in float64
  np.testing.assert_allclose(np.asarray(x), numbers[group], rtol=0, atol=1e-9 * np.abs(numbers[group]).max())


@pytest.mark.parametrize("order, rows", [(1, slice(0, 7)), (3, slice(2, 7))])
def test_without_statistics_it_is_dpm_solver(order, rows):
  """2M's formula approximates an integral that is exact here; orders 1 and 3 agree, where the rows have that order."""
  grid = np.array([1000, 700, 450, 300, 200, 110, 50, 20, 0])
  fine = Statistics(np.linspace(-6, 6, 20_001), np.ones(20_001), np.zeros(20_001), np.zeros(20_001))
  options = dict(lower_order_final=False, dtype=np.float64)
  v3 = dpm_solver_v3(S, grid, order, fine, corrector=False, **options)
  plain = dpm_solver.multistep(S, grid, order, **options)
  np.testing.assert_allclose(v3.next_a, plain.next_a, rtol=1e-12)
  # f is -x0; the sums are over points 6e-4 apart
  np.testing.assert_allclose(-v3.next_x0[rows], plain.next_x0[rows], atol=1e-6)
  np.testing.assert_array_equal(v3.next_bias, 0)
