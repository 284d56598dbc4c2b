"""iPNDM and DEIS: multistep solvers that interpolate the predicted noise instead of the predicted image.

In u = x / alpha and rho = sigma / alpha the flow is du / drho = eps. With the noise eps_0 predicted at t and eps_1, ...
at the levels before, a step is a linear multistep (Adams-Bashforth) formula

    x_s / alpha_s = x_t / alpha_t + sum_j c_j eps_j,            eps_j = (x - alpha x0) / sigma at its level           (1)

    iPNDM     c_j = (rho_s - rho_t) times the classical weights of equal steps      (Zhang & Chen 2022, arXiv 2204.13902)
    rhoAB     c_j = int_{rho_t}^{rho_s} l_j(rho) drho                     l_j: the Lagrange polynomials in rho
    tAB       c_j = int_{rho_t}^{rho_s} l_j(t(rho)) drho                  l_j: those in time                    (DEIS)

tAB's time is that of a variance-preserving process with beta(t) = start + (end - start) t, at the same noise. One prediction
alone gives c_0 = rho_s - rho_t, which is DDIM. iPNDM has its nominal order only where steps are equal in rho. With few
evaluations and unequal steps it can still be the most accurate of the three (docs/methods/solvers.md).
"""

from collections.abc import Callable

import numpy as np

from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.diffusion.solvers import SolverSteps, first_order, orders
from ddpm_jax.diffusion.steps import check
from ddpm_jax.errors import UserError

EQUAL_STEPS = {  # number of predictions -> Adams-Bashforth weights
  1: np.array([1.0]),
  2: np.array([3, -1]) / 2,
  3: np.array([23, -16, 5]) / 12,
  4: np.array([55, -59, 37, -9]) / 24,
}


def ipndm(
  schedule: Schedule, grid: np.ndarray, order: int = 4, *, lower_order_final: bool = True, dtype: type = np.float32
) -> SolverSteps:
  """iPNDM of order 1 to 4 along `grid`, one evaluation of the network per step.

  Args:
    schedule: the noise levels.
    grid: [K+1] strictly monotone levels, usually T ... 0.
    order: the largest number of predictions in a step. The first steps have fewer.
    lower_order_final: take the step into level 0 with the last prediction alone.
    dtype: of the weights; float64 shows the order of convergence.

  Raises:
    UserError: for another order, or a grid that repeats a level.
  """
  return _table(schedule, grid, order, lambda rho, s: (s - rho[0]) * EQUAL_STEPS[len(rho)], lower_order_final, dtype)


def rho_ab(
  schedule: Schedule, grid: np.ndarray, order: int = 3, *, lower_order_final: bool = True, dtype: type = np.float32
) -> SolverSteps:
  """DEIS in rho, the Adams-Bashforth formula of unequal steps. The arguments are those of `ipndm`."""
  return _table(schedule, grid, order, lambda rho, s: _integrals(rho, rho, s, lambda at: at), lower_order_final, dtype)


def t_ab(
  schedule: Schedule,
  grid: np.ndarray,
  order: int = 3,
  *,
  beta: tuple[float, float] = (0.1, 20.0),
  lower_order_final: bool = True,
  dtype: type = np.float32,
) -> SolverSteps:
  """DEIS in time. `beta` are the start and end that define it; the other arguments are those of `ipndm`."""
  start = beta[0]
  rise = beta[1] - beta[0]

  def time(rho: np.ndarray) -> np.ndarray:
    log_alpha_bar = -np.log1p(rho**2)  # = -(rise t^2 / 2 + start t)
    return (np.sqrt(start**2 - 2 * rise * log_alpha_bar) - start) / rise

  return _table(schedule, grid, order, lambda rho, s: _integrals(time(rho), rho, s, time), lower_order_final, dtype)


def _table(
  schedule: Schedule,
  grid: np.ndarray,
  order: int,
  weights: Callable[[np.ndarray, float], np.ndarray],
  lower_order_final: bool,
  dtype: type,
) -> SolverSteps:
  """The table of (1). weights(rho of the predictions, newest first [p]; rho_s) -> c [p]."""
  grid = check(schedule, grid)
  if order not in EQUAL_STEPS:
    raise UserError(f"iPNDM and DEIS have orders 1 to 4, not {order}.")
  t = grid[:-1]
  s = grid[1:]
  alpha = np.sqrt(schedule.alpha_bar)
  sigma = np.sqrt(1 - schedule.alpha_bar)
  steps = first_order(schedule, t, s, predictions=order)
  # Rows out of pure noise or into an image are (1) of solvers.py and keep x0. All others keep eps.
  kept_x = np.zeros(len(t))
  kept_x0 = np.ones(len(t))
  log_snr = schedule.log_snr[grid]
  for k, p in enumerate(orders(log_snr, order, lower_order_final=False, image=not lower_order_final)):
    if not np.isfinite(log_snr[k]) or (s[k] == 0 and lower_order_final):
      continue
    past = grid[k - p + 1 : k + 1][::-1]
    rho = sigma[past] / alpha[past]
    kept_x[k] = 1 / sigma[t[k]]
    kept_x0[k] = -alpha[t[k]] / sigma[t[k]]
    steps.next_a[k] = alpha[s[k]] / alpha[t[k]]
    steps.next_x0[k] = 0
    steps.next_x0[k, :p] = alpha[s[k]] * weights(rho, sigma[s[k]] / alpha[s[k]])
  return steps.replace(kept_x=kept_x, kept_x0=kept_x0).rounded(dtype)


def _integrals(nodes: np.ndarray, rho: np.ndarray, end: float, variable: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
  """The integrals over rho[0] ... end of the Lagrange polynomials at `nodes` [p], as functions of variable(rho), [p]."""
  points, weights = np.polynomial.legendre.leggauss(64)
  # rho = sinh(w): every noise level becomes a finite, smooth piece of w
  first = np.arcsinh(rho[0])
  last = np.arcsinh(end)
  w = first + (last - first) * (points + 1) / 2
  at = variable(np.sinh(w))
  measure = (last - first) / 2 * weights * np.cosh(w)
  found = []
  for j, node in enumerate(nodes):
    others = np.delete(nodes, j)
    found.append((measure * np.prod((at[:, None] - others) / (node - others), axis=1)).sum())
  return np.array(found)
