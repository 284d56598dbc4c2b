"""Winograd's 3x3 convolution, F(2x2, 3x3) of Lavin & Gray (2015, section 4.1): 16 products per 2x2 outputs instead of 36.

    y = A^T [ (G g G^T) * (B^T d B) ] A          g [3,3] kernel, d [4,4] tile of inputs, y [2,2] tile of outputs      (1)

           1  0 -1  0           1    0    0
    B^T =  0  1  1  0     G =  1/2  1/2  1/2     A^T =  1  1  1  0
           0 -1  1  0          1/2 -1/2  1/2            0  1 -1 -1
           0  1  0 -1           0    0    1

Summed over channels, * is a matrix product [tiles, C] x [C, D] for each of 16 frequencies; the rest are additions. A tile
is two pairs of rows and two pairs of columns, and shares one pair with the next tile. So images are cut into pairs and
nothing is gathered.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# Elements of one frequency's [tiles, C], per device and part of a batch. All 16 (4 MiB) stay in the cache.
_PART = 2**16


def worthwhile(x: jax.Array, kernel: jax.Array) -> bool:
  """Whether Winograd's form is faster than XLA's on a CPU: for wide layers, large images and long programs."""
  batch, height, width, channels = x.shape
  if not isinstance(batch, int):
    return False  # the batch size is unknown in exported programs
  wide = min(channels, kernel.shape[-1]) >= 64
  large = min(height, width) >= 8
  return wide and large and batch * height * width >= 4096 and x.dtype == jnp.float32


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[B,H,W,C] * [3,3,C,D] -> [B,H,W,D] with zero padding. It and its derivatives are exact to 1e-6 of the largest output."""
  return _by_y.bind(x, kernel)


def _whole(x: jax.Array, kernel: jax.Array, *, back: bool) -> jax.Array:
  """Each device processes its own images in parts; part i has images i, i + parts, ..."""
  frequencies = _of_kernel(kernel)
  parts = _parts(x)
  if parts == 1:
    return _convolve(x, frequencies, back)
  cut = jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
  y = lax.map(lambda part: _convolve(part, frequencies, back), cut)
  return jnp.moveaxis(y, 0, 1).reshape(len(x), *y.shape[2:])


def _parts(x: jax.Array) -> int:
  local, rest = divmod(len(x), jax.device_count())
  most = 0 if rest else local * x[0].size // 4 // _PART
  return max((p for p in range(1, most + 1) if local % p == 0), default=1)


def _frequencies(x: jax.Array) -> list[jax.Array]:
  """B^T d B of zero-padded images [B,H,W,C]: 16 of [B,rows,columns,C]."""
  _, height, width, _ = x.shape
  rows = -(-height // 2)  # of tiles
  columns = -(-width // 2)
  x = jnp.pad(x, ((0, 0), (1, 2 * rows + 1 - height), (1, 2 * columns + 1 - width), (0, 0)))
  return [tile for part in _of_tiles(x, 1) for tile in _of_tiles(part, 2)]


def _convolve(x: jax.Array, frequencies: list[jax.Array], back: bool) -> jax.Array:
  """(1), or with `back` its transpose: the convolution with the flipped kernel, from D channels to C."""
  _, height, width, _ = x.shape
  if back:  # flipping a kernel permutes its frequencies 0, 1, 2, 3 to 3, 1, 2, 0
    frequencies = [frequencies[4 * i + j] for i in (3, 1, 2, 0) for j in (3, 1, 2, 0)]
  product = "bhwd,cd->bhwc" if back else "bhwc,cd->bhwd"
  products = [jnp.einsum(product, tile, u) for tile, u in zip(_frequencies(x), frequencies, strict=True)]
  y = _to_pixels([_to_pixels(products[i : i + 4], 2) for i in range(0, 16, 4)], 1)
  return y[:, :height, :width]


def _of_kernel(kernel: jax.Array) -> list[jax.Array]:
  """G g G^T: [3,3,C,D] -> 16 of [C,D], by rows."""

  def transform(g):
    return [g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]]

  return [u for row in transform(kernel) for u in transform(row)]


def _of_tiles(x: jax.Array, axis: int) -> list[jax.Array]:
  """B^T d along an axis of 2 (n + 1) pixels: 4 arrays with n tiles there."""
  pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
  even, odd = (lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
  n = even.shape[axis] - 1
  d0, d1, d2, d3 = (lax.slice_in_dim(d, i, i + n, axis=axis) for i in (0, 1) for d in (even, odd))
  return [d0 - d2, d1 + d2, d2 - d1, d1 - d3]


def _to_pixels(m: list[jax.Array], axis: int) -> jax.Array:
  """A^T m along an axis of n tiles: 4 arrays -> one with 2 n pixels there."""
  y = jnp.stack([m[0] + m[1] + m[2], m[1] - m[2] - m[3]], axis + 1)
  return y.reshape(*y.shape[:axis], -1, *y.shape[axis + 2 :])


# ---------------------------------------------------------------- derivatives
#
# sum(y * convolve(x, kernel)) is linear in each of the three. Its derivatives with respect to y (the convolution), x and the
# kernel (the gradients) are bilinear, and each is transposed into the other two. This covers derivatives of every order.


def _bilinear(name: str, function: Callable, shape: Callable) -> Primitive:
  """A JAX primitive for a bilinear `function`, compiled as is; shape(a, b) is the shape of its result.

  Under vmap it falls back to JAX's own operations, which are slower.
  """
  primitive = Primitive(name)
  primitive.def_impl(jax.jit(function))
  primitive.def_abstract_eval(lambda a, b: ShapedArray(shape(a.shape, b.shape), a.dtype))
  mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
  batching.primitive_batchers[primitive] = lambda values, axes: (jax.vmap(function, axes)(*values), 0)
  return primitive


def _kernel_gradient(x: jax.Array, y: jax.Array) -> jax.Array:
  """[B,H,W,C], [B,H,W,D] -> [3,3,C,D] by XLA, with axes in the order that its CPU backend runs fast (convolution.py)."""
  x = x.transpose(3, 1, 2, 0)
  y = y.transpose(1, 2, 0, 3)
  axes = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(x, y, (1, 1), [(1, 1)] * 2, dimension_numbers=axes).transpose(1, 2, 0, 3)


_by_y = _bilinear("winograd", functools.partial(_whole, back=False), lambda x, kernel: (*x[:3], kernel[3]))
_by_x = _bilinear("winograd_by_image", functools.partial(_whole, back=True), lambda y, kernel: (*y[:3], kernel[2]))
_by_kernel = _bilinear("winograd_by_kernel", _kernel_gradient, lambda x, y: (3, 3, x[3], y[3]))
ad.defbilinear(_by_y, lambda y, x, kernel: _by_x.bind(y, kernel), lambda y, x, kernel: _by_kernel.bind(x, y))
ad.defbilinear(_by_x, lambda x, y, kernel: _by_y.bind(x, kernel), lambda x, y, kernel: _by_kernel.bind(x, y))
ad.defbilinear(_by_kernel, lambda kernel, x, y: _by_x.bind(y, kernel), lambda kernel, x, y: _by_y.bind(x, kernel))
