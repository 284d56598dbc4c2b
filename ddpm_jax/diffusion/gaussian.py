"""Diagonal Gaussians over images: KL divergence, and log-probability of 8-bit pixels.

Everything is elementwise, in nats; sum over an image for nats per image, take the mean and divide by log 2 for bits/dim.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

PIXEL = 2 / 255  # distance of two neighbouring grey levels when 0..255 becomes [-1, 1]


@struct.dataclass
class Gaussian:
  """N(mean, exp(log_var)); both broadcast against the image they describe."""

  mean: jax.Array
  log_var: jax.Array

  def kl(self, other: "Gaussian") -> jax.Array:
    """KL(self || other), elementwise, in nats.

    With d = log_var' - log_var:   2 KL = d + exp(-d) - 1 + (mean - mean')^2 / var'.
    `expm1` keeps the digits of d + exp(-d) - 1 ~ d^2/2 when the variances are nearly equal.
    """
    d = other.log_var - self.log_var
    return 0.5 * (d + jnp.expm1(-d) + (self.mean - other.mean) ** 2 * jnp.exp(-other.log_var))

  def log_prob_of_pixels(self, x_0: jax.Array) -> jax.Array:
    """Log-probability, in nats, of images of 256 grey levels on [-1, 1] (DDPM eq. 13).

    Each pixel collects the density of its bin; the bins of black and white reach to infinity. The Gaussian
    CDF is the tanh approximation, and probabilities are floored at 1e-12, as in the authors' code.
    """
    inv_std = jnp.exp(-0.5 * self.log_var)
    below = _cdf(inv_std * (x_0 - self.mean - PIXEL / 2))
    above = _cdf(inv_std * (x_0 - self.mean + PIXEL / 2))
    probability = jnp.where(x_0 < -0.999, above, jnp.where(x_0 > 0.999, 1 - below, above - below))
    return jnp.log(jnp.maximum(probability, 1e-12))


def standard_normal() -> Gaussian:
  """N(0, I), the end of every forward process here."""
  return Gaussian(jnp.zeros(()), jnp.zeros(()))


def _cdf(z: jax.Array) -> jax.Array:
  return 0.5 * (1 + jnp.tanh(np.sqrt(2 / np.pi).astype(np.float32) * (z + 0.044715 * z**3)))
