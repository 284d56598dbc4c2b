"""The variance-preserving SDE behind the chains, and its simplest sampler as a table (Extended-Analytic-DPM appendix).

    forward   dx = -beta(t)/2 x dt + sqrt(beta(t)) dw,      beta(t) = start + (end - start) t,      0 <= t <= 1       (1)
    reverse   dx = (-beta/2 x + beta eps / sigma) dt + sqrt(beta) dw,      time running from 1 to 0                  (2)
    ODE       dx = (-beta/2 x + beta/2 eps / sigma) dt,      with the same marginals as (2)                          (3)

where -eps / sigma is the score. Discretized as a chain (`schedule.vp_sde`) the SDE's networks serve every other sampler
and covariance of this package as well; here is what needs continuous time.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ddpm_jax.diffusion.schedule import Level, Schedule, like, vp_integral
from ddpm_jax.diffusion.steps import GaussianSteps, steps_left
from ddpm_jax.errors import UserError

TIME_SCALE = 999.0  # the networks of score_sde are told 999 t


@dataclasses.dataclass(frozen=True)
class VpSde:
  """(1), with the constants of score_sde."""

  start: float = 0.1
  end: float = 20.0

  def beta(self, t):
    """beta(t), any array."""
    return self.start + (self.end - self.start) * t

  def level(self, t: jax.Array) -> Level:
    """The level at traced times t, with n = t; TimeScale(999, shift=0) tells a network what it expects."""
    integral = vp_integral(t, self.start, self.end)
    return Level(t, jnp.exp(-0.5 * integral), jnp.sqrt(-jnp.expm1(-integral)))

  def ode(self, x: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """dx/dt of (3), shaped as x [B,...]; t [B]."""
    beta, sigma = like((self.beta(t), self.level(t).sigma), x)
    return 0.5 * beta * (eps / sigma - x)


@struct.dataclass
class TimeTable:
  """What the network is told of level n, from a list (in the place of `TimeScale`)."""

  times: jax.Array  # [T+1]

  def __call__(self, n: jax.Array) -> jax.Array:
    return jnp.asarray(self.times, jnp.float32)[n]


def euler_maruyama(sde: VpSde, K: int, *, first: float = 1e-3, ode: bool = False) -> tuple[GaussianSteps, TimeTable]:
  """A table for GaussianSampler: Euler's method for (2) or (3), from t = 1 in K - 1 equal steps to `first`, then to 0.

      x_s = x + (beta/2 x - beta eps / sigma) h + sqrt(beta h) z,        h = t - s,   no noise into 0

  In terms of x = alpha x0 + sigma eps this is a row like any other, whose var is beta h. It takes x0 and eps to be
  consistent: do not clip with keep_eps.

  Returns:
    The table [K], whose levels n = 0 ... K number the times, and what to tell the network of them.
  """
  if not 2 <= K or not 0 < first < 1:
    raise UserError(f"Euler-Maruyama needs at least 2 steps and 0 < first < 1, not {K} steps and first = {first}.")
  times = np.append(0, np.linspace(first, 1, K))
  chain = Schedule(np.exp(-vp_integral(times, sde.start, sde.end)))
  n = np.arange(K, 0, -1)
  h = times[n] - times[n - 1]
  beta, alpha_bar = sde.beta(times[n]), chain.alpha_bar[n]
  grown, pulled = 1 + 0.5 * beta * h, (0.5 if ode else 1.0) * beta * h / np.sqrt(1 - alpha_bar)
  var = np.zeros(K) if ode else beta * h
  c_x0, c_eps = grown * np.sqrt(alpha_bar), grown * np.sqrt(1 - alpha_bar) - pulled
  with np.errstate(divide="ignore"):
    columns = (c_x0, c_eps, var, np.zeros(K), np.log(var), np.log(var))
  left = steps_left(np.append(n, 0))
  table = GaussianSteps(chain.level(n), chain.level(n - 1), *(c.astype(np.float32) for c in columns), left)
  return table, TimeTable((TIME_SCALE * times).astype(np.float32))
