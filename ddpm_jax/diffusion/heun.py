"""Heun's method on the probability flow (Karras et al. 2022, arXiv 2206.00364, algorithm 1), for variance-preserving levels.

In the coordinates x / alpha and r = sigma / alpha, the flow is d(x / alpha) / dr = eps, and a step is

    x_s / alpha_s = x_t / alpha_t + (r_s - r_t) eps_t                           (Euler, which is DDIM, (1) of solvers.py)
    x_s / alpha_s = x_t / alpha_t + (r_s - r_t) (eps_t + eps_s) / 2             (corrected with eps_s at Euler's x_s)

with eps = (x - alpha x0) / sigma.

The correction assumes that eps is linear in r. Where r changes by more than a factor of two per step, it overshoots, and
two Euler steps of half the length are better for the same two evaluations. On the log-SNR grid of DDPM's linear schedule
that is the case below 30 evaluations.
"""

import numpy as np

from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.diffusion.solvers import SolverSteps, first_order
from ddpm_jax.diffusion.steps import check


def heun(schedule: Schedule, grid: np.ndarray, *, dtype: type = np.float32) -> SolverSteps:
  """Heun's method along `grid`: two rows and evaluations per step, but one (Euler) into level 0.

  Args:
    schedule: the noise levels.
    grid: [K+1] strictly monotone levels, usually T ... 0.
    dtype: of the weights; float64 shows the order of convergence.

  Returns:
    A table of 2 K rows, less one for the step into level 0 (and one for a step out of pure noise, where eps does not
    determine x_0).
  """
  grid = check(schedule, grid)
  finite = np.isfinite(schedule.log_snr[grid])
  corrected = finite[:-1] & finite[1:]
  step = np.repeat(np.arange(len(corrected)), 1 + corrected)  # of each row
  corrects = np.append(False, step[1:] == step[:-1])
  t = grid[:-1][step]
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
  return steps.replace(
    anchor_x=weights["x"], anchor_a=weights["a"], anchor_x0=np.stack([weights["x0_s"], weights["x0_t"]], axis=1)
  ).rounded(dtype)
