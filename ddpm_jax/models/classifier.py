"""ADM's noisy classifier p(y | x_t): the encoder of its UNet and a pool (Dhariwal & Nichol 2021, section 4)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.models import layers
from ddpm_jax.models.unet_adm import UNetADM


class EncoderUNet(UNetADM):
  """`network(x [B, H, W, C], time [B]) -> logits [B, out_channels]`, float32.

  The published classifiers have channels=128, head_channels=64, resblock_updown=True and num_res_blocks 2 or 4 ("depth").

  Attributes, in addition to those of `UNetADM`:
    out_channels: number of classes.
    pool: "attention" (in all published classifiers), "adaptive", "spatial" or "spatial_v2".
  """

  out_channels: int = 1000
  pool: str = "attention"

  @nn.compact
  def __call__(self, x, time, cond=None, *, train: bool = False):  # type: ignore[override]  # no features
    emb = self.embed(time, cond)
    h, skips = self.encode(self.stem(x, cond), emb, train)
    if self.pool not in _POOLS:
      raise UserError(f"pool={self.pool!r} is unknown; use one of {', '.join(_POOLS)}")
    style = self.style
    if self.pool == "attention":
      pool = AttentionPool(style, self.heads(h.shape[-1]), self.out_channels, name="pool_attention")
      return pool(h)
    if self.pool == "adaptive":
      return AdaptivePool(style, self.out_channels, name="pool_adaptive")(h)
    means = jnp.concatenate([feature.astype(jnp.float32).mean((1, 2)) for feature in (*skips, h)], axis=-1)
    return SpatialPool(style, self.out_channels, self.pool == "spatial_v2", name=f"pool_{self.pool}")(means)


_POOLS = ("attention", "adaptive", "spatial", "spatial_v2")


class AttentionPool(nn.Module):
  """Attention from the mean of all positions to all positions and itself, as in CLIP's image encoder."""

  style: layers.Style
  heads: int
  features: int

  @nn.compact
  def __call__(self, h):
    style = self.style.replace(dtype=jnp.float32)
    b, height, width, channels = h.shape
    h = style.norm(h, "norm", silu=True)[0].reshape(b, height * width, channels)
    h = jnp.concatenate([h.mean(1, keepdims=True), h], axis=1)
    start = nn.initializers.normal(channels**-0.5)
    h = h + self.param("positional_embedding", start, (height * width + 1, channels))[None]
    q, k, v = (y.reshape(b, height * width + 1, self.heads, channels // self.heads) for y in style.qkv(h, "qkv"))
    mean = jax.nn.dot_product_attention(q[:, :1], k, v, implementation="xla")
    return style.dense(mean.reshape(b, channels), self.features, "out")


class AdaptivePool(nn.Module):
  """A linear readout of the mean over all positions."""

  style: layers.Style
  features: int

  @nn.compact
  def __call__(self, h):
    style = self.style.replace(dtype=jnp.float32)
    return style.dense(style.norm(h, "norm", silu=True)[0].mean((1, 2)), self.features, "out", last=True)


class SpatialPool(nn.Module):
  """Two layers on the spatial means [B, F] of the encoder's feature maps, with ReLU, or norm and SiLU in version 2."""

  style: layers.Style
  features: int
  normalize: bool

  @nn.compact
  def __call__(self, means):
    style = self.style.replace(dtype=jnp.float32)
    h = style.dense(means, 2048, "hidden")
    h = style.norm(h, "norm", silu=True)[0] if self.normalize else nn.relu(h)
    return style.dense(h, self.features, "out")
