"""A solver of your own: Adams-Bashforth 2 in eps, where the flow is d(x / alpha) = eps d(sigma / alpha)."""

import jax.numpy as jnp
from flax import struct

from ddpm_jax.diffusion import grid, mixture, noise, samplers, schedule, steps


@struct.dataclass
class AdamsBashforth:
  steps: steps.GaussianSteps  # or any table with leaves [K] and the columns t, s, left
  init = lambda self, x_T: (x_T, jnp.zeros_like(x_T), jnp.float32(0))  # x, the eps and the length of the step before
  image = lambda self, state: state[0]

  def step(self, noise, state, row, denoise, cond):
    x, before, last = state
    pred = denoise(x, row.t, cond)
    h = row.s.sigma / row.s.alpha - row.t.sigma / row.t.alpha
    slope = pred.eps + jnp.where(last == 0, 0, h / (2 * last)) * (pred.eps - before)
    return (row.s.alpha * (x / row.t.alpha + h * slope), pred.eps, h), pred


adams = lambda levels, visited: AdamsBashforth(steps.gaussian(levels, visited, eta=0.0))  # (schedule, grid) -> sampler

if __name__ == "__main__":
  data = mixture.Mixture(jnp.ones(1), jnp.zeros(1), jnp.full(1, 0.09))  # its score is known: no network
  keys = noise.image_keys(jnp.arange(50))
  levels = schedule.linear(1000)
  sampler = adams(levels, grid.log_snr(levels, 20))
  print(samplers.sample(keys, data, sampler, noise.PerImage(keys).initial((4, 4, 1)))[0].std())  # of the data: 0.3
