"""A denoiser that knows the answer: data whose pixels are independent draws from a mixture of Gaussians.

    x_0 ~ sum over i of  weight_i N(mean_i, var_i)    =>    x_t ~ sum of  weight_i N(alpha mean_i, alpha^2 var_i + sigma^2)

so that E[x_0 | x_t] and Var[x_0 | x_t] are sums over components. For tests, figures and lessons.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ddpm_jax.diffusion.prediction import Prediction, eps_from_x0
from ddpm_jax.diffusion.schedule import Level, like


@struct.dataclass
class Mixture:
  """The data, and its exact denoiser; `Mixture([1.0], [0.0], [v])` is Gaussian data."""

  weight: jax.Array  # [M], sums to 1
  mean: jax.Array  # [M]
  var: jax.Array  # [M]

  @functools.partial(jax.jit, static_argnames="shape")
  def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x_0 of this shape."""
    which, noise = jax.random.split(key)
    i = jnp.searchsorted(jnp.cumsum(jnp.asarray(self.weight))[:-1], jax.random.uniform(which, shape))
    return jnp.asarray(self.mean)[i] + jnp.sqrt(jnp.asarray(self.var))[i] * jax.random.normal(noise, shape)

  @property
  def data_var(self) -> float:
    """Variance of a pixel of x_0."""
    weight, mean, var = map(np.asarray, (self.weight, self.mean, self.var))
    return float(weight @ (var + mean**2) - (weight @ mean) ** 2)

  def __call__(self, x_t: jax.Array, level: Level, cond=None) -> Prediction:
    """Exact x0, eps and eps_var = Var[eps | x_t]."""
    level, axis = like(level, x_t), (-1,) + (1,) * x_t.ndim
    weight, mean, var = (jnp.reshape(jnp.asarray(a, x_t.dtype), axis) for a in (self.weight, self.mean, self.var))
    alpha, sigma = (jnp.reshape(a, (1, *jnp.shape(a))) if jnp.ndim(a) else a for a in (level.alpha, level.sigma))
    var_t = alpha**2 * var + sigma**2
    apart = x_t[None] - alpha * mean
    share = jax.nn.softmax(jnp.log(weight) - 0.5 * (jnp.log(var_t) + apart**2 / var_t), axis=0)
    mean_0, var_0 = mean + alpha * var / var_t * apart, var * sigma**2 / var_t
    x0 = (share * mean_0).sum(0)
    x0_var = (share * (var_0 + (mean_0 - x0[None]) ** 2)).sum(0)
    return Prediction(x0, eps_from_x0(x0, x_t, level), eps_var=(level.alpha / level.sigma) ** 2 * x0_var)
