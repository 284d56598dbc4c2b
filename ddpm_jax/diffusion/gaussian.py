"""Diagonal Gaussians over images: KL divergence, samples, and the log-probability of 8-bit pixels.

All values are elementwise and in nats. Their sum over an image is in nats per image. Their mean divided by log 2 is in
bits/dim.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

PIXEL = 2 / 255  # distance between neighboring grey levels when 0..255 becomes [-1, 1]


@struct.dataclass
class Gaussian:
  """N(mean, exp(log_var)). Both broadcast against the image that they describe."""

  mean: jax.Array
  log_var: jax.Array

  def draw(self, z: jax.Array) -> jax.Array:
    """The sample for white noise z, shaped as the image."""
    return self.mean + jnp.exp(0.5 * self.log_var) * z

  def kl(self, other: "Gaussian") -> jax.Array:
    """KL(self || other), elementwise, in nats.

    With d = log_var' - log_var:   2 KL = d + exp(-d) - 1 + (mean - mean')^2 / var'.
    `expm1` preserves the precision of d + exp(-d) - 1 ~ d^2/2 when the variances are nearly equal.
    """
    d = other.log_var - self.log_var
    return 0.5 * (d + jnp.expm1(-d) + (self.mean - other.mean) ** 2 * jnp.exp(-other.log_var))

  def log_prob_of_pixels(self, x_0: jax.Array) -> jax.Array:
    """Log-probability, in nats, of images of 256 grey levels on [-1, 1] (DDPM eq. 13).

    The probability of a pixel is the integral of the density over its bin. The bins of black and white extend to
    infinity. As in the authors' code, the Gaussian CDF is the tanh approximation and probabilities are at least 1e-12.
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
