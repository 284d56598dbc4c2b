"""The skeleton that all UNets of the family share: the order of the blocks and the skips between them.

    conv_in
    down_l:  (block, attention?) x num_res_blocks, downsample        every output is kept as a skip
    mid:     block, attention, block
    up_l:    (block on [h | skip], attention?) x (num_res_blocks + 1), upsample
    out:     norm, SiLU, convolution

A family (`unet_ddpm`, `unet_adm`, `ncsnpp`) is a subclass that implements the methods at the end of the class: style,
sinusoids, heads and resampling. Parameters are named `down_<level>_block_<i>`, `up_<level>_attn_<i>`, …, where level 0 is
the full resolution. `ddpm_jax.convert` translates them by this structure.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.models import embeddings, layers
from ddpm_jax.models.recompute import recomputing


def compute_weights(params: Any, dtype: Any) -> Any:
  """`params` with the kernels of layers that compute in `dtype` converted to it. Results are bitwise the same.

  A sampler's loop then does not read float32 weights and convert them at every step.
  """

  def convert(path, leaf):
    *module, name = [key.key for key in path if key.key not in ("backbone", "network")]
    computes = module and module[0].startswith(("conv_in", "down_", "mid_", "up_")) and "emb" not in module
    return leaf.astype(dtype) if name == "kernel" and computes else leaf

  return jax.tree_util.tree_map_with_path(convert, params)


class UNet(nn.Module):
  """`network(x [B, H, W, C], time [B], cond) -> [B, H, W, out_channels]`, float32.

  Attributes:
    channels: width of the first level; level l has int(channels * channel_mult[l]).
    channel_mult: one factor per level; between levels the image is halved.
    num_res_blocks: residual blocks per level on the way down; one more on the way up.
    attention_resolutions: heights in pixels at which attention follows the blocks, as in the papers.
    out_channels: 3 for a mean, 6 with a learned variance.
    dropout: rate inside residual blocks, from the rng stream "dropout" when train=True.
    num_classes: labels in cond["label"]; None for an unconditional network.
    null_label: adds one label, num_classes, that means "no label" (classifier-free guidance).
    groups: groups of GroupNorm; 32 in every publication.
    attention: "auto", "xla", or "cudnn" on an NVIDIA GPU (needs dtype bfloat16).
    dtype: dtype of convolutions and attention.
    remat: what the backward pass recomputes. "none": nothing. "norms": norms and all elementwise operations between
      convolutions, dense layers and attentions. "blocks": whole residual blocks and attentions. A config may also say
      "auto": the first of these with which the training step fits into the device's memory.
  """

  channels: int = 128
  channel_mult: Sequence[float] = (1, 2, 2, 2)
  num_res_blocks: int = 2
  attention_resolutions: Sequence[int] = (16,)
  out_channels: int = 3
  dropout: float = 0.0
  num_classes: int | None = None
  null_label: bool = False
  groups: int = 32
  attention: str = "auto"
  dtype: Any = jnp.float32
  remat: str = "none"

  @nn.compact
  def __call__(self, x, time, cond=None, *, train: bool = False, features: bool = False):
    """The output; with `features` also (h, emb), the last feature map and the embedding, for a second head."""
    emb = self.embed(time, cond)
    h, skips = self.encode(self.stem(x, cond), emb, train)
    h = self.decode(h, skips, emb, train)
    out = layers.Readout(self.style, self.out_channels, name="out")(h, emb, train)
    return (out, (h, emb)) if features else out

  def check_size(self, height: int, width: int):
    """Raises UserError if the network does not fit images of this size, or has no layers."""
    if self.channels < 1 or not self.channel_mult:
      raise UserError(f"channels={self.channels} and channel_mult={tuple(self.channel_mult)} leave no network")
    check_size(height, width, len(self.channel_mult), self.attention_resolutions)

  # -------------------------------------------------------------- the parts

  @nn.nowrap
  def embed(self, time, cond):
    """Time, and the label if there is one -> [B, 4 channels] float32."""
    features = 4 * self.channels
    emb = layers.TimeEmbedding(self.style, features, name="time_embed")(self.sinusoids(time))
    if self.num_classes is None:
      return emb
    label = (cond or {}).get("label")
    if label is None:
      raise UserError(f'the network has {self.num_classes} classes but cond has no "label"')
    labels = self.num_classes + self.null_label
    table = nn.Embed(labels, features, embedding_init=nn.initializers.normal(1.0), name="label_embed")
    return emb + table(label)

  @nn.nowrap
  def stem(self, x, cond):
    """The first convolution."""
    self.check_size(x.shape[1], x.shape[2])
    return self.style.conv(x.astype(self.dtype), self.stem_channels, "conv_in")

  @nn.nowrap
  def encode(self, h, emb, train):
    """The way down and the middle -> (the middle's feature map, the skips in order)."""
    skips = [h]
    last = len(self.channel_mult) - 1
    for level, mult in enumerate(self.channel_mult):
      for i in range(self.num_res_blocks):
        h = self.block(int(mult * self.channels), f"down_{level}_block_{i}")(h, emb, train)
        if h.shape[1] in self.attention_resolutions:
          h = self.attend(h, f"down_{level}_attn_{i}")
        skips.append(h)
      if level < last:
        h = self.downsample(h, emb, train, f"down_{level}_downsample")
        skips.append(h)
    h = self.block(h.shape[-1], "mid_block_0")(h, emb, train)
    h = self.attend(h, "mid_attn_0")
    h = self.block(h.shape[-1], "mid_block_1")(h, emb, train)
    return h, skips

  @nn.nowrap
  def decode(self, h, skips, emb, train):
    """The way up, which consumes the skips from last to first."""
    skips = list(skips)
    for level, mult in reversed(list(enumerate(self.channel_mult))):
      for i in range(self.num_res_blocks + 1):
        h = self.block(int(mult * self.channels), f"up_{level}_block_{i}")((h, skips.pop()), emb, train)
        if h.shape[1] in self.attention_resolutions and self.attends_going_up(i):
          h = self.attend(h, f"up_{level}_attn_{i}", up=True)
      if level:
        h = self.upsample(h, emb, train, f"up_{level}_upsample")
    return h

  @nn.nowrap
  def block(self, features, name, **options):
    block = recomputing(layers.ResBlock, self.remat, static_argnums=(3,))
    return block(self.style, features, self.dropout, name=name, **options)

  @nn.nowrap
  def attend(self, h, name, up=False):
    attention = recomputing(layers.Attention, self.remat)
    return attention(self.style, self.heads(h.shape[-1], up), name=name)(h)

  # -------------------------------------------------------------- what a family implements

  @property
  def style(self) -> layers.Style:
    raise NotImplementedError

  @property
  def stem_channels(self) -> int:
    return self.channels

  def sinusoids(self, time: jax.Array) -> jax.Array:
    return embeddings.sin_cos(time, self.channels)

  def heads(self, channels: int, up: bool = False) -> int:
    """The number of attention heads for `channels` channels; `up`: on the way up."""
    del channels, up
    return 1

  def attends_going_up(self, i: int) -> bool:
    """Whether the i-th block of an attending level is followed by attention on the way up."""
    del i
    return True

  def downsample(self, h, emb, train, name):
    raise NotImplementedError

  def upsample(self, h, emb, train, name):
    raise NotImplementedError


def check_size(height: int, width: int, levels: int, attention_resolutions: Sequence[int] = ()):
  """Raises UserError unless such images can be halved levels - 1 times and reach every attention resolution."""
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
        f"attention_resolutions has {resolution}, which {height}x{width} images never reach in {levels} levels; "
        f"choose from {', '.join(map(str, sizes))}"
      )
