"""DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095): multistep of order 1 to 3, its SDE form, and single-step of order 2.

Let h = lambda_s - lambda_t, with predictions x0_0 at t and x0_1, x0_2 at the levels before. To (1) of solvers.py

    2M adds   alpha_s (1 - e^-h) D1 / 2,              D1 = (x0_0 - x0_1) / r_0                       (algorithm 2)
    3M adds   alpha_s (phi_2 D1 - phi_3 D2),          phi_1 = e^-h - 1, phi_2 = phi_1 / h + 1, phi_3 = phi_2 / h - 1 / 2

where r_j = (lambda difference between predictions j and j + 1) / h. D1 and D2 of 3M are the first two derivatives at t,
in units of h, of the parabola through the three predictions. (The authors' code and its descendants take half of this D2,
which is second order. At 256 steps its error on a problem with a known solution is 13 times larger.) From t to s through
a level u in between,

    2S adds   alpha_s (1 - e^-h) (x0_u - x0_t) / 2 r, r = (lambda_u - lambda_t) / h                  (algorithm 1)

The SDE form (appendix, SDE-DPM-Solver++) multiplies x_t by another e^-h, replaces 1 - e^-h by 1 - e^-2h, and adds noise
of variance sigma_s^2 (1 - e^-2h). At order 1 it is DDPM's posterior.
"""

import numpy as np

from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.diffusion.solvers import SolverSteps, first_order, orders
from ddpm_jax.diffusion.steps import check
from ddpm_jax.errors import UserError


def multistep(
  schedule: Schedule,
  grid: np.ndarray,
  order: int = 2,
  *,
  sde: bool = False,
  lower_order_final: bool = True,
  dtype: type = np.float32,
) -> SolverSteps:
  """DPM-Solver++ 1, 2M or 3M along `grid`, one evaluation of the network per step.

  Args:
    schedule: the noise levels.
    grid: [K+1] strictly monotone levels, usually T ... 0. A grid upwards from 1 gives the inversion.
    order: 1 (DDIM), 2 or 3.
    sde: use the SDE form, of order 1 or 2.
    lower_order_final: see solvers.orders.
    dtype: of the weights; float64 shows the order of convergence.

  Raises:
    UserError: for another order, a grid that repeats a level, or the SDE form on an upward grid.
  """
  grid = check(schedule, grid)
  if order not in (1, 2, 3) or (sde and order == 3):
    raise UserError(f"DPM-Solver++ multistep has orders 1, 2 and 3 (its SDE form 1 and 2), not {order}.")
  if sde and grid[1] > grid[0]:
    raise UserError("An upward grid inverts the flow without noise: use the solver without its SDE form.")
  t = grid[:-1]
  s = grid[1:]
  log_snr = schedule.log_snr[grid]
  steps = first_order(schedule, t, s, predictions=order)
  alpha_s = np.sqrt(schedule.alpha_bar[s])
  h = np.diff(log_snr)
  if sde:
    sigma_s = np.sqrt(1 - schedule.alpha_bar[s])
    gain = -np.expm1(-2 * h)
    steps.next_x0[:, 0] = alpha_s * gain
    steps = steps.replace(next_a=steps.next_a * np.exp(-h), std=sigma_s * np.sqrt(gain))
  x0 = np.eye(order)  # x0[j] are the weights of prediction j
  for k, p in enumerate(orders(log_snr, order, lower_order_final)):
    if p == 2:
      r = h[k - 1] / h[k]
      steps.next_x0[k] += steps.next_x0[k, 0] * (x0[0] - x0[1]) / r / 2
    if p == 3:
      r_0 = h[k - 1] / h[k]
      r_1 = h[k - 2] / h[k]
      slope = (x0[0] - x0[1]) / r_0
      D2 = 2 * (slope - (x0[1] - x0[2]) / r_1) / (r_0 + r_1)
      D1 = slope + r_0 * D2 / 2
      phi_2 = np.expm1(-h[k]) / h[k] + 1
      phi_3 = phi_2 / h[k] - 1 / 2
      steps.next_x0[k] += alpha_s[k] * (phi_2 * D1 - phi_3 * D2)
  return steps.rounded(dtype)


def cfg_multistep(schedule: Schedule, grid: np.ndarray, *, dtype: type = np.float32) -> SolverSteps:
  """DPM-Solver++ 2M for CFG++ (Chung et al. 2024, arXiv 2406.08070, in CFGpp-diffusion/CFGpp): the table for `Renoised`.

  With g the guided prediction of x_0, and w_0, w_1 the weak ones at t and at the level before, in the notation of 2M,

      x_s / alpha_s = g + e^-h (x_t / alpha_t - w_0) + (1 - e^-h) / 2 r (g - w_1)

  The first step and the one into level 0 leave out the last term, and are CFG++'s DDIM.

  Args:
    schedule: the noise levels.
    grid: [K+1] strictly decreasing levels.
    dtype: of the weights.

  Raises:
    UserError: for a grid that starts at pure noise, where x / alpha is infinite.
  """
  grid = check(schedule, grid)
  if schedule.alpha_bar[grid[0]] == 0:
    raise UserError('CFG++ of order 2 cannot start at pure noise: use sampling.solver = "gaussian", which is its DDIM.')
  t = grid[:-1]
  s = grid[1:]
  alpha = np.sqrt(schedule.alpha_bar)
  sigma = np.sqrt(1 - schedule.alpha_bar)
  h = np.diff(schedule.log_snr[grid])
  fall = np.exp(-h)
  bend = np.zeros(len(t))
  inner = np.isfinite(h) & np.isfinite(np.append(np.inf, h[:-1]))
  bend[inner] = (-np.expm1(-h) * h / np.append(np.inf, h[:-1]) / 2)[inner]
  steps = first_order(schedule, t, s, predictions=2)
  steps.next_x0[:, 0] = -alpha[s] * fall
  steps.next_x0[:, 1] = -alpha[s] * bend
  weak = dict(kept_x=1 / alpha[t], kept_x0=np.zeros(len(t)), kept_eps=-sigma[t] / alpha[t])
  return steps.replace(next_pred=alpha[s] * (1 + bend), **weak).rounded(dtype)


def singlestep(schedule: Schedule, grid: np.ndarray, *, dtype: type = np.float32) -> SolverSteps:
  """DPM-Solver++ 2S along `grid`. A step takes two evaluations and spans two levels of the grid.

  Steps that do not pair up are of first order: the last one, into level 0, and sometimes the one before.
  The arguments are those of `multistep`.
  """
  grid = check(schedule, grid)
  log_snr = schedule.log_snr[grid]
  steps = first_order(schedule, grid[:-1], grid[1:], predictions=2)
  sigma = np.sqrt(1 - schedule.alpha_bar[grid])
  finite = np.isfinite(log_snr)
  for t in range(np.argmax(finite), np.argmax(finite) + finite.sum() - 2, 2):
    u = t + 1
    s = t + 2
    h = log_snr[s] - log_snr[t]
    r = (log_snr[u] - log_snr[t]) / h
    steps.anchor_x[u] = 0
    steps.anchor_a[u] = 1
    steps.next_a[u] = sigma[s] / sigma[t]
    x0_u, x0_t = np.eye(2)
    steps.next_x0[u] = np.sqrt(schedule.alpha_bar[grid[s]]) * -np.expm1(-h) * (x0_t + (x0_u - x0_t) / (2 * r))
  return steps.rounded(dtype)
