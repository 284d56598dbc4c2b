"""The layers of all networks of the family, NHWC.

The six codebases share the residual block, the attention and the time embedding, up to a few constants and conventions.
`Style` collects these. A network chooses a style; the layers do not know which paper they implement.

    h = conv1(silu(norm1(x)))                    with resampling between SiLU and conv1 in resampling blocks
    h = norm2(h + emb(silu(e)))                  or norm2(h) (1 + scale) + shift       (ADM, "AdaGN")
    y = shortcut(x) + conv2(dropout(silu(h)))    times 1/sqrt(2) in NCSN++

Parameters are float32. Convolutions and attention compute in `Style.dtype`. Norms and the operations fused with them,
softmax, the time embedding and the last convolution of a network compute in float32.

Attention has one projection with columns [q | k | v], each split into heads. OpenAI's two other orders of these columns are
the same network with permuted weights, which `ddpm_jax.convert` handles.

The input x of a residual block may be a tuple of arrays, which stands for their concatenation and avoids the copy.
Implementations for each kind of device are in `kernels/`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.models.kernels.attention import attention
from ddpm_jax.models.kernels.convolution import convolve, product
from ddpm_jax.models.kernels.norm import Form, group_norm, statistics, wide
from ddpm_jax.models.recompute import costly

# ---------------------------------------------------------------- resampling without weights


def average_pool(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> [B, H/2, W/2, C], means of 2x2 blocks."""
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def nearest(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> [B, 2H, 2W, C], every pixel four times."""
  return x.repeat(2, axis=1).repeat(2, axis=2)


# ---------------------------------------------------------------- conventions

_fan_avg = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
_tiny = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")  # Ho's stand-in for zero
_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(+-1/sqrt(fan_in)), torch's default

# name -> (kernels, kernels of a branch's last layer, whether biases are random as in torch, whether that last bias is)
_INITIALIZATIONS = {
  "ho": (_fan_avg, _tiny, False, False),  # Ho's TensorFlow code, and NCSN++
  "openai": (_fan_in, nn.initializers.zeros, True, False),  # torch's default, branches start at exactly zero
  "torch": (_fan_in, _fan_in, True, True),  # the PyTorch ports of Ho's network start no layer at zero
}


def _thirds(init, scale):
  """`init`, with `scale` times the variance, for a [C, 3 C] kernel of three [C, C] blocks, each with its own fans."""

  def draw(key, shape, dtype):
    parts = [init(k, (shape[0], shape[1] // 3), dtype) for k in jax.random.split(key, 3)]
    return math.sqrt(scale) * jnp.concatenate(parts, axis=1)

  return draw


@dataclasses.dataclass(frozen=True)
class Style:
  """The differences between the families' layers. Hashable; holds no arrays.

  Each method applies one named layer of the calling module.

  Attributes:
    initialization: initial parameters: "ho", "openai" or "torch".
    eps: added to the variance in GroupNorm.
    groups: GroupNorm has min(groups, channels // min_group) groups.
    min_group: the least number of channels per group.
    scale_shift: the embedding scales and shifts the second norm instead of being added before it.
    residual_scale: factor on every residual sum.
    qkv_scale: factor on the variance of attention's first projection at initialization.
    attention: "xla", "cudnn" (NVIDIA GPUs, half precision), or "auto": cuDNN wherever its limits allow it.
    dtype: dtype of convolutions and attention.
  """

  initialization: str = "ho"
  eps: float = 1e-6
  groups: int = 32
  min_group: int = 1
  scale_shift: bool = False
  residual_scale: float = 1.0
  qkv_scale: float = 1.0
  attention: str = "auto"
  dtype: Any = jnp.float32

  def __post_init__(self):
    if self.initialization not in _INITIALIZATIONS:
      known = ", ".join(_INITIALIZATIONS)
      raise UserError(f"initialization={self.initialization!r} is unknown; use one of {known}")
    if self.attention not in ("auto", "xla", "cudnn"):
      raise UserError(f'attention={self.attention!r} is unknown; use "auto", "xla" or "cudnn"')

  def replace(self, **fields):
    return dataclasses.replace(self, **fields)

  def norm(self, x, name, **around):
    """GroupNorm with the family's number of groups -> (y, x). `around`: see GroupNorm."""
    channels = _channels(x)
    groups = min(self.groups, max(channels // self.min_group, 1))
    if channels % groups:
      raise UserError(
        f"{channels} channels do not divide into {groups} norm groups; use multiples of {groups}, or set groups"
      )
    return GroupNorm(groups, self.eps, self.dtype, name=name)(x, **around)

  def conv(self, x, features, name, **options):
    """3x3 convolution with its bias; options as in `conv_and_bias`."""
    y, bias = self.conv_and_bias(x, features, name, **options)
    return _add(y, bias)

  def conv_and_bias(self, x, features, name, *, strides=1, padding=(1, 1), last=False, dtype=None):
    """(3x3 convolution without its bias, the bias); `padding` is the same for both axes."""
    inits = self._inits(9 * x.shape[-1], last)
    return Conv(features, strides, padding, dtype or self.dtype, **inits, name=name)(x)

  def dense(self, x, features, name, *, last=False, dtype=None):
    """The same matrix at every position, torch's 1x1 convolution."""
    (y,), bias = Dense((features,), dtype or self.dtype, **self._inits(x.shape[-1], last), name=name)(x)
    return _add(y, bias)

  def dense_and_bias(self, x, features, name):
    """(the product without its bias, the bias)."""
    (y,), bias = Dense((features,), self.dtype, **self._inits(_channels(x), last=False), name=name)(x)
    return y, bias

  def qkv(self, x, name):
    """[..., C] -> queries, keys, values, each [..., C]."""
    channels = x.shape[-1]
    inits = self._inits(channels, last=False)
    inits["kernel_init"] = _thirds(inits["kernel_init"], self.qkv_scale)
    products, bias = Dense((channels,) * 3, self.dtype, **inits, name=name)(x)
    return [_add(y, b) for y, b in zip(products, jnp.split(bias, 3), strict=True)]

  def _inits(self, fan_in, last):
    kernel, last_kernel, draw_bias, draw_last_bias = _INITIALIZATIONS[self.initialization]
    bound = 1 / math.sqrt(fan_in)
    drawn = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
    bias = drawn if (draw_last_bias if last else draw_bias) else nn.initializers.zeros
    return {"kernel_init": last_kernel if last else kernel, "bias_init": bias}


def _add(y, bias):
  """y [..., C] + bias [C], in the dtype of y."""
  return y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


def _parts(x):
  return x if isinstance(x, tuple) else (x,)


def _channels(x):
  return sum(part.shape[-1] for part in _parts(x))


# ---------------------------------------------------------------- single layers


class GroupNorm(nn.Module):
  """Group normalization (Wu & He 2018) fused with the operations around it (kernels/norm.py).

  Attributes:
    groups: groups of channels.
    eps: added to the variance.
    dtype: dtype of the result, which is computed in float32.
  """

  groups: int
  eps: float
  dtype: Any

  @nn.compact
  def __call__(self, x, *, offset=None, scale_shift=None, silu=False, keep=None, rate=0.0):
    """[B, ..., C], or parts of it -> (y [B, ..., C], x).

    x is returned so that the gradients of its other uses are added in the same operation.

    Args:
      x: an array, or a tuple of arrays that stands for their concatenation.
      offset: [B, C] or [C], added to x.
      scale_shift: two [B, C]; the normalized x is multiplied by 1 + scale, then shift is added.
      silu: whether SiLU follows.
      keep: [B, ..., C], 0 where dropout drops.
      rate: dropout rate, with `keep`.
    """
    parts = _parts(x)
    channels = _channels(x)
    batch = parts[0].shape[0]
    pixels = math.prod(parts[0].shape[1:-1])
    scale = self.param("scale", nn.initializers.ones, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    if scale_shift is not None:
      bias = bias[None] * (1 + scale_shift[0]) + scale_shift[1]
      scale = scale[None] * (1 + scale_shift[0])
    offset = jnp.zeros(channels) if offset is None else offset
    vectors = (v.astype(wide(parts[0])) for v in (offset, scale, bias))
    offset, scale, bias = (v[None] if v.ndim == 1 else v for v in vectors)  # [1, C] for all images, or [B, C]
    flat = tuple(part.reshape(batch, pixels, part.shape[-1]) for part in parts)
    keep = keep if keep is None else keep.reshape(batch, pixels, channels)
    mean, rstd = map(costly, statistics(flat, offset, self.groups, self.eps))
    form = Form(len(parts), self.groups, self.eps, silu, 0.0 if keep is None else rate, jnp.dtype(self.dtype))
    y, flat = group_norm(flat, offset, scale, bias, mean, rstd, keep, form)
    parts = tuple(part.reshape(like.shape) for part, like in zip(flat, parts, strict=True))
    return y.reshape(*parts[0].shape[:-1], channels), parts if isinstance(x, tuple) else parts[0]


class Conv(nn.Module):
  """3x3 convolution: x -> (the convolution without its bias, the bias). The next operation can add the bias at less cost."""

  features: int
  strides: int
  padding: tuple[int, int]
  dtype: Any
  kernel_init: Callable
  bias_init: Callable

  @nn.compact
  def __call__(self, x):
    kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features), jnp.float32)
    bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
    y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.strides, self.padding)
    return costly(y), bias


class Dense(nn.Module):
  """x W -> (its columns in blocks of these widths, the bias, which is not added). x is an array or a tuple of its parts."""

  widths: tuple[int, ...]
  dtype: Any
  kernel_init: Callable
  bias_init: Callable

  @nn.compact
  def __call__(self, x):
    parts = [part.astype(self.dtype) for part in _parts(x)]
    kernel = self.param("kernel", self.kernel_init, (_channels(x), sum(self.widths)), jnp.float32)
    bias = self.param("bias", self.bias_init, (sum(self.widths),), jnp.float32)
    rows = jnp.split(kernel.astype(self.dtype), _borders(part.shape[-1] for part in parts))
    blocks = [jnp.split(some, _borders(self.widths), axis=1) for some in rows]
    products = [sum(map(product, parts, column)) for column in zip(*blocks, strict=True)]
    return [costly(y) for y in products], bias


def _borders(sizes):
  """The offset of every block but the first."""
  return [int(total) for total in np.cumsum(list(sizes))[:-1]]


class Keep(nn.Module):
  """Dropout's mask: int8 of the given shape, 0 with probability `rate`, from the rng stream "dropout"."""

  rate: float

  @nn.compact
  def __call__(self, shape):
    return jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, shape).astype(jnp.int8)


# ---------------------------------------------------------------- blocks


class TimeEmbedding(nn.Module):
  """Sinusoids [B, C] -> [B, features] by dense, SiLU, dense, in float32."""

  style: Style
  features: int

  @nn.compact
  def __call__(self, sinusoids):
    emb = self.style.dense(sinusoids, self.features, "dense_0", dtype=jnp.float32)
    return self.style.dense(nn.silu(emb), self.features, "dense_1", dtype=jnp.float32)


class ResBlock(nn.Module):
  """Residual block with `features` output channels.

  Attributes:
    style: conventions of the family.
    features: channels of the output.
    dropout: rate before the second convolution, with train=True.
    resample: None, `average_pool` or `nearest`; applied to the branch before its first convolution, and to x.
    project: project x by a 1x1 layer even where the width stays the same (as NCSN++ does when it resamples).
  """

  style: Style
  features: int
  dropout: float = 0.0
  resample: Callable | None = None
  project: bool = False

  @nn.compact
  def __call__(self, x, emb, train):
    style = self.style
    h, x = style.norm(x, "norm1", silu=True)
    if self.resample is not None:
      h = self.resample(h)
      x = jax.tree.map(self.resample, x)
    h, bias = style.conv_and_bias(h, self.features, "conv1")
    # the embedding is [B, E]: its projection costs nothing, so it stays in float32
    width = self.features * (2 if style.scale_shift else 1)
    shift = style.dense(nn.silu(emb), width, "emb", dtype=jnp.float32)
    around = (
      {"scale_shift": jnp.split(shift, 2, axis=-1), "offset": bias} if style.scale_shift else {"offset": bias[None] + shift}
    )
    if train and self.dropout:
      around |= {"keep": Keep(self.dropout, name="Dropout_0")(h.shape), "rate": self.dropout}
    h, _ = style.norm(h, "norm2", silu=True, **around)
    h, bias = style.conv_and_bias(h, self.features, "conv2", last=True)
    if _channels(x) != self.features or self.project:
      x, bias_of_shortcut = style.dense_and_bias(x, self.features, "shortcut")
      bias += bias_of_shortcut
    return _residual(style, x, _add(h, bias))


class Attention(nn.Module):
  """Self-attention over all positions, with `heads` heads and logits q.k / sqrt(channels per head).

  normalize: whether a norm comes first.
  """

  style: Style
  heads: int = 1
  normalize: bool = True

  @nn.compact
  def __call__(self, x):
    b, height, width, channels = x.shape
    if channels % self.heads:
      raise UserError(f"{channels} channels do not divide into {self.heads} attention heads; choose a divisor of {channels}")
    if self.style.attention == "cudnn" and self.style.dtype == jnp.float32:
      raise UserError('attention="cudnn" computes in half precision: set dtype="bfloat16", or attention="auto"')
    h = x
    if self.normalize:
      h, x = self.style.norm(x, "norm")
    qkv = self.style.qkv(h, "qkv")
    q, k, v = (y.reshape(b, height * width, self.heads, channels // self.heads) for y in qkv)
    h = costly(self.mix(q, k, v))
    h = self.style.dense(h.reshape(b, height, width, channels), channels, "out", last=True)
    return _residual(self.style, x, h)

  def mix(self, q, k, v):
    """softmax(q k) v, each [B, N, heads, C / heads]. A method of its own, so that guidance can replace it (perturbed.py)."""
    return attention(q, k, v, self.style.attention)


class Downsample(nn.Module):
  """3x3 convolution of stride 2. `padding` (0, 1) is Ho's (TensorFlow's SAME), (1, 1) is OpenAI's."""

  style: Style
  padding: tuple[int, int]

  @nn.compact
  def __call__(self, x):
    return self.style.conv(x, x.shape[-1], "conv", strides=2, padding=self.padding)


class Upsample(nn.Module):
  """Every pixel four times, then a 3x3 convolution."""

  style: Style

  @nn.compact
  def __call__(self, x):
    return self.style.conv(nearest(x), x.shape[-1], "conv")


class Readout(nn.Module):
  """Last feature map -> float32 [B, H, W, features]: norm, SiLU, convolution; with `block`, after a residual block."""

  style: Style
  features: int
  block: bool = False
  dropout: float = 0.0

  @nn.compact
  def __call__(self, h, emb, train):
    if self.block:
      h = ResBlock(self.style, h.shape[-1], self.dropout, name="block")(h, emb, train)
    style = self.style.replace(dtype=jnp.float32)
    h, _ = style.norm(h, "norm", silu=True)
    return style.conv(h, self.features, "conv", last=True)


def _residual(style, x, h):
  h = h + x  # in this order cuDNN adds x to the convolution that made h
  return h if style.residual_scale == 1.0 else h * style.residual_scale
