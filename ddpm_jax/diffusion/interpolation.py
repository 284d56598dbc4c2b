"""Interpolation between two images: DDPM's in a noisy state, and DDIM's slerp of latents."""

from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.noise import normal
from ddpm_jax.diffusion.prediction import Denoiser
from ddpm_jax.diffusion.samplers import sample
from ddpm_jax.diffusion.schedule import like


def latent_interpolation(
  keys: jax.Array, denoiser: Denoiser, sampler: Any, x_0: jax.Array, y_0: jax.Array, weight: jax.Array, cond: Any = None
) -> jax.Array:
  """DDPM section 4.4 (figure 8): diffuses both images to the sampler's first level, mixes them linearly, and samples.

      x_t ~ q(x_t | x_0),  y_t ~ q(y_t | y_0) with independent noise,     (1 - weight) x_t + weight y_t

  Args:
    keys: [B], one per pair.
    sampler: starts at the level of the mixture (500 of 1000 in the paper).
    x_0: [B,H,W,C], the first images.
    y_0: [B,H,W,C], the last images.
    weight: [B], 0 at the first image and 1 at the last.

  Returns:
    The images between them, [B,H,W,C].
  """
  level = jax.tree.map(lambda column: column[0], sampler.steps.t)
  x_key, y_key, sample_key = (jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys) for i in range(3))
  x_t, y_t = (level.diffuse(image, normal(key, image.shape[1:])) for key, image in ((x_key, x_0), (y_key, y_0)))
  weight = like(weight, x_0)
  return sample(sample_key, denoiser, sampler, (1 - weight) * x_t + weight * y_t, cond)[0]


def slerp(x: jax.Array, y: jax.Array, weight: jax.Array) -> jax.Array:
  """Along the great circle between latents x and y [B,H,W,C], weight [B] from 0 to 1 (DDIM eq. 67).

      sin((1 - w) theta) / sin(theta) x + sin(w theta) / sin(theta) y,      cos(theta) = <x, y> / |x| |y|

  It preserves the norm of Gaussian latents, which linear mixing shrinks. Nearly parallel latents are mixed linearly.
  """
  axes = tuple(range(1, x.ndim))
  cos = jnp.sum(x * y, axes) / jnp.sqrt(jnp.sum(x**2, axes) * jnp.sum(y**2, axes))
  theta = jnp.arccos(jnp.clip(cos, -1.0, 1.0))
  sin = jnp.sin(theta)
  flat = sin < 1e-4
  safe = jnp.where(flat, 1.0, sin)
  a = jnp.where(flat, 1 - weight, jnp.sin((1 - weight) * theta) / safe)
  b = jnp.where(flat, weight, jnp.sin(weight * theta) / safe)
  return like(a, x) * x + like(b, x) * y
