"""A second output on a frozen UNet: the networks of NPR-DPM, SN-DPM (Bao et al. 2022, section 4) and OCM-DPM.

The backbone runs once. Its parameters and the head's are separate subtrees, {"backbone": …, "head": …}, so that training
can exclude the backbone (training/trainable.py). The backbone stays differentiable in x: OCM-DPM and the Jacobian
covariance need its Jacobian.
"""

import inspect

import flax.linen as nn
import jax.numpy as jnp

from ddpm_jax.models import embeddings, layers
from ddpm_jax.models.unet import UNet


class TwoHeaded(nn.Module):
  """`network(x, time, cond) -> [B, H, W, 2 C]`: the backbone's eps, then the second head. C are the channels of x.

  If the backbone also outputs variances, only the first C channels (the mean) are kept. With train=True the backbone's
  dropout is on, as it was when the published heads were trained; backbone_dropout=False turns it off.

  A backbone without a `features` argument gets an `OwnHead`.

  Attributes:
    backbone: the pretrained network.
    complex: put a residual block before the head's norm, SiLU and convolution.
    initialization: initialization of the head. X-DPM uses "torch" on Ho's UNet, "openai" on OpenAI's, "ho" on NCSN++.
    backbone_dropout: whether train=True reaches the backbone.
  """

  backbone: UNet
  complex: bool = False
  initialization: str = "openai"
  backbone_dropout: bool = True

  @nn.compact
  def __call__(self, x, time, cond=None, *, train: bool = False):
    channels = x.shape[-1]
    if "features" not in inspect.signature(type(self.backbone).__call__).parameters:
      out = self.backbone(x, time, cond, train=train and self.backbone_dropout)
      own = OwnHead(layers.Style(self.initialization, groups=8), channels, name="head")
      return jnp.concatenate([out[..., :channels], own(x, out[..., :channels], time, train)], axis=-1)
    out, (h, emb) = self.backbone(x, time, cond, train=train and self.backbone_dropout, features=True)
    style = self.backbone.style.replace(initialization=self.initialization)
    head = layers.Readout(style, channels, self.complex, self.backbone.dropout, name="head")
    return jnp.concatenate([out[..., :channels], head(h, emb, train)], axis=-1)

  def check_size(self, height: int, width: int):
    """Raises UserError when the backbone does not fit images of this size."""
    self.backbone.check_size(height, width)


class OwnHead(nn.Module):
  """A second head for a backbone without features: a residual block on x_t and the backbone's output."""

  style: layers.Style
  features: int
  width: int = 64

  @nn.compact
  def __call__(self, x, out, time, train):
    emb = layers.TimeEmbedding(self.style, 4 * self.width, name="time_embed")(embeddings.sin_cos(time, self.width))
    h = self.style.conv(jnp.concatenate([x, out], axis=-1), self.width, "conv_in")
    return layers.Readout(self.style, self.features, True, name="readout")(h, emb, train)
