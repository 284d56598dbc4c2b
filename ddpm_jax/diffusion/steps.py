"""Step tables: the coefficients of a sampler, computed once in float64 on the host, one row per step.

A row goes from level t to level s. DDIM's family of inference processes (DDIM eq. 7) is

    q(x_s | x_t, x_0) = N( alpha_s x_0 + sqrt(sigma_s^2 - var) (x_t - alpha_t x_0) / sigma_t ,  var I ),        (1)

    var = eta^2 * posterior,    posterior = sigma_s^2 / sigma_t^2 * (1 - alpha_t^2 / alpha_s^2)                 (2)

where eta = 1 is DDPM's posterior (DDPM eq. 7) and eta = 0 is deterministic. Let p(x_0 | x_t) have mean x0, and let
eps = (x_t - alpha_t x0) / sigma_t. Integrating (1) over p(x_0 | x_t) gives the reverse transition

    mean = c_x0 x0 + c_eps eps,              c_x0 = alpha_s,   c_eps = sqrt(sigma_s^2 - var)                    (3)
    var' = var + c_cov Var[x_0 | x_t],       c_cov = (c_x0 - c_eps alpha_t / sigma_t)^2                         (4)

(Analytic-DPM eq. 10, Extended-Analytic-DPM eq. 9). Every sampler, covariance, training term and bits/dim term of the
DDPM family reads its coefficients from such a row.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ddpm_jax.diffusion import grid as grids
from ddpm_jax.diffusion.schedule import Level, Schedule
from ddpm_jax.errors import UserError


@struct.dataclass
class GaussianSteps:
  """Rows of the transitions (1)-(4) along a grid. Every leaf is [K] and row 0 is the first step."""

  t: Level  # the level a step leaves
  s: Level  # the level it reaches
  c_x0: jax.Array  # float32, as all below
  c_eps: jax.Array
  var: jax.Array  # of (1)
  c_cov: jax.Array
  log_var_min: jax.Array  # log posterior variance; the last row repeats the row before it, since its own variance is 0
  log_var_max: jax.Array  # log (1 - alpha_t^2 / alpha_s^2), "beta" of this step
  left: jax.Array  # int32, how many steps follow; 0 on the last row

  @property
  def stream(self) -> jax.Array:
    """The noise stream of each step; see noise.PerImage."""
    return self.t.n

  def leaving(self, n: jax.Array) -> "GaussianSteps":
    """The rows that leave levels n [B] of a downward grid: leaves [B]."""
    row = jnp.searchsorted(-jnp.asarray(self.t.n), -n)
    return jax.tree.map(lambda column: jnp.asarray(column)[row], self)


def gaussian(schedule: Schedule, grid: np.ndarray, eta: float = 1.0) -> GaussianSteps:
  """The table of (1)-(4) along `grid`.

  Args:
    schedule: the noise levels.
    grid: [K+1] strictly monotone levels, usually T ... 0. An upward grid gives the deterministic inversion. Begin it at
      level 1, since networks are not trained at level 0.
    eta: between 0 (DDIM) and 1 (DDPM).

  Returns:
    A table with leaves [K], computed in float64 and rounded to float32.

  Raises:
    UserError: if the grid repeats a level, leaves 0..T or begins at 0, or eta is not in [0, 1].
  """
  grid = check(schedule, grid)
  if not 0 <= eta <= 1:
    raise UserError(f"eta = {eta} is outside [0, 1]: 0 is DDIM (no noise), 1 is DDPM (ancestral).")
  if grid[1] > grid[0] and eta != 0:
    raise UserError(f"An upward grid inverts the chain without noise: use eta = 0, not {eta}.")
  table = transitions(schedule, grid[:-1], grid[1:], eta)
  log_var_min = table.log_var_min.copy()
  if grid[-1] == 0:
    log_var_min[-1] = log_var_min[-2] if len(grid) > 2 else table.log_var_max[-1]
  return table.replace(log_var_min=log_var_min, left=steps_left(grid))


def transitions(schedule: Schedule, t: np.ndarray, s: np.ndarray, eta: float = 1.0) -> GaussianSteps:
  """Rows of (1)-(4) from levels t to levels s, integer arrays of the same shape. They have no order, so left = 0.

  Here log_var_min is always the log posterior variance, -inf where s = 0.
  """
  alpha_bar_t = schedule.alpha_bar[t]
  alpha_bar_s = schedule.alpha_bar[s]
  with np.errstate(divide="ignore", invalid="ignore"):  # upward, the ratio exceeds 1 and these columns are not used
    beta = 1 - alpha_bar_t / alpha_bar_s
    posterior = beta * (1 - alpha_bar_s) / (1 - alpha_bar_t)
    var = np.where(s < t, eta**2 * posterior, 0.0)
    c_x0 = np.sqrt(alpha_bar_s)
    c_eps = np.sqrt(1 - alpha_bar_s - var)
    c_cov = (c_x0 - c_eps * np.sqrt(alpha_bar_t / (1 - alpha_bar_t))) ** 2
    log_var_min = np.log(posterior)
    log_var_max = np.log(beta)
  columns = (c_x0, c_eps, var, c_cov, log_var_min, log_var_max)
  left = np.zeros(np.shape(t), np.int32)
  return GaussianSteps(schedule.level(t), schedule.level(s), *(c.astype(np.float32) for c in columns), left)


def check(schedule: Schedule, grid: np.ndarray) -> np.ndarray:
  """A valid grid that does not begin at level 0; see `grid.check`."""
  grid = grids.check(grid, schedule.T)
  if grid[0] == 0:
    raise UserError("The grid begins at level 0, where networks are not trained. Begin at level 1 to go up from an image.")
  return grid


def steps_left(grid: np.ndarray) -> np.ndarray:
  """int32 [K]: K-1, ..., 0."""
  return np.arange(len(grid) - 1, dtype=np.int32)[::-1].copy()
