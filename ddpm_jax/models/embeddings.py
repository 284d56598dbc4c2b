"""Sinusoidal embeddings of time."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def sin_cos(time: jax.Array, dim: int) -> jax.Array:
  """[B] -> [B, dim]: Ho's [sin | cos] with frequencies 10000^(-k / (dim/2 - 1)). An odd `dim` ends in a zero."""
  half = dim // 2
  phases = _phases(time, half, half - 1, 10_000.0)
  return _pad(jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1), dim)


def cos_sin(time: jax.Array, dim: int, max_period: float = 10_000.0) -> jax.Array:
  """[B] -> [B, dim]: OpenAI's [cos | sin] with frequencies max_period^(-k / (dim/2)). An odd `dim` ends in a zero."""
  half = dim // 2
  phases = _phases(time, half, half, max_period)
  return _pad(jnp.concatenate([jnp.cos(phases), jnp.sin(phases)], axis=-1), dim)


def _phases(time, half, denominator, max_period):
  # float32, in the references' order of operations: at time 4000 the last bit of a frequency is worth 2e-4
  exponent = np.float32(-math.log(max_period)) * np.arange(half, dtype=np.float32) / np.float32(denominator)
  return time.astype(jnp.float32)[:, None] * jnp.asarray(np.exp(exponent))[None, :]


def _pad(embedding, dim):
  return jnp.pad(embedding, ((0, 0), (0, dim - embedding.shape[-1])))
