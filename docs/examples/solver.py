"""A solver of one's own: Adams-Bashforth 2 in eps, where the flow is d(x / alpha) = eps d(sigma / alpha)."""

import jax.numpy as jnp
from flax import struct

from ddpm_jax.diffusion import grid, noise, schedule, steps
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.samplers import GaussianSampler, sample


@struct.dataclass
class AdamsBashforth:
  steps: steps.GaussianSteps  # or any table with leaves [K] and the columns t, s, left
  init = lambda self, x_T: (x_T, jnp.zeros_like(x_T), jnp.float32(0))  # x, the eps and the length of the step before
  image = lambda self, state: state[0]

  def step(self, noise, state, row, denoise, cond):
    x, before, last = state
    pred, h = denoise(x, row.t, cond), row.s.sigma / row.s.alpha - row.t.sigma / row.t.alpha
    slope = pred.eps + jnp.where(last == 0, 0, h / (2 * last)) * (pred.eps - before)
    return (row.s.alpha * (x / row.t.alpha + h * slope), pred.eps, h), pred


levels, keys = schedule.linear(1000), noise.image_keys(jnp.arange(50))
data, x_T = Mixture(jnp.ones(1), jnp.zeros(1), jnp.full(1, 0.09)), noise.PerImage(keys).initial((4, 4, 1))
fine = sample(keys, data, GaussianSampler(steps.gaussian(levels, grid.full(1000), eta=0.0)), x_T)[0]
table = steps.gaussian(levels, grid.log_snr(levels, 20), eta=0.0)
for name, sampler in (("DDIM", GaussianSampler(table)), ("Adams-Bashforth", AdamsBashforth(table))):
  print(f"{name}, 20 steps: {abs(sample(keys, data, sampler, x_T)[0] - fine).mean():.4f} from 1000 DDIM steps")
