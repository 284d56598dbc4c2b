"""CLIP (Radford et al. 2021) and the CLIP score: how well images fit their texts.

    score = mean of 100 max(cos(image, text), 0)                                (Hessel et al. 2021, with 2.5 for 100)

Only the vision transformers (ViT) are supported. Their weights are read from OpenAI's files without PyTorch, and sizes are
taken from the weights; heads always have 64 channels.
"""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from ddpm_jax.data.sources import Source
from ddpm_jax.errors import UserError
from ddpm_jax.features.clip_tokens import Tokenizer
from ddpm_jax.features.extract import extract
from ddpm_jax.files import download, npz, torch_modules

HEAD = 64  # width of a head
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training pixels
STD = (0.26862954, 0.26130258, 0.27577711)
_URL = "https://openaipublic.azureedge.net/clip/models/{}/{}"
FILES = {
  name: download.File(f"{name}.pt", _URL.format(digest, f"{name}.pt"), f"sha256:{digest}")
  for name, digest in {
    "ViT-B-32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B-16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L-14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
  }.items()
}


@flax.struct.dataclass
class Clip:
  """Both networks; also a feature extractor (the interface is in extract.py) for images that `fitted` has resized.

  Attributes:
    params: float32, by OpenAI's names.
  """

  params: dict[str, jax.Array]

  def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
    """ "features" [B, d] of length 1, of uint8 images [B, size, size, 3]."""
    p = self.params
    x = (jnp.asarray(images, jnp.float32) / 255 - np.array([[[MEAN]]], np.float32)) / np.array([[[STD]]], np.float32)
    kernel = p["visual.conv1.weight"].transpose(2, 3, 1, 0)
    x = jax.lax.conv_general_dilated(x, kernel, kernel.shape[:2], "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = x.reshape(len(x), -1, x.shape[-1])
    first = jnp.broadcast_to(p["visual.class_embedding"][None, None], (len(x), 1, x.shape[-1]))
    x = jnp.concatenate([first, x], axis=1) + p["visual.positional_embedding"][None]
    x = self._transformer(self._norm(x, "visual.ln_pre"), "visual.transformer", mask=None)
    return {"features": _unit(self._norm(x[:, 0], "visual.ln_post") @ p["visual.proj"])}

  def text(self, tokens: jax.Array) -> jax.Array:
    """Features [B, d] of length 1, of tokens int32 [B, 77]."""
    p = self.params
    x = p["token_embedding.weight"][tokens] + p["positional_embedding"][None]
    x = self._transformer(x, "transformer", mask=np.tri(tokens.shape[1], dtype=bool))  # causal
    x = self._norm(x, "ln_final")[jnp.arange(len(x)), tokens.argmax(1)]  # the end token has the highest number
    return _unit(x @ p["text_projection"])

  def _transformer(self, x, name, mask):
    depth = sum(key.startswith(f"{name}.resblocks.") and key.endswith(".ln_1.weight") for key in self.params)
    for index in range(depth):
      block = f"{name}.resblocks.{index}"
      x = x + self._attention(self._norm(x, f"{block}.ln_1"), f"{block}.attn", mask)
      y = self._linear(self._norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc.")
      x = x + self._linear(y * jax.nn.sigmoid(1.702 * y), f"{block}.mlp.c_proj.")  # CLIP's quick GELU
    return x

  def _attention(self, x, name, mask):
    batch, length, width = x.shape
    qkv = self._linear(x, f"{name}.in_proj_").reshape(batch, length, 3, width // HEAD, HEAD)
    mask = None if mask is None else mask[None, None]
    x = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], mask=mask, implementation="xla")
    return self._linear(x.reshape(batch, length, width), f"{name}.out_proj.")

  def _linear(self, x, name):
    bias = self.params[f"{name}bias"]
    return x @ self.params[f"{name}weight"].T + bias.reshape((1,) * (x.ndim - 1) + (-1,))

  def _norm(self, x, name):
    wide = lambda part: self.params[f"{name}.{part}"].reshape((1,) * (x.ndim - 1) + (-1,))
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * wide("weight") + wide("bias")

  @property
  def image_size(self) -> int:
    """Height and width of the images."""
    patch = self.params["visual.conv1.weight"].shape[-1]
    (positions, _) = self.params["visual.positional_embedding"].shape
    return patch * round((positions - 1) ** 0.5)

  @property
  def name(self) -> str:
    """For example clip_vit_224_32."""
    return f"clip_vit_{self.image_size}_{self.params['visual.conv1.weight'].shape[-1]}"

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 of the weights."""
    return npz.digest({name: np.asarray(array) for name, array in self.params.items()})

  def check(self, image_shape: tuple[int, ...]) -> None:
    """Raises UserError unless the images have the network's size."""
    if tuple(image_shape) != (self.image_size, self.image_size, 3):
      raise UserError(
        f"This CLIP takes RGB images of {self.image_size} pixels, not {'x'.join(map(str, image_shape))}: "
        "resize them with clip.fitted."
      )

  def describe(self) -> dict[str, Any]:
    """What a result says about its features."""
    return {"name": self.name, "sha256": self.digest, "preprocessing": f"PIL bicubic to {self.image_size}"}


def load_clip(path: str | os.PathLike | None = None, name: str = "ViT-B-32") -> Clip:
  """CLIP with the weights of OpenAI's file at `path`, or of the published model `name` from the cache.

  Raises:
    UserError: if the model is unknown, or the file is missing, damaged, or contains another network.
  """
  if path is None and name not in FILES:
    raise UserError(f"There is no CLIP {name!r}; {', '.join(FILES)} are known.")
  path = pathlib.Path(path) if path is not None else download.fetch(FILES[name])
  params = {key: np.asarray(array, np.float32) for key, array in torch_modules.tensors(path).items()}
  for key in ("visual.conv1.weight", "visual.proj", "text_projection", "token_embedding.weight"):
    if key not in params:
      raise UserError(f"{path} does not hold a CLIP with a vision transformer: it has no {key!r}.")
  for key, array in params.items():
    if not np.isfinite(array).all():
      raise UserError(f"{path} holds values that are not finite in {key}: fetch it again.")
  return Clip(params)


class ClipScore(NamedTuple):
  """Mean over the pairs and their standard deviation, 0..100."""

  mean: float
  std: float


def clip_score(
  clip: Clip, tokenizer: Tokenizer, images: Source, texts: Sequence[str], *, batch_size: int = 64, **options: Any
) -> ClipScore:
  """The CLIP score of images and their texts.

  Args:
    options: options of `extract`.

  Raises:
    UserError: if the numbers of images and texts differ.
  """
  if len(images) != len(texts):
    raise UserError(f"There are {len(images)} images and {len(texts)} texts; a CLIP score needs one text for each image.")
  seen = extract(clip, fitted(images, clip.image_size), batch_size=batch_size, **options)["features"]
  tokens = np.pad(tokenizer(texts), ((0, -len(texts) % batch_size), (0, 0)))
  read = [_text(clip, tokens[start : start + batch_size]) for start in range(0, len(tokens), batch_size)]
  scores = 100 * np.maximum((seen * np.concatenate(read)[: len(texts)]).sum(axis=1), 0)
  return ClipScore(float(scores.mean()), float(scores.std()))


def fitted(images: Source, size: int) -> "Source":
  """The images in RGB and resized to `size` by PIL's bicubic filter, as CLIP's own code does."""
  return _Fitted(images, size)


class _Fitted(Source):
  def __init__(self, images: Source, size: int):
    self._images = images
    self._size = size
    self.info = images.info

  def __len__(self) -> int:
    return len(self._images)

  def gather(self, indices, draws=None):
    images, labels = self._images.gather(indices, draws)
    pictures = (Image.fromarray(image.squeeze()).convert("RGB") for image in images)
    return np.stack([picture.resize((self._size,) * 2, Image.Resampling.BICUBIC) for picture in pictures]), labels


@jax.jit
def _text(clip, tokens):
  return clip.text(tokens)


def _unit(x):
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
