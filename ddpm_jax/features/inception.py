"""Inception-v3 of December 2015, which defines FID, sFID and the Inception score.

Two forms are published. They have the same layers and weights but preprocess uint8 pixels differently. Unlike torchvision's
network, their average pools do not count the padding, the pool of the last block takes the maximum, and there are 1,008
classes.

    form      used by                                 preprocessing
    "tf"      Ho, OpenAI's evaluator, NVIDIA          legacy bilinear to 299, (x - 128) / 128
    "torch"   pytorch-fid, Analytic-DPM               x / 255, half-pixel bilinear to 299, 2 x - 1

Their FIDs differ: use the form of the results that you compare with. Layers are named as in TensorFlow's graph, such as
"mixed_4/tower_1/conv_2". inception_weights.py reads the published files.
"""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.features import resize
from ddpm_jax.files import npz

SIZE = 299
SPATIAL_CHANNELS = 7  # of mixed_6/conv, 17 x 17 x 7 = 2,023 features: about as many as pool_3 has
PIXELS = {
  "tf": "legacy bilinear to 299, (x - 128) / 128",
  "torch": "half-pixel bilinear of x / 255 to 299, 2 x - 1",
}


@flax.struct.dataclass
class Inception:
  """The network with its weights, a feature extractor (see extract.py for the interface).

  Attributes:
    layers: by name, {"kernel": [h, w, in, out], "scale": [out], "offset": [out]}. Scale and offset are the batch
      normalization. The shapes determine the widths of the network.
    classes: the last matrix, [2048, 1008]. There is no bias, as in all Inception scores.
    form: "tf" or "torch", see above.
    dtype: dtype of the computation; results are float32.
  """

  layers: dict[str, dict[str, jax.Array]]
  classes: jax.Array
  form: str = flax.struct.field(pytree_node=False)
  dtype: str = flax.struct.field(pytree_node=False, default="float32")

  def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
    """From uint8 images [B, H, W, 1 or 3] to float32 features.

    Returns:
      "features": [B, 2048], the mean of the last block (pool_3); "spatial": [B, 2023], the first 7 channels of
      mixed_6/conv; "logits": [B, 1008] without bias.
    """
    x = jnp.asarray(images, jnp.float32)
    if x.shape[-1] == 1:
      x = jnp.repeat(x, 3, axis=-1)
    if self.form == "tf":
      x = (resize.legacy_bilinear(x, SIZE) - 128) * (1 / 128)
    else:
      x = 2 * resize.half_pixel_bilinear(x / 255, SIZE) - 1
    x = self._conv(x.astype(self.dtype), "conv", stride=2)
    x = self._conv(self._conv(x, "conv_1", padding="VALID"), "conv_2")
    x = self._conv(_max_pool(x), "conv_3")
    x = _max_pool(self._conv(x, "conv_4", padding="VALID"))
    for block in ("mixed", "mixed_1", "mixed_2"):
      x = self._block(x, block, (1, 2, 3), _average)
    x = self._reduction(x, "mixed_3", {"": 1, "tower/": 3})
    for block in ("mixed_4", "mixed_5"):
      x = self._block(x, block, (1, 3, 5), _average)
    x = self._block(x, "mixed_6", (1, 3, 5), _average)
    spatial = x[..., :SPATIAL_CHANNELS]  # mixed_6/conv comes first
    x = self._block(x, "mixed_7", (1, 3, 5), _average)
    x = self._reduction(x, "mixed_8", {"tower/": 2, "tower_1/": 4})
    x = self._last_block(x, "mixed_9", _average)
    x = self._last_block(x, "mixed_10", _maximum)
    features = x.astype(jnp.float32).mean(axis=(1, 2))
    return {
      "features": features,
      "spatial": spatial.reshape(len(spatial), -1).astype(jnp.float32),
      "logits": jnp.matmul(features, self.classes, precision=jax.lax.Precision.HIGHEST),
    }

  def _block(self, x, name, lengths, pool):
    """Towers of 1x1 and longer chains of convolutions, and one after a pool, concatenated along channels."""
    towers = [
      self._tower(x, f"{name}/{tower}", length) for tower, length in zip(("", "tower/", "tower_1/"), lengths, strict=True)
    ]
    return jnp.concatenate([*towers, self._conv(pool(x), f"{name}/tower_2/conv")], axis=-1)

  def _reduction(self, x, name, lengths):
    """Towers that end with a stride of 2, and a pool of stride 2."""
    towers = [self._tower(x, f"{name}/{tower}", length, reduce=True) for tower, length in lengths.items()]
    return jnp.concatenate([*towers, _max_pool(x)], axis=-1)

  def _last_block(self, x, name, pool):
    """Blocks whose towers fork at their ends into 1x3 and 3x1."""
    joined = [self._conv(x, f"{name}/conv")]
    for tower, length in (("tower/", 1), ("tower_1/", 2)):
      stem = self._tower(x, f"{name}/{tower}", length)
      joined += [self._conv(stem, f"{name}/{tower}mixed/{fork}") for fork in ("conv", "conv_1")]
    return jnp.concatenate([*joined, self._conv(pool(x), f"{name}/tower_2/conv")], axis=-1)

  def _tower(self, x, prefix, length, reduce=False):
    for index in range(length):
      last = reduce and index == length - 1
      x = self._conv(x, prefix + ("conv" if index == 0 else f"conv_{index}"), stride=2 if last else 1)
    return x

  def _conv(self, x, name, stride=1, padding="SAME"):
    """Convolution, batch normalization, ReLU; a stride of 2 has no padding."""
    layer = jax.tree.map(lambda leaf: jnp.asarray(leaf, self.dtype), self.layers[name])
    x = jax.lax.conv_general_dilated(
      x,
      layer["kernel"],
      (stride, stride),
      padding if stride == 1 else "VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision=jax.lax.Precision.HIGHEST,
    )
    return nn.relu(x * layer["scale"].reshape(1, 1, 1, -1) + layer["offset"].reshape(1, 1, 1, -1))

  @property
  def name(self) -> str:
    """For example inception_tf."""
    return f"inception_{self.form}" + ("" if self.dtype == "float32" else f"_{self.dtype}")

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of the weights, the form and the precision."""
    leaves = {f"{name}/{part}": leaf for name, layer in self.layers.items() for part, leaf in layer.items()}
    arrays = {name: np.asarray(leaf) for name, leaf in {**leaves, "classes": self.classes}.items()}
    return npz.text_digest([npz.digest(arrays), self.form, self.dtype])

  def check(self, image_shape: tuple[int, ...]) -> None:
    """Raises UserError unless the images are grey or RGB."""
    if len(image_shape) != 3 or image_shape[-1] not in (1, 3):
      raise UserError(f"Inception needs images [H, W, 1 or 3], not {'x'.join(map(str, image_shape))}.")
    if image_shape[0] != image_shape[1]:
      raise UserError(
        f"Inception takes 299x299 pixels and would distort images of {image_shape[1]}x{image_shape[0]}: crop both sides of "
        "the comparison to squares."
      )

  def describe(self) -> dict[str, Any]:
    """What a result says about its features."""
    return {"name": self.name, "sha256": self.digest, "preprocessing": PIXELS[self.form]}


def _average(x):
  """Mean of 3x3 pixels, counting only pixels inside the image."""
  return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _maximum(x):
  return nn.max_pool(x, (3, 3), padding="SAME")


def _max_pool(x):
  return nn.max_pool(x, (3, 3), strides=(2, 2))
