"""diffusers' `UNet2DModel`, in the combinations of options that are neither Ho's UNet nor OpenAI's.

Levels may resample in different ways. The attention in the middle may have its own norm, no norm, or be absent. The norm's
epsilon, the padding and the sinusoids are options.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.models import layers
from ddpm_jax.models.recompute import recomputing
from ddpm_jax.models.unet_adm import UNetADM


class UNet2D(UNetADM):
  """OpenAI's UNet with diffusers' options.

  Attributes, in addition to those of `UNetADM`:
    norm_eps: added to the variance in GroupNorm.
    padding: of the convolution that halves the image: 1 on every side, or 0 for one row below and one column to the right.
    sin_first: sinusoids [sin | cos] instead of [cos | sin].
    freq_shift: the frequencies of time are 10000^(-k / (channels / 2 - freq_shift)).
    down_types: "conv" or "resnet" between level l and level l + 1; empty means convolutions everywhere.
    up_types: likewise between level l + 1 and level l.
    mid_attention: whether the middle has attention.
    mid_groups: norm groups of that attention; None for attention without a norm.
    label_sinusoids: embed labels by sinusoids, like the time, instead of by a table.
  """

  norm_eps: float = 1e-5
  padding: int = 1
  sin_first: bool = False
  freq_shift: float = 0.0
  down_types: Sequence[str] = ()
  up_types: Sequence[str] = ()
  mid_attention: bool = True
  mid_groups: int | None = 32
  label_sinusoids: bool = False

  @property
  def style(self):
    return super().style.replace(eps=self.norm_eps)

  @nn.nowrap
  def sinusoids(self, time):
    half = self.channels // 2
    exponent = np.float32(-np.log(10_000.0)) * np.arange(half, dtype=np.float32) / np.float32(half - self.freq_shift)
    phases = time.astype(jnp.float32)[:, None] * jnp.asarray(np.exp(exponent))[None, :]
    waves = (jnp.sin(phases), jnp.cos(phases)) if self.sin_first else (jnp.cos(phases), jnp.sin(phases))
    return jnp.pad(jnp.concatenate(waves, axis=-1), ((0, 0), (0, self.channels % 2)))

  @nn.nowrap
  def embed(self, time, cond):
    if not self.label_sinusoids or self.num_classes is None:
      return super().embed(time, cond)
    label = (cond or {}).get("label")
    if label is None:
      raise UserError(f'the network has {self.num_classes} classes but cond has no "label"')
    embed = lambda name, value: layers.TimeEmbedding(self.style, 4 * self.channels, name=name)(self.sinusoids(value))
    return embed("time_embed", time) + embed("label_time", jnp.asarray(label))

  @nn.nowrap
  def attend(self, h, name, up=False):
    if not name.startswith("mid"):
      return super().attend(h, name, up)
    if not self.mid_attention:
      return h
    attention = recomputing(layers.Attention, self.remat)
    style = self.style.replace(groups=self.mid_groups or 1)
    return attention(style, self.heads(h.shape[-1]), normalize=self.mid_groups is not None, name=name)(h)

  @nn.nowrap
  def downsample(self, h, emb, train, name):
    if self._kind(self.down_types, name) == "resnet":
      return self.block(h.shape[-1], name, resample=layers.average_pool)(h, emb, train)
    padding = (1, 1) if self.padding else (0, 1)
    return layers.Downsample(self.style, padding=padding, name=name)(h)

  @nn.nowrap
  def upsample(self, h, emb, train, name):
    if self._kind(self.up_types, name, 1) == "resnet":
      return self.block(h.shape[-1], name, resample=layers.nearest)(h, emb, train)
    return layers.Upsample(self.style, name=name)(h)

  @nn.nowrap
  def _kind(self, types, name, first=0):
    """How the resampler `name`, "down_<level>_downsample", works."""
    level = int(name.split("_")[1]) - first
    kind = types[level] if types else "conv"
    if kind not in ("conv", "resnet"):
      raise UserError(f'network.down_types and up_types hold "conv" or "resnet", not {kind!r}.')
    return kind
