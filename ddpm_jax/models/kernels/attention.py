"""The attention implementation, chosen at trace time: cuDNN's flash attention where its limits allow it, XLA's otherwise."""

from typing import Literal

import jax
import jax.numpy as jnp

from ddpm_jax.models.kernels import target


def attention(q: jax.Array, k: jax.Array, v: jax.Array, which: str = "auto") -> jax.Array:
  """softmax(q k / sqrt(D)) v for [B, N, heads, D]; `which`: "xla", "cudnn" or "auto"."""
  return jax.nn.dot_product_attention(q, k, v, implementation=implementation(which, q.dtype, q.shape[-1]))


def implementation(which: str, dtype: jnp.dtype, head_channels: int) -> Literal["xla", "cudnn"]:
  """ "xla" or "cudnn". cuDNN needs half precision and limits the width of a head; it raises where that is exceeded."""
  if which != "auto":
    return which
  generation = target.nvidia_generation()
  widest = 256 if generation >= 9 else 128 if generation == 8 else 0  # Hopper, Ampere
  half = jnp.dtype(dtype).itemsize == 2
  return "cudnn" if half and head_channels % 8 == 0 and head_channels <= widest else "xla"
