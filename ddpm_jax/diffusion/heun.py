"""Heun's and the midpoint method on the probability flow (Karras et al. 2022, arXiv 2206.00364), for our levels.

In the coordinates x / alpha and r = sigma / alpha, the flow is d(x / alpha) / dr = eps, and a step is

    x_s / alpha_s = x_t / alpha_t + (r_s - r_t) eps_t                           (Euler, which is DDIM, (1) of solvers.py)
    x_s / alpha_s = x_t / alpha_t + (r_s - r_t) (eps_t + eps_s) / 2             (Heun: corrected with eps_s at Euler's x_s)
    x_s / alpha_s = x_t / alpha_t + (r_s - r_t) eps_m                           (midpoint: eps_m at Euler's x_m)

with eps = (x - alpha x0) / sigma. Heun's is algorithm 1.

The correction assumes that eps is linear in r. Where r changes by more than a factor of two per step, it overshoots, and
two Euler steps of half the length are better for the same two evaluations. On the log-SNR grid of DDPM's linear schedule
that is the case below 30 evaluations.

The stochastic sampler (algorithm 2) first adds noise, which raises r to r (1 + gamma), and steps from there. The raised
level is the nearest of the schedule, so this needs dense levels, such as T = 1000. EDM's code rounds in the same way for
networks of discrete levels.
"""

import numpy as np

from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.diffusion.solvers import SolverSteps, first_order
from ddpm_jax.diffusion.steps import check
from ddpm_jax.errors import UserError


def heun(
  schedule: Schedule,
  grid: np.ndarray,
  *,
  churn: float = 0.0,
  churn_min: float = 0.0,
  churn_max: float = np.inf,
  churn_noise: float = 1.0,
  dtype: type = np.float32,
) -> SolverSteps:
  """Heun's method along `grid`: two rows and evaluations per step, but one (Euler) into level 0.

  Args:
    schedule: the noise levels.
    grid: [K+1] strictly monotone levels, usually T ... 0.
    churn: S_churn; gamma = min(churn / K, sqrt(2) - 1). 0 is the deterministic sampler. The first step adds no noise,
      because the schedule has no level above its last.
    churn_min, churn_max: S_tmin and S_tmax, the noise levels r between which noise is added.
    churn_noise: S_noise, the standard deviation of the added noise relative to what the level requires.
    dtype: of the weights; float64 shows the order of convergence.

  Returns:
    A table of 2 K rows, less one for the step into level 0 (and one for a step out of pure noise, where eps does not
    determine x_0).

  Raises:
    UserError: for a negative churn, churn on a grid that ascends, or one that asks for levels far from the schedule's.
  """
  grid = check(schedule, grid)
  finite = np.isfinite(schedule.log_snr[grid])
  corrected = finite[:-1] & finite[1:]
  step = np.repeat(np.arange(len(corrected)), 1 + corrected)  # of each row
  corrects = np.append(False, step[1:] == step[:-1])
  start = _churned(schedule, grid, churn, churn_min, churn_max)
  t = start[step]
  s = grid[1:][step]
  steps = first_order(schedule, np.where(corrects, s, t), s, anchor=2)
  alpha = np.sqrt(schedule.alpha_bar)
  sigma = np.sqrt(1 - schedule.alpha_bar)
  with np.errstate(divide="ignore", invalid="ignore"):  # rows without a correction
    half = alpha[s] * (sigma[s] / alpha[s] - sigma[t] / alpha[t]) / 2
    weights = dict(
      x=half / sigma[s],
      a=alpha[s] / alpha[t] + half / sigma[t],
      x0_s=-half * alpha[s] / sigma[s],
      x0_t=-half * alpha[t] / sigma[t],
    )
  weights = {name: np.where(corrects, weight, name == "x") for name, weight in weights.items()}
  steps = steps.replace(
    anchor_x=weights["x"], anchor_a=weights["a"], anchor_x0=np.stack([weights["x0_s"], weights["x0_t"]], axis=1)
  )
  if churn:
    ends = np.append(step[1:] != step[:-1], False)  # rows after which another step starts
    raised = np.where(ends, np.append(start, 0)[step + 1], s)
    steps = _with_noise(schedule, steps, s, raised, churn_noise)
  return steps.rounded(dtype)


def _churned(schedule: Schedule, grid: np.ndarray, churn: float, least: float, most: float) -> np.ndarray:
  """The level from which each step starts, int [K]: the nearest to r (1 + gamma), but not below the grid's."""
  start = grid[:-1]
  if not churn:
    return start
  if churn < 0 or (np.diff(grid) > 0).any():
    raise UserError(f"Heun's churn = {churn:g} must be at least 0, and 0 where the grid ascends, as in encoding.")
  r = schedule.noise_to_signal
  gamma = min(churn / len(start), np.sqrt(2) - 1)
  wanted = np.where((least <= r[start]) & (r[start] <= most), r[start] * (1 + gamma), r[start])
  finite = np.flatnonzero(np.isfinite(r))
  above = np.clip(np.searchsorted(r[finite], wanted), 1, len(finite) - 1)
  nearest = finite[above - (wanted - r[finite[above - 1]] < r[finite[above]] - wanted)]
  missed = (np.abs(r[nearest] - wanted) > gamma / 2 * r[start])[1:]
  if missed.any():
    raise UserError(
      f"sampling.churn = {churn:g} needs noise levels that this schedule of T = {schedule.T} does not have, such as "
      f"sigma = {wanted[1:][missed][0]:.3g}. Set schedule.T=1000 and sampling.grid=karras with sampling.steps."
    )
  return np.append(start[0], np.maximum(start, nearest)[1:])


def _with_noise(schedule: Schedule, steps: SolverSteps, s: np.ndarray, raised: np.ndarray, scale: float) -> SolverSteps:
  """Rows that land at `s` and then add noise up to the level `raised`, both [rows]; S_noise is `scale`."""
  ratio = schedule.alpha_bar[raised] / schedule.alpha_bar[s]
  keep = np.sqrt(ratio)
  return steps.replace(
    s=schedule.level(raised),
    next_a=steps.next_a * keep,
    next_x0=steps.next_x0 * keep[:, None],
    std=scale * np.sqrt(1 - ratio),
  )


def midpoint(schedule: Schedule, grid: np.ndarray, *, dtype: type = np.float32) -> SolverSteps:
  """The midpoint method along `grid`, with two evaluations per step; k-diffusion's DPM-2.

  The middle level m is the schedule's nearest to r_m^(1/3) = (r_t^(1/3) + r_s^(1/3)) / 2, as in consistency_models. A step
  between neighboring levels, and one out of pure noise, is Euler's, with one evaluation.

  Args:
    schedule: the noise levels.
    grid: [K+1] strictly monotone levels, usually T ... 0.
    dtype: of the weights; float64 shows the order of convergence.
  """
  grid = check(schedule, grid)
  r = schedule.noise_to_signal
  middle = ((np.cbrt(r[grid[:-1]]) + np.cbrt(r[grid[1:]])) / 2) ** 3
  m = np.abs(r[1:, None] - np.where(np.isfinite(middle), middle, 0)).argmin(0) + 1
  split = np.isfinite(middle) & (np.minimum(grid[:-1], grid[1:]) < m) & (m < np.maximum(grid[:-1], grid[1:]))
  step = np.repeat(np.arange(len(split)), 1 + split)  # of each row
  second = np.append(False, step[1:] == step[:-1])
  m = m[step]
  t = grid[:-1][step]
  s = grid[1:][step]
  steps = first_order(schedule, np.where(second, m, t), np.where(split[step] & ~second, m, s), anchor=1)
  alpha = np.sqrt(schedule.alpha_bar)
  with np.errstate(invalid="ignore"):  # rows out of pure noise
    moved = np.where(second, alpha[s] * (r[s] - r[t]) / np.sqrt(1 - schedule.alpha_bar[m]), 0)
  return steps.replace(
    anchor_x=np.where(second, moved, 1),
    anchor_a=np.where(second, alpha[s] / alpha[t], 0),
    anchor_x0=np.where(second, -moved * alpha[m], 0)[:, None],
    next_a=np.where(second, 1, steps.next_a),
    next_x0=np.where(second[:, None], 0, steps.next_x0),
  ).rounded(dtype)
