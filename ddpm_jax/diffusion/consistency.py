"""Sampling a consistency model in one or a few steps (Song et al. 2023, arXiv 2303.01469, algorithm 1).

The model maps x_t to the end of its trajectory. Each further step adds new noise to that x_0 and evaluates the model again:

    x_s = alpha_s x_0 + alpha_s sqrt(r_s^2 - r_1^2) z,        r = sigma / alpha,

where level 1 is the end of the trajectories.
"""

import numpy as np

from ddpm_jax.diffusion import steps as tables
from ddpm_jax.diffusion.schedule import Schedule
from ddpm_jax.diffusion.steps import GaussianSteps
from ddpm_jax.errors import UserError


def consistency(schedule: Schedule, grid: np.ndarray) -> GaussianSteps:
  """The table of these steps along `grid`, [K+1] levels T ... 0: K evaluations of the network.

  Raises:
    UserError: for a grid that goes up.
  """
  table = tables.gaussian(schedule, grid, eta=0.0)
  s = np.asarray(grid[1:])
  if (s >= np.asarray(grid[:-1])).any():
    raise UserError("A consistency model maps noise to images and cannot go up: use a grid from T to 0.")
  variance = 1 / schedule.alpha_bar - 1  # r^2
  var = schedule.alpha_bar[s] * np.maximum(variance[s] - variance[1], 0)
  c_x0 = np.sqrt(schedule.alpha_bar[s])
  return table.replace(c_eps=np.zeros_like(table.c_eps), var=var.astype(np.float32), c_cov=(c_x0**2).astype(np.float32))
