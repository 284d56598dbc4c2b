"""The 3x3 convolution of every layer: XLA's, or on CPUs Winograd's where that is faster, with gradients that suit loops.

XLA's CPU backend has a fast routine for [B,H,W,C] * [3,3,C,D] -> [B,H,W,D] only. Outside loops the compiler permutes the
axes of other convolutions, such as the gradients that `lax` derives, into this form. Inside loops (a sampler's scan with a
guide's gradient, microbatches) it does not, and runs them as nested loops, 5 to 80 times slower. The derivative is therefore
defined here in permuted axes, so that its transposes, the gradients, have the fast order. All transformations of JAX apply.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from ddpm_jax.models.kernels import target, winograd


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: tuple[int, int] = (1, 1)) -> jax.Array:
  """[B,H,W,C] * [3,3,C,D] -> [B,H',W',D]; stride and padding are the same for both axes."""
  strides = (stride, stride)
  padding = (padding, padding)
  axes = ("NHWC", "HWIO", "NHWC")
  elsewhere = functools.partial(lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=axes)
  on_cpu = functools.partial(_convolve, strides, padding)
  if (strides, padding) == ((1, 1), ((1, 1), (1, 1))) and winograd.worthwhile(x, kernel):
    on_cpu = winograd.convolve
  return lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)  # chosen when a program is lowered


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[B, ..., C] [C, D] -> [B, ..., D], the same matrix at every position.

  In half precision on NVIDIA GPUs this is a 1x1 convolution, because cuDNN's kernel also adds the bias and a residual sum.
  Those of a matrix product are kernels of their own. It is chosen when a program is traced: both forms run everywhere.
  """
  half = jnp.dtype(x.dtype).itemsize == 2
  if not half or x.ndim != 4 or not target.nvidia_generation():
    return x @ kernel
  return lax.conv_general_dilated(x, kernel[None, None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _convolve(strides, padding, x, kernel):
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@functools.partial(_convolve.defjvp, symbolic_zeros=True)
def _derivative(strides, padding, primals, tangents):
  x, kernel = primals
  dx, dkernel = tangents
  y = _convolve(strides, padding, x, kernel)
  dy = jnp.zeros_like(y)
  # lax permutes the axes of a transpose in this way, so that both gradients become NHWC * HWIO -> NHWC.
  if not isinstance(dx, SymbolicZero):
    axes = ("NHWC", "HWOI", "NHWC")
    dy += lax.conv_general_dilated(dx, kernel.swapaxes(2, 3), strides, padding, dimension_numbers=axes)
  if not isinstance(dkernel, SymbolicZero):
    axes = ("CHWN", "IHWO", "HWNC")
    x = x.transpose(3, 1, 2, 0)
    dkernel = dkernel.transpose(2, 0, 1, 3)
    dy += lax.conv_general_dilated(x, dkernel, strides, padding, dimension_numbers=axes).transpose(2, 0, 1, 3)
  return y, dy
