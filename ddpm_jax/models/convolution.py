"""The 3x3 convolution of every layer: XLA's own; on CPUs Winograd's where that is faster, and gradients fit for loops.

XLA's CPU backend has a fast routine for [B,H,W,C] * [3,3,C,D] -> [B,H,W,D] alone. Outside loops the compiler permutes the
axes of other convolutions, such as the gradients are that `lax` derives, until they look like that; inside loops (a
sampler's scan with a guide's gradient, microbatches) it does not and runs them by nested loops, 5 to 80 times slower. So
here the derivative is stated in permuted axes whose transposes, the gradients, have the fast order. It is lax's, however the
value is computed: every transformation of JAX applies.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from ddpm_jax.models import winograd


def convolve(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: list[tuple[int, int]], **options):
  """[B,H,W,C] * [3,3,C,D], as `nn.Conv` calls its `conv_general_dilated`; `options` are the other arguments of lax's."""
  elsewhere = functools.partial(lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
  strides, padding = tuple(strides), tuple(padding)
  on_cpu = functools.partial(_convolve, strides, padding)
  if (strides, padding) == ((1, 1), ((1, 1), (1, 1))) and winograd.worthwhile(x, kernel):
    on_cpu = winograd.convolve
  return lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)  # chosen when a program is lowered


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _convolve(strides, padding, x, kernel):
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@functools.partial(_convolve.defjvp, symbolic_zeros=True)
def _derivative(strides, padding, primals, tangents):
  (x, kernel), (dx, dkernel) = primals, tangents
  y = _convolve(strides, padding, x, kernel)
  dy = jnp.zeros_like(y)
  # lax permutes the axes of a transpose by those given here: both become NHWC * HWIO -> NHWC.
  if not isinstance(dx, SymbolicZero):
    axes, flipped = ("NHWC", "HWOI", "NHWC"), kernel.swapaxes(2, 3)
    dy += lax.conv_general_dilated(dx, flipped, strides, padding, dimension_numbers=axes)
  if not isinstance(dkernel, SymbolicZero):
    axes, x, dkernel = ("CHWN", "IHWO", "HWNC"), x.transpose(3, 1, 2, 0), dkernel.transpose(2, 0, 1, 3)
    dy += lax.conv_general_dilated(x, dkernel, strides, padding, dimension_numbers=axes).transpose(2, 0, 1, 3)
  return y, dy
