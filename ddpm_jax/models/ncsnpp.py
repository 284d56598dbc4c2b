"""DDPM++ (Song et al. 2021, "Score-Based Generative Modeling through SDEs"), which Extended-Analytic-DPM uses for VP-SDE.

Differences from Ho's UNet: residual blocks that resample and then always project the skip, sums divided by sqrt(2), at least
4 channels in a norm group, and on the way up one attention per level, after all its blocks. `time` is 999 t.
"""

import math

import flax.linen as nn

from ddpm_jax.models import layers
from ddpm_jax.models.unet import UNet


class NCSNpp(UNet):
  """DDPM++ (continuous); the CIFAR-10 network has num_res_blocks=4 and dropout=0.1."""

  num_res_blocks: int = 4
  initialization: str = "ho"

  @property
  def style(self):
    return layers.Style(
      self.initialization,
      eps=1e-6,
      groups=self.groups,
      min_group=4,
      residual_scale=1 / math.sqrt(2),
      qkv_scale=0.1,  # its 1x1 layers are initialized with a tenth of the variance
      attention=self.attention,
      dtype=self.dtype,
    )

  @nn.nowrap
  def attends_going_up(self, i):
    return i == self.num_res_blocks

  @nn.nowrap
  def downsample(self, h, emb, train, name):
    return self.block(h.shape[-1], name, resample=layers.average_pool, project=True)(h, emb, train)

  @nn.nowrap
  def upsample(self, h, emb, train, name):
    return self.block(h.shape[-1], name, resample=layers.nearest, project=True)(h, emb, train)
