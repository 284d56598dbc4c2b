"""The UNet of "Denoising Diffusion Probabilistic Models" (Ho et al. 2020, appendix B); also DDIM's and diffusers'.

It has single-head attention, GroupNorm with epsilon 1e-6, time added inside each block, sinusoids [sin | cos], and
TensorFlow's SAME padding when halving: one row below, one column to the right.
"""

import flax.linen as nn

from ddpm_jax.models import layers
from ddpm_jax.models.unet import UNet


class UNetDDPM(UNet):
  """Ho's UNet; the defaults are CIFAR-10's 35.7 M parameters (dropout 0.1 there).

  Attributes, in addition to those of `UNet`:
    resample_with_conv: whether to resample by convolutions; False pools and repeats pixels.
    initialization: "ho": as in TensorFlow, where the last layer of every branch starts near zero (variance 1e-10).
      "torch": as in the DDIM code, where no layer starts at zero.
  """

  resample_with_conv: bool = True
  initialization: str = "ho"

  @property
  def style(self):
    return layers.Style(self.initialization, eps=1e-6, groups=self.groups, attention=self.attention, dtype=self.dtype)

  @nn.nowrap
  def downsample(self, h, emb, train, name):
    if not self.resample_with_conv:
      return layers.average_pool(h)
    return layers.Downsample(self.style, padding=(0, 1), name=name)(h)

  @nn.nowrap
  def upsample(self, h, emb, train, name):
    if not self.resample_with_conv:
      return layers.nearest(h)
    return layers.Upsample(self.style, name=name)(h)
