"""The networks of EDM (Karras et al. 2022, arXiv 2206.00364, table 7): ADM, DDPM++ and NCSN++ behind one interface.

`UNetEDM` is ADM's UNet (`DhariwalUNet`) and `SongUNet` is DDPM++ or NCSN++. Compared with unet_adm.py and ncsnpp.py:

- labels are one-hot vectors times a matrix, so the label `num_classes` means "no label";
- cond["augment"] [B, augment_dim] describes the augmentation of a training image; without it the image is not augmented;
- a norm has at least 4 channels per group, and ADM has one head per 64 channels and no attention below 64.

The time of both networks is c_noise (diffusion/preconditioning.py).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.models import embeddings, layers
from ddpm_jax.models.ncsnpp import NCSNpp
from ddpm_jax.models.unet_adm import UNetADM


class UNetEDM(UNetADM):
  """EDM's ADM; ImageNet-64 has channels=192, channel_mult=(1, 2, 3, 4), num_res_blocks=3 and dropout=0.1.

  Attributes, in addition to those of `UNetADM`:
    augment_dim: length of cond["augment"]; None for a network that was trained without augmentation.
  """

  head_channels: int | None = 64
  resblock_updown: bool = True
  augment_dim: int | None = None

  @property
  def style(self):
    return super().style.replace(min_group=4)

  @nn.nowrap
  def heads(self, channels, up=False):
    return channels // self.head_channels

  @nn.nowrap
  def attend(self, h, name, up=False):
    return super().attend(h, name, up) if h.shape[-1] >= self.head_channels else h

  @nn.nowrap
  def embed(self, time, cond):
    waves = self.sinusoids(time) + _augmentation(cond, self.augment_dim, self.channels)
    emb = layers.TimeEmbedding(self.style, 4 * self.channels, name="time_embed")(waves)
    if self.num_classes is None:
      return emb
    return emb + nn.Dense(4 * self.channels, use_bias=False, name="label_embed")(_one_hot(cond, self.num_classes))


class SongUNet(NCSNpp):
  """DDPM++ by default; NCSN++ with fourier=True, residual=True and smooth=True.

  The CIFAR-10 networks have channels=128 and channel_mult=(2, 2, 2).

  Attributes, in addition to those of `NCSNpp`:
    fourier: use random frequencies instead of fixed ones. They are stored as parameters and get no gradient.
    residual: on the way down, every level adds a projection of the reduced image.
    smooth: resample with the filter [1, 3, 3, 1] instead of [1, 1].
    noise_mult: width of the embedding of c_noise, in units of `channels`.
    augment_dim: length of cond["augment"]; None for a network that was trained without augmentation.
  """

  fourier: bool = False
  residual: bool = False
  smooth: bool = False
  noise_mult: int = 1
  augment_dim: int | None = None

  @nn.nowrap
  def embed(self, time, cond):
    width = self.noise_mult * self.channels
    waves = RandomWaves(width, name="time_waves")(time) if self.fourier else embeddings.sin_cos(time, width)
    waves = waves + _augmentation(cond, self.augment_dim, width)
    if self.num_classes is not None:
      one_hot = _one_hot(cond, self.num_classes) * math.sqrt(self.num_classes)
      waves = waves + nn.Dense(width, name="label_embed")(one_hot)
    return layers.TimeEmbedding(self.style, 4 * self.channels, name="time_embed")(waves)

  @nn.nowrap
  def stem(self, x, cond):
    """The first convolution, and the image itself."""
    return super().stem(x, cond), x.astype(self.dtype)

  @nn.nowrap
  def encode(self, h, emb, train):
    h, image = h
    skips = [h]
    for level, mult in enumerate(self.channel_mult):
      if level:
        h = self.downsample(h, emb, train, f"down_{level - 1}_downsample")
        if self.residual:
          image = self.style.conv(image, h.shape[-1], f"down_{level - 1}_image", padding=(2, 2) if self.smooth else (1, 1))
          image = filtered_down(image, padding=0) if self.smooth else layers.average_pool(image)
          image = (h + image) * self.style.residual_scale
          h = image
        skips.append(h)
      for i in range(self.num_res_blocks):
        h = self.block(int(mult * self.channels), f"down_{level}_block_{i}")(h, emb, train)
        if h.shape[1] in self.attention_resolutions:
          h = self.attend(h, f"down_{level}_attn_{i}")
        skips.append(h)
    h = self.block(h.shape[-1], "mid_block_0")(h, emb, train)
    h = self.attend(h, "mid_attn_0")
    return self.block(h.shape[-1], "mid_block_1")(h, emb, train), skips

  @nn.nowrap
  def downsample(self, h, emb, train, name):
    resample = filtered_down if self.smooth else layers.average_pool
    return self.block(h.shape[-1], name, resample=resample, project=True)(h, emb, train)

  @nn.nowrap
  def upsample(self, h, emb, train, name):
    resample = filtered_up if self.smooth else layers.nearest
    return self.block(h.shape[-1], name, resample=resample, project=True)(h, emb, train)


class RandomWaves(nn.Module):
  """c_noise [B] -> [sin | cos] [B, width] of 2 pi c_noise times `width / 2` fixed random frequencies of deviation 16."""

  width: int

  @nn.compact
  def __call__(self, time):
    freqs = jax.lax.stop_gradient(self.param("freqs", nn.initializers.normal(16.0), (self.width // 2,)))
    phases = time.astype(jnp.float32)[:, None] * (2 * np.pi * freqs)[None, :]
    return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)


_TAPS = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def filtered_down(x: jax.Array, padding: int = 1) -> jax.Array:
  """[B, H, W, C] -> [B, H/2, W/2, C], every second pixel after the filter [1, 3, 3, 1] / 8 along both axes."""
  taps = jnp.asarray(np.broadcast_to(_TAPS[:, :, None, None], (4, 4, 1, x.shape[-1])), x.dtype)
  return jax.lax.conv_general_dilated(
    x, taps, (2, 2), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]
  )


def filtered_up(x: jax.Array) -> jax.Array:
  """[B, H, W, C] -> [B, 2H, 2W, C], zeros between the pixels and then the filter [1, 3, 3, 1] / 4 along both axes."""
  taps = jnp.asarray(np.broadcast_to(4 * _TAPS[:, :, None, None], (4, 4, 1, x.shape[-1])), x.dtype)
  return jax.lax.conv_general_dilated(
    x,
    taps,
    (1, 1),
    [(2, 2)] * 2,
    lhs_dilation=(2, 2),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
  )


def _one_hot(cond, num_classes):
  label = (cond or {}).get("label")
  if label is None:
    raise UserError(f'the network has {num_classes} classes but cond has no "label"')
  return jax.nn.one_hot(label, num_classes)


def _augmentation(cond, augment_dim, width):
  """What cond["augment"] adds to the embedding of c_noise."""
  if augment_dim is None:
    return 0.0
  augment = (cond or {}).get("augment")
  augment = jnp.zeros((1, augment_dim)) if augment is None else augment
  return nn.Dense(width, use_bias=False, name="augment_embed")(augment)
