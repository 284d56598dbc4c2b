"""The variance-preserving SDE and Euler-Maruyama steps for it (Extended-Analytic-DPM appendix).

    forward   dx = -beta(t)/2 x dt + sqrt(beta(t)) dw,      beta(t) = start + (end - start) t,      0 <= t <= 1       (1)
    reverse   dx = (-beta/2 x + beta eps / sigma) dt + sqrt(beta) dw,      time running from 1 to 0                  (2)
    ODE       dx = (-beta/2 x + beta/2 eps / sigma) dt,      with the same marginals as (2)                          (3)

where -eps / sigma is the score. Discretized as a chain (`schedule.vp_sde`), networks of the SDE work with every other
sampler and covariance of this package. This module holds the parts that need continuous time.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.schedule import Level, Schedule, like, vp_integral
from ddpm_jax.diffusion.steps import GaussianSteps, check, steps_left
from ddpm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class VpSde:
  """The SDE (1), with the constants of score_sde."""

  start: float = 0.1
  end: float = 20.0
  T: int = 1  # levels per unit of time: time t is level n = T t

  def beta(self, t: jax.Array) -> jax.Array:
    """beta(t), shaped as t."""
    return self.start + (self.end - self.start) * t

  def level(self, t: jax.Array) -> Level:
    """The levels at traced times t. Their n is fractional, and TimeScale(999 / T, shift=0) turns it into 999 t."""
    integral = vp_integral(t, self.start, self.end)
    return Level(t * self.T, jnp.exp(-0.5 * integral), jnp.sqrt(-jnp.expm1(-integral)))

  def ode(self, x: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """dx/dt of (3), shaped as x [B,...]; t [B]."""
    beta, sigma = like((self.beta(t), self.level(t).sigma), x)
    return 0.5 * beta * (eps / sigma - x)


def euler_maruyama(schedule: Schedule, grid: np.ndarray, *, ode: bool = False) -> GaussianSteps:
  """Rows for GaussianSampler: Euler's method for (2), or for (3) with `ode`, along a downward grid of a discretized SDE.

      x_s = x + (beta/2 x - beta eps / sigma) h + sqrt(beta h) z,        h = t - s,   no noise into level 0

  where beta is the slope of -log alpha_bar, and the unit of time is one level. With x = alpha x0 + sigma eps this is a row
  of GaussianSteps with var = beta h. It requires consistent x0 and eps: do not clip with keep_eps.

  The authors go from t = 1 in K - 1 equal steps to 0.001 and then to 0, which is grid.uniform(1000, K) of vp_sde(1000).

  Raises:
    UserError: for an upward grid or a schedule of one level.
  """
  grid = check(schedule, grid)
  if grid[1] > grid[0] or schedule.T < 2:
    raise UserError(
      "Euler-Maruyama follows the reverse SDE downwards, on at least 2 levels: begin the grid at its highest level."
    )
  t = grid[:-1]
  s = grid[1:]
  grows = np.gradient(-np.log(schedule.alpha_bar), edge_order=2)[t] * (t - s)  # beta h; exact where beta(t) is linear
  alpha = np.sqrt(schedule.alpha_bar[t])
  sigma = np.sqrt(1 - schedule.alpha_bar[t])
  pulled = (0.5 if ode else 1.0) * grows / sigma
  var = np.zeros(len(t)) if ode else grows
  with np.errstate(divide="ignore"):
    log_var = np.log(var)
  columns = (1 + grows / 2) * alpha, (1 + grows / 2) * sigma - pulled, var, np.zeros(len(t)), log_var, log_var
  return GaussianSteps(
    schedule.level(t), schedule.level(s), *(column.astype(np.float32) for column in columns), steps_left(grid)
  )
