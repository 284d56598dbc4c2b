"""The layers of every network of the family, NHWC.

The six codebases use the same residual block, attention and embedding of time, up to a few constants and
conventions. Those are collected in `Style`; a network chooses one, and no layer asks which paper it serves.

    h = conv1(act(norm1(x)))                     resampled between act and conv1 in resampling blocks
    h = norm2(h + emb(act(e)))                   or norm2(h) (1 + scale) + shift       (ADM, "AdaGN")
    y = shortcut(x) + conv2(dropout(act(h)))     times 1/sqrt(2) in NCSN++

Parameters are float32; convolutions and attention compute in `Style.dtype`; norms with what follows them, softmax,
the embedding of time and a network's last convolution stay in float32.

Attention stores one projection with columns [q | k | v], each split into heads. OpenAI's two orders of those
columns are the same network with permuted weights: `ddpm_jax.convert` permutes, this module need not know.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from ddpm_jax.errors import UserError
from ddpm_jax.models.convolution import convolve

# ---------------------------------------------------------------- embeddings of time


def sin_cos(time: jax.Array, dim: int) -> jax.Array:
  """[B] -> [B, dim], Ho's [sin | cos] with frequencies 10000^(-k / (dim/2 - 1)); an odd `dim` ends in a zero."""
  half = dim // 2
  arg = _phases(time, half, half - 1, 10_000.0)
  return _pad(jnp.concatenate([jnp.sin(arg), jnp.cos(arg)], axis=-1), dim)


def cos_sin(time: jax.Array, dim: int, max_period: float = 10_000.0) -> jax.Array:
  """[B] -> [B, dim], OpenAI's [cos | sin] with frequencies max_period^(-k / (dim/2)); odd `dim` ends in a zero."""
  half = dim // 2
  arg = _phases(time, half, half, max_period)
  return _pad(jnp.concatenate([jnp.cos(arg), jnp.sin(arg)], axis=-1), dim)


def _phases(time, half, denominator, max_period):
  # float32, in the references' order of operations: at time 4000 the last bit of a frequency is worth 2e-4
  exponent = np.float32(-math.log(max_period)) * np.arange(half, dtype=np.float32) / np.float32(denominator)
  return time.astype(jnp.float32)[:, None] * jnp.asarray(np.exp(exponent))[None, :]


def _pad(embedding, dim):
  return jnp.pad(embedding, ((0, 0), (0, dim - embedding.shape[-1])))


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

# name -> kernels, kernels of the last layer of a branch, are biases drawn as in torch, is that last bias drawn
_INITIALIZATIONS = {
  "ho": (_fan_avg, _tiny, False, False),  # Ho's TensorFlow code, and NCSN++
  "openai": (_fan_in, nn.initializers.zeros, True, False),  # torch's default, branches start at exactly zero
  "torch": (_fan_in, _fan_in, True, True),  # the PyTorch ports of Ho's network zero nothing
}


def _thirds(init, scale):
  """`init`, of `scale` times the variance, for a [C, 3 C] kernel that holds three [C, C] ones, each with its own fans."""

  def draw(key, shape, dtype):
    parts = [init(k, (shape[0], shape[1] // 3), dtype) for k in jax.random.split(key, 3)]
    return math.sqrt(scale) * jnp.concatenate(parts, axis=1)

  return draw


# ---------------------------------------------------------------- what the backward pass recomputes

_COSTLY = "costly"
# `UNet.remat` -> what of a layer is kept until its gradient is taken, beside its input: each keeps less than the one before
REMAT = {
  "none": jax.checkpoint_policies.everything_saveable,
  "norms": jax.checkpoint_policies.save_only_these_names(_COSTLY),
  "blocks": jax.checkpoint_policies.nothing_saveable,
}


def recomputing(layer: type[nn.Module], remat: str, **how) -> type[nn.Module]:
  """`layer`, with a policy of REMAT; `how`: further arguments of nn.remat."""
  if remat not in REMAT:
    raise UserError(f'remat={remat!r} is unknown; use "auto", {", ".join(map(repr, REMAT))}')
  return layer if remat == "none" else nn.remat(layer, policy=REMAT[remat], **how)


def _costly(x: jax.Array) -> jax.Array:
  """x, known to REMAT as what is cheaper kept than computed twice."""
  return checkpoint_name(x, _COSTLY)


# ---------------------------------------------------------------- norms


class GroupNorm(nn.Module):
  """Group normalization (Wu & He 2018), [B,...,C] -> float32 of that shape, with two-pass statistics.

  What follows until the next layer casts its input, scale, shift and SiLU, is float32 as well: one pass, rounded once.

  flax's with other sums: over the pixels first, whole vectors of channels at a time, then over the channels of a group.
  All at once, XLA's CPU backend adds one number after the other; and there a product with ones is faster than a sum.
  """

  groups: int
  eps: float

  @nn.compact
  def __call__(self, x):
    channels, pixels = x.shape[-1], math.prod(x.shape[1:-1])
    of_channels = (1,) * (x.ndim - 1) + (channels,)
    scale = self.param("scale", nn.initializers.ones, (channels,)).reshape(of_channels)
    bias = self.param("bias", nn.initializers.zeros, (channels,)).reshape(of_channels)

    def mean(x):
      x = x.reshape(-1, pixels, channels)
      product = lambda x: jnp.full((x.shape[0], 1, pixels), 1 / pixels, x.dtype) @ x
      x = jax.lax.platform_dependent(x, cpu=product, default=lambda x: jnp.mean(x, 1, keepdims=True))
      grouped = _costly(jnp.mean(x.reshape(-1, *of_channels[1:-1], self.groups, channels // self.groups), -1))
      return jnp.repeat(grouped, channels // self.groups, -1)

    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = x - mean(x)
    return x * (jax.lax.rsqrt(mean(x**2) + self.eps) * scale) + bias


@dataclasses.dataclass(frozen=True)
class Style:
  """What the families' layers disagree about.

  Hashable, holds no arrays. Its methods apply one named layer of the module that calls them.

  Attributes:
    initialization: "ho", "openai" or "torch": how parameters start.
    eps: added to the variance in GroupNorm.
    groups: GroupNorm has min(groups, channels // min_group) groups.
    scale_shift: the embedding scales and shifts the second norm instead of being added before it.
    residual_scale: factor on every residual sum.
    qkv_scale: factor on the variance of attention's first projection at the start.
    attention: implementation of `jax.nn.dot_product_attention`: "xla", on an NVIDIA GPU in half precision "cudnn", or
      "auto", cuDNN's wherever it can.
    dtype: of convolutions and attention.
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

  def norm(self, x, name):
    """GroupNorm of as many groups as the family has."""
    channels = x.shape[-1]
    groups = min(self.groups, max(channels // self.min_group, 1))
    if channels % groups:
      raise UserError(
        f"{channels} channels do not divide into {groups} norm groups; use multiples of {groups}, or set groups"
      )
    return GroupNorm(groups, self.eps, name=name)(x)

  def conv(self, x, features, name, *, strides=1, padding=(1, 1), last=False, dtype=None):
    """3x3 convolution; `padding` is the same for both axes."""
    inits = self._inits(9 * x.shape[-1], last)
    how = dict(dtype=dtype or self.dtype, conv_general_dilated=convolve)
    return _costly(nn.Conv(features, (3, 3), strides, [padding] * 2, name=name, **how, **inits)(x))

  def dense(self, x, features, name, *, last=False, dtype=None):
    """The same matrix at every position, torch's 1x1 convolution."""
    return _costly(nn.Dense(features, dtype=dtype or self.dtype, name=name, **self._inits(x.shape[-1], last))(x))

  def qkv(self, x, name):
    """[B, N, C] -> [B, N, 3 C]: queries, keys, values."""
    inits = self._inits(x.shape[-1], last=False)
    inits["kernel_init"] = _thirds(inits["kernel_init"], self.qkv_scale)
    return _costly(nn.Dense(3 * x.shape[-1], dtype=self.dtype, name=name, **inits)(x))

  def _inits(self, fan_in, last):
    kernel, last_kernel, draw_bias, draw_last_bias = _INITIALIZATIONS[self.initialization]
    bound = 1 / math.sqrt(fan_in)
    drawn = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
    bias = drawn if (draw_last_bias if last else draw_bias) else nn.initializers.zeros
    return {"kernel_init": last_kernel if last else kernel, "bias_init": bias}


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
  """Residual block of `features` channels.

  `resample` (None, `average_pool` or `nearest`) acts on the branch before its first convolution, and on x.
  `project` puts a 1x1 projection on x even where the width stays the same (NCSN++ does when it resamples).
  """

  style: Style
  features: int
  dropout: float = 0.0
  resample: Callable | None = None
  project: bool = False

  @nn.compact
  def __call__(self, x, emb, train):
    style = self.style
    h = nn.silu(style.norm(x, "norm1"))
    if self.resample is not None:
      h, x = self.resample(h), self.resample(x)
    h = style.conv(h, self.features, "conv1")
    # the embedding is [B, E]: its projection costs nothing, so it stays in float32
    width = self.features * (2 if style.scale_shift else 1)
    shift = style.dense(nn.silu(emb), width, "emb", dtype=jnp.float32).astype(style.dtype)[:, None, None, :]
    if style.scale_shift:
      scale, shift = jnp.split(shift, 2, axis=-1)
      h = style.norm(h, "norm2") * (1 + scale) + shift
    else:
      h = style.norm(h + shift, "norm2")
    h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
    h = style.conv(h, self.features, "conv2", last=True)
    if x.shape[-1] != self.features or self.project:
      x = style.dense(x, self.features, "shortcut")
    return _residual(style, x, h)


class Attention(nn.Module):
  """Self-attention over all positions, with `heads` heads and logits q.k / sqrt(channels per head)."""

  style: Style
  heads: int = 1

  @nn.compact
  def __call__(self, x):
    b, height, width, channels = x.shape
    if channels % self.heads:
      raise UserError(f"{channels} channels do not divide into {self.heads} attention heads; choose a divisor of {channels}")
    if self.style.attention == "cudnn" and self.style.dtype == jnp.float32:
      raise UserError('attention="cudnn" computes in half precision: set dtype="bfloat16", or attention="auto"')
    h = self.style.norm(x, "norm").reshape(b, height * width, channels)
    qkv = self.style.qkv(h, "qkv").reshape(b, height * width, 3, self.heads, channels // self.heads)
    q, k, v = (qkv[:, :, i] for i in range(3))
    h = _costly(jax.nn.dot_product_attention(q, k, v, implementation=implementation(self.style, channels // self.heads)))
    h = self.style.dense(h.reshape(b, height, width, channels), channels, "out", last=True)
    return _residual(self.style, x, h)


def implementation(style: Style, head_channels: int) -> str:
  """Of attention, chosen when a network is traced: cuDNN's flash attention has limits, and refuses what exceeds them."""
  if style.attention != "auto":
    return style.attention
  generation = _nvidia_generation()
  widest = 256 if generation >= 9 else 128 if generation == 8 else 0  # Hopper, Ampere
  half = jnp.dtype(style.dtype).itemsize == 2
  return "cudnn" if half and head_channels % 8 == 0 and head_channels <= widest else "xla"


def _nvidia_generation() -> int:
  """Major compute capability of the first device; 0 without an NVIDIA GPU."""
  major = getattr(jax.devices()[0], "compute_capability", "").split(".")[0]
  return int(major) if major.isdigit() else 0  # AMD's have names


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
  """Last feature map -> float32 [B, H, W, features]: norm, SiLU, convolution; `block`: a residual block before."""

  style: Style
  features: int
  block: bool = False
  dropout: float = 0.0

  @nn.compact
  def __call__(self, h, emb, train):
    if self.block:
      h = ResBlock(self.style, h.shape[-1], self.dropout, name="block")(h, emb, train)
    style = self.style.replace(dtype=jnp.float32)
    return style.conv(nn.silu(style.norm(h, "norm")), self.features, "conv", last=True)


def _residual(style, x, h):
  h = x + h
  return h if style.residual_scale == 1.0 else h * style.residual_scale


# ---------------------------------------------------------------- sizes


def check_size(height: int, width: int, levels: int, attention_resolutions: Sequence[int] = ()):
  """Raises UserError unless such images can be halved levels - 1 times and then have every size that attends."""
  factor = 2 ** (levels - 1)
  if height % factor or width % factor:
    most = 1 + min((side & -side).bit_length() - 1 for side in (height, width))
    up = lambda side: -(-side // factor) * factor
    raise UserError(
      f"images of {height}x{width} cannot be halved {levels - 1} times, as {levels} entries of channel_mult ask; "
      f"sides must be multiples of {factor}: use at most {most} entries, or pad the images to "
      f"{up(height)}x{up(width)}"
    )
  sizes = [height >> level for level in range(levels)]
  for resolution in attention_resolutions:
    if resolution not in sizes:
      raise UserError(
        f"attention_resolutions has {resolution}, which {height}x{width} images never are in {levels} levels; "
        f"choose from {', '.join(map(str, sizes))}"
      )
