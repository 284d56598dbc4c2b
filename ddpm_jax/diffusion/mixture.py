"""Mixtures of Gaussians, data whose exact denoiser is known. For tests, figures and lessons.

    x_0 ~ sum over i of  weight_i N(mean_i, var_i)    =>    x_t ~ sum of  weight_i N(alpha mean_i, alpha^2 var_i + sigma^2)

so E[x_0 | x_t] and Var[x_0 | x_t] are sums over components. The pixels of a `Mixture` are independent draws. The components
of a `JointMixture` are Gaussians over whole images, with any covariance between pixels.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ddpm_jax.diffusion.prediction import Prediction, eps_from_x0
from ddpm_jax.diffusion.schedule import Level, like


@struct.dataclass
class Mixture:
  """Independent pixels, and their exact denoiser. `Mixture([1.0], [0.0], [v])` is Gaussian data."""

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

  def __call__(self, x_t: jax.Array, level: Level, cond: Any = None) -> Prediction:
    """The exact x0, eps and eps_var = Var[eps | x_t]."""
    level = like(level, x_t)
    axis = (-1,) + (1,) * x_t.ndim
    weight, mean, var = (jnp.reshape(jnp.asarray(a, x_t.dtype), axis) for a in (self.weight, self.mean, self.var))
    alpha, sigma = (jnp.reshape(a, (1, *jnp.shape(a))) if jnp.ndim(a) else a for a in (level.alpha, level.sigma))
    var_t = alpha**2 * var + sigma**2
    apart = x_t[None] - alpha * mean
    share = jax.nn.softmax(jnp.log(weight) - 0.5 * (jnp.log(var_t) + apart**2 / var_t), axis=0)
    mean_0 = mean + alpha * var / var_t * apart
    var_0 = var * sigma**2 / var_t
    x0 = (share * mean_0).sum(0)
    x0_var = (share * (var_0 + (mean_0 - x0[None]) ** 2)).sum(0)
    return Prediction(x0, eps_from_x0(x0, x_t, level), eps_var=(level.alpha / level.sigma) ** 2 * x0_var)


@struct.dataclass
class JointMixture:
  """Images of d pixels from a mixture of Gaussians over whole images, and their exact denoiser; see `joint_mixture`."""

  weight: jax.Array  # [M], sums to 1
  mean: jax.Array  # [M,d]
  basis: jax.Array  # [M,d,d], eigenvectors of the covariances as columns
  var: jax.Array  # [M,d], their eigenvalues

  @functools.partial(jax.jit, static_argnames="shape")
  def sample(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x_0 of this shape [B,H,W,C]."""
    which, noise = jax.random.split(key)
    i = jax.random.choice(which, len(self.weight), shape[:1], p=jnp.asarray(self.weight))
    z = jnp.sqrt(jnp.asarray(self.var))[i] * jax.random.normal(noise, (shape[0], self.mean.shape[1]))
    return (jnp.asarray(self.mean)[i] + jnp.einsum("bij,bj->bi", jnp.asarray(self.basis)[i], z)).reshape(shape)

  def __call__(self, x_t: jax.Array, level: Level, cond: Any = None) -> Prediction:
    """The exact x0, eps and eps_var = Var[eps | x_t]."""
    x0, x0_cov = self.posterior(x_t, level)
    x0 = x0.reshape(x_t.shape)
    x0_var = jnp.diagonal(x0_cov, axis1=1, axis2=2).reshape(x_t.shape)
    wide = like(level, x_t)
    return Prediction(x0, eps_from_x0(x0, x_t, level), eps_var=(wide.alpha / wide.sigma) ** 2 * x0_var)

  def posterior(self, x_t: jax.Array, level: Level) -> tuple[jax.Array, jax.Array]:
    """E[x_0 | x_t], [B,d], and Cov[x_0 | x_t], [B,d,d]."""
    x = x_t.reshape(len(x_t), -1)
    alpha, sigma = (jnp.reshape(jnp.asarray(a), (-1, 1, 1)) for a in (level.alpha, level.sigma))  # [B or 1,1,1]
    weight, mean, basis, var = (jnp.asarray(a)[None] for a in (self.weight, self.mean, self.basis, self.var))
    var_t = alpha**2 * var + sigma**2  # [B or 1,M,d]
    apart = jnp.einsum("mij,bmi->bmj", basis[0], x[:, None] - alpha * mean)
    share = jax.nn.softmax(jnp.log(weight) - 0.5 * (jnp.log(var_t) + apart**2 / var_t).sum(-1), axis=-1)  # [B,M]
    mean_0 = mean + jnp.einsum("mij,bmj->bmi", basis[0], alpha * var / var_t * apart)
    x0 = jnp.einsum("bm,bmi->bi", share, mean_0)
    shrunk = jnp.broadcast_to(var * sigma**2 / var_t, apart.shape)
    within = jnp.einsum("bm,mij,bmj,mkj->bik", share, basis[0], shrunk, basis[0])
    off = mean_0 - x0[:, None]
    return x0, within + jnp.einsum("bm,bmi,bmj->bij", share, off, off)


def joint_mixture(weight: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> JointMixture:
  """The mixture with these weights [M], means [M,d] and covariances [M,d,d]."""
  var, basis = np.linalg.eigh(np.asarray(cov, float))
  return JointMixture(np.float32(weight), np.float32(mean), np.float32(basis), np.float32(var))
