"""A covariance of your own: a mix of DDPM's two fixed ones, in the logarithm, the same for all pixels."""

import dataclasses

import jax.numpy as jnp

from ddpm_jax.diffusion import grid, schedule, steps
from ddpm_jax.diffusion.covariance import marginal, posterior
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.mixture import Mixture
from ddpm_jax.diffusion.noise import PerImage, image_keys
from ddpm_jax.diffusion.samplers import GaussianSampler, sample


@dataclasses.dataclass(frozen=True)  # frozen, so that two equal ones are one compiled program
class Between:
  share: float = 0.5  # 0: posterior, 1: marginal

  def __call__(self, pred, row):
    return (1 - self.share) * posterior(pred, row) + self.share * marginal(pred, row)


if __name__ == "__main__":
  data = Mixture(jnp.ones(1), jnp.zeros(1), jnp.full(1, 0.09))  # pixels of deviation 0.3, and their exact denoiser
  keys = image_keys(jnp.arange(200))
  for share in (0.0, 0.5, 1.0):
    sampler = GaussianSampler(steps.gaussian(schedule.linear(1000), grid.uniform(1000, 5)), ReverseKernel(Between(share)))
    x, _ = sample(keys, data, sampler, PerImage(keys).initial((4, 4, 1)))
    print(f"share {share}: samples have deviation {x.std():.3f}, the data 0.300")
