"""OpenAI's UNet, in the forms of Improved DDPM (Nichol & Dhariwal 2021) and ADM (Dhariwal & Nichol 2021).

Differences from Ho's UNet: several heads, labels added to the time embedding, scale and shift instead of addition
(`scale_shift`), residual blocks that resample (`resblock_updown`), a low-resolution image as a condition (`low_res`),
GroupNorm with epsilon 1e-5, sinusoids [cos | sin], and one row and column of padding on every side when halving.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.models import embeddings, layers
from ddpm_jax.models.unet import UNet


class UNetADM(UNet):
  """Improved DDPM's network with the defaults; ADM's with head_channels=64 and resblock_updown=True.

  Attributes, in addition to those of `UNet`:
    num_heads: number of attention heads, unless head_channels is given.
    num_heads_upsample: number of heads on the way up; None for the same number.
    head_channels: channels per head; the number of heads then grows with the width.
    scale_shift: the embedding scales and shifts each block's second norm.
    resblock_updown: resample inside residual blocks.
    conv_resample: otherwise resample by convolutions; False pools and repeats pixels without weights.
    low_res: concatenate cond["low_res"], [B, h, w, C], resized bilinearly to x, after x: a super-resolution network.
    initialization: "openai": torch's defaults, with exact zeros in the last layer of every branch.
  """

  num_heads: int = 4
  num_heads_upsample: int | None = None
  head_channels: int | None = None
  scale_shift: bool = True
  resblock_updown: bool = False
  conv_resample: bool = True
  low_res: bool = False
  initialization: str = "openai"

  @property
  def style(self):
    return layers.Style(
      self.initialization,
      eps=1e-5,
      groups=self.groups,
      scale_shift=self.scale_shift,
      attention=self.attention,
      dtype=self.dtype,
    )

  @property
  def stem_channels(self):
    return int(self.channel_mult[0] * self.channels)

  @nn.nowrap
  def sinusoids(self, time):
    return embeddings.cos_sin(time, self.channels)

  @nn.nowrap
  def heads(self, channels, up=False):
    if self.head_channels is not None:
      if channels % self.head_channels:
        raise UserError(f"{channels} channels do not divide into attention heads of head_channels={self.head_channels}")
      return channels // self.head_channels
    return self.num_heads_upsample if up and self.num_heads_upsample is not None else self.num_heads

  @nn.nowrap
  def stem(self, x, cond):
    if self.low_res:
      low_res = (cond or {}).get("low_res")
      if low_res is None:
        raise UserError('the network enlarges a small image but cond has no "low_res"')
      # torch's bilinear, half-pixel centres and no antialiasing; jax's weights at the border are the same
      low_res = jax.image.resize(low_res, (*x.shape[:3], low_res.shape[-1]), "bilinear", antialias=False)
      x = jnp.concatenate([x, low_res.astype(x.dtype)], axis=-1)
    return super().stem(x, cond)

  @nn.nowrap
  def downsample(self, h, emb, train, name):
    if self.resblock_updown:
      return self.block(h.shape[-1], name, resample=layers.average_pool)(h, emb, train)
    if self.conv_resample:
      return layers.Downsample(self.style, padding=(1, 1), name=name)(h)
    return layers.average_pool(h)

  @nn.nowrap
  def upsample(self, h, emb, train, name):
    if self.resblock_updown:
      return self.block(h.shape[-1], name, resample=layers.nearest)(h, emb, train)
    if self.conv_resample:
      return layers.Upsample(self.style, name=name)(h)
    return layers.nearest(h)
