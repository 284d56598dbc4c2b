"""The UNet of denoising-diffusion-pytorch (github.com/lucidrains), from version 1.9 on.

    init_conv 7x7
    down_l:  block, block, attention, then halve by a 1x1 layer on 2x2 pixels; the last level keeps its size
    mid:     block, full attention, block
    up_l:    (block on [h | skip]) x 2, attention, then double; the last level keeps its size
    out:     block on [h | output of init_conv], 1x1 convolution

Both blocks of a level keep the width of the level's input. Norms are vector norms over channels (no mean is
subtracted). The time embedding scales and shifts the first norm of a block. Attention has a few learned keys and values in
addition to the image's. Except on the last level (or as `full_attn` says), attention is linear: softmax over channels
for queries, over positions for keys (Shen et al. 2018).
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.models import layers
from ddpm_jax.models.recompute import recomputing
from ddpm_jax.models.unet import check_size


class UNetLucidrains(nn.Module):
  """`network(x [B, H, W, C], time [B], cond) -> [B, H, W, out_channels]`, float32.

  Attributes:
    channels: `dim`; level l ends with channels * channel_mult[l].
    channel_mult: `dim_mults`, one per level; between levels the image is halved.
    init_channels: width of the first convolution; None for `channels`.
    out_channels: 3 for a mean, 6 with a learned variance.
    heads, head_channels: heads of every attention, and channels per head.
    memory: number of learned keys and values per head.
    full_attn: whether attention is full, per level; None means full on the last level only.
    dropout: rate inside the first half of blocks, from the rng stream "dropout" when train=True.
    theta: the slowest sinusoid has about this period.
    dtype: dtype of convolutions and attention.
    remat: "none", or "blocks" if the backward pass recomputes blocks.
  """

  channels: int = 64
  channel_mult: Sequence[int] = (1, 2, 4, 8)
  init_channels: int | None = None
  out_channels: int = 3
  heads: int = 4
  head_channels: int = 32
  memory: int = 4
  full_attn: Sequence[bool] | None = None
  dropout: float = 0.0
  theta: float = 10_000.0
  dtype: Any = jnp.float32
  remat: str = "none"

  @nn.compact
  def __call__(self, x, time, cond=None, *, train: bool = False):
    self.check_size(x.shape[1], x.shape[2])
    emb = self.embed(time)
    first = nn.Conv(self.init_channels or self.channels, (7, 7), padding=3, dtype=self.dtype, name="init_conv")(x)
    widths = [first.shape[-1], *(self.channels * mult for mult in self.channel_mult)]
    last = len(self.channel_mult) - 1
    h = first
    skips = []
    for level in range(last + 1):
      for i in range(2):
        h = self.block(widths[level], f"downs_{level}_{i}", emb, train)(h)
        if i == 0:
          skips.append(h)
      h = h + self.attention(level, f"downs_{level}_2")(h)
      skips.append(h)
      if level < last:
        h = nn.Dense(widths[level + 1], dtype=self.dtype, name=f"downs_{level}_3")(blocks_to_channels(h))
      else:
        h = self.conv(widths[level + 1], f"downs_{level}_3")(h)
    h = self.block(widths[-1], "mid_block1", emb, train)(h)
    h = h + Attention(self.heads, self.head_channels, self.memory, self.dtype, name="mid_attn")(h)
    h = self.block(widths[-1], "mid_block2", emb, train)(h)
    for k, level in enumerate(range(last, -1, -1)):
      for i in range(2):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = self.block(widths[level + 1], f"ups_{k}_{i}", emb, train)(h)
      h = h + self.attention(level, f"ups_{k}_2")(h)
      h = self.conv(widths[level], f"ups_{k}_3")(layers.nearest(h) if level else h)
    h = jnp.concatenate([h, first], axis=-1)
    h = self.block(widths[0], "final_res_block", emb, train)(h)
    return nn.Dense(self.out_channels, name="final_conv")(h.astype(jnp.float32))

  def check_size(self, height: int, width: int):
    """Raises UserError if the network does not fit images of this size, or has no layers."""
    if self.channels < 2 or not self.channel_mult:
      raise UserError(f"channels={self.channels} and channel_mult={tuple(self.channel_mult)} leave no network")
    if self.full_attn is not None and len(self.full_attn) != len(self.channel_mult):
      raise UserError(f"full_attn has {len(self.full_attn)} entries, but channel_mult has {len(self.channel_mult)}")
    check_size(height, width, len(self.channel_mult))

  @nn.nowrap
  def embed(self, time):
    """Time [B] -> [B, 4 channels] float32."""
    half = self.channels // 2
    freqs = jnp.exp(jnp.arange(half, dtype=jnp.float32) * jnp.float32(-math.log(self.theta) / (half - 1)))
    phases = time.astype(jnp.float32)[:, None] * freqs[None, :]
    waves = jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)
    emb = nn.Dense(4 * self.channels, name="time_mlp_1")(waves)
    return nn.Dense(4 * self.channels, name="time_mlp_3")(nn.gelu(emb, approximate=False))

  @nn.nowrap
  def block(self, features, name, emb, train):
    block = recomputing(ResBlock, self.remat, static_argnums=(3,))(features, self.dropout, self.dtype, name=name)
    return lambda h: block(h, emb, train)

  @nn.nowrap
  def attention(self, level, name):
    full = level == len(self.channel_mult) - 1 if self.full_attn is None else self.full_attn[level]
    return (Attention if full else LinearAttention)(self.heads, self.head_channels, self.memory, self.dtype, name=name)

  @nn.nowrap
  def conv(self, features, name):
    return nn.Conv(features, (3, 3), padding=1, dtype=self.dtype, name=name)


class ChannelNorm(nn.Module):
  """x / |x| sqrt(C) g along channels, in float32."""

  @nn.compact
  def __call__(self, x):
    g = self.param("g", nn.initializers.ones, (x.shape[-1],))
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    length = jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
    g = g.reshape((1,) * (x.ndim - 1) + g.shape)
    return x / jnp.maximum(length, 1e-12) * (g * math.sqrt(x.shape[-1]))


class ResBlock(nn.Module):
  """Two convolutions with norms; the embedding scales and shifts the first norm."""

  features: int
  dropout: float
  dtype: Any

  @nn.compact
  def __call__(self, x, emb, train):
    scale, shift = jnp.split(nn.Dense(2 * self.features, name="mlp")(nn.silu(emb))[:, None, None, :], 2, axis=-1)
    h = ChannelNorm(name="norm1")(nn.Conv(self.features, (3, 3), padding=1, dtype=self.dtype, name="proj1")(x))
    h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h * (scale + 1) + shift))
    h = ChannelNorm(name="norm2")(nn.Conv(self.features, (3, 3), padding=1, dtype=self.dtype, name="proj2")(h))
    if x.shape[-1] != self.features:
      x = nn.Dense(self.features, dtype=self.dtype, name="res_conv")(x)
    return x + nn.silu(h)


class Attention(nn.Module):
  """Softmax attention over all positions and `memory` learned ones; without the residual sum."""

  heads: int
  head_channels: int
  memory: int
  dtype: Any

  @nn.compact
  def __call__(self, x):
    b, height, width, channels = x.shape
    q, k, v = _qkv(self, x)
    memory = self.param("mem_kv", nn.initializers.normal(1.0), (2, self.heads, self.memory, self.head_channels))
    memory = jnp.broadcast_to(memory.transpose(0, 2, 1, 3)[:, None], (2, b, self.memory, self.heads, self.head_channels))
    k, v = (jnp.concatenate([m.astype(a.dtype), a], axis=1) for m, a in zip(memory, (k, v), strict=True))
    h = jax.nn.dot_product_attention(q, k, v, implementation="xla").reshape(b, height, width, -1)
    return nn.Dense(channels, dtype=self.dtype, name="to_out")(h)


class LinearAttention(nn.Module):
  """Attention whose cost grows linearly with the number of positions; without the residual sum."""

  heads: int
  head_channels: int
  memory: int
  dtype: Any

  @nn.compact
  def __call__(self, x):
    b, height, width, channels = x.shape
    q, k, v = (a.astype(jnp.float32) for a in _qkv(self, x))
    memory = self.param("mem_kv", nn.initializers.normal(1.0), (2, self.heads, self.head_channels, self.memory))
    memory = jnp.broadcast_to(memory.transpose(0, 3, 1, 2)[:, None], (2, b, self.memory, self.heads, self.head_channels))
    k, v = (jnp.concatenate([m, a], axis=1) for m, a in zip(memory, (k, v), strict=True))
    q = jax.nn.softmax(q, axis=-1) / math.sqrt(self.head_channels)
    context = jnp.einsum("bnhd,bnhe->bhde", jax.nn.softmax(k, axis=1), v)
    h = jnp.einsum("bhde,bnhd->bnhe", context, q).reshape(b, height, width, -1)
    h = nn.Dense(channels, dtype=self.dtype, name="to_out")(h.astype(self.dtype))
    return ChannelNorm(name="out_norm")(h)


def blocks_to_channels(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> [B, H/2, W/2, 4 C], the four pixels of a block side by side for every channel."""
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4).reshape(b, h // 2, w // 2, 4 * c)


def _qkv(attention, x):
  """Queries, keys and values [B, positions, heads, channels per head] of the normed x."""
  h = ChannelNorm(name="norm")(x).reshape(len(x), -1, x.shape[-1])
  width = attention.heads * attention.head_channels
  qkv = nn.Dense(3 * width, use_bias=False, dtype=attention.dtype, name="to_qkv")(h)
  return (part.reshape(*h.shape[:2], attention.heads, attention.head_channels) for part in jnp.split(qkv, 3, axis=-1))
