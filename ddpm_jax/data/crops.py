"""How each published result made its square training images: PIL image -> PIL image of size x size.

| name   | short side becomes `size` by                        | then        | used by                              |
|--------|-----------------------------------------------------|-------------|--------------------------------------|
| adm    | halving with BOX while >= 2 size, then BICUBIC      | centre crop | Improved DDPM and ADM, all data sets |
| random | the same to size .. size / 0.8, drawn               | random crop | ADM's classifiers, training          |
| lsun   | BOX                                                 | centre crop | OpenAI's LSUN script                 |
| ddim   | BILINEAR                                            | centre crop | DDIM, LSUN                           |
| celeba | rows 57..184, columns 25..152, then BILINEAR        | -           | DDIM, CelebA 64                      |
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from ddpm_jax.errors import UserError

Crop = Callable[[Image.Image, int], Image.Image]


def adm(image: Image.Image, size: int) -> Image.Image:
  """OpenAI's `center_crop_arr`."""
  image = _shrink(image, size)
  return _cut(image, size, (image.width - size) // 2, (image.height - size) // 2)


def random(image: Image.Image, size: int, draw: int) -> Image.Image:
  """OpenAI's `random_crop_arr` with fractions 0.8 to 1; `draw` (64 random bits) decides everything."""
  scale, left, top = np.random.Philox(key=np.array([draw, 0], np.uint64)).random_raw(3).tolist()
  image = _shrink(image, size + scale % (math.ceil(size / 0.8) - size + 1))
  return _cut(image, size, left % (image.width - size + 1), top % (image.height - size + 1))


def lsun(image: Image.Image, size: int) -> Image.Image:
  """OpenAI's LSUN script: one BOX resize."""
  scale = size / min(image.size)
  image = image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.BOX)
  return _cut(image, size, (image.width - size) // 2, (image.height - size) // 2)


def ddim(image: Image.Image, size: int) -> Image.Image:
  """torchvision's Resize(size) and CenterCrop(size): the long side is cut to an integer, the offset rounded."""
  short = min(image.size)
  image = image.resize((size * image.width // short, size * image.height // short), Image.Resampling.BILINEAR)
  return _cut(image, size, round((image.width - size) / 2), round((image.height - size) / 2))


def celeba(image: Image.Image, size: int) -> Image.Image:
  """DDIM's crop of 128 x 128 about (89, 121) of an aligned CelebA image, then torchvision's Resize(size)."""
  if image.size != (178, 218):
    raise UserError(
      f"crop 'celeba' is for the aligned 178x218 images of CelebA, not {image.width}x{image.height}: use 'adm'."
    )
  image = _cut(image, 128, 25, 57)
  return image if size == 128 else image.resize((size, size), Image.Resampling.BILINEAR)


CROPS: dict[str, Crop] = {"adm": adm, "random": adm, "lsun": lsun, "ddim": ddim, "celeba": celeba}
"""By name. "random" is a centre crop wherever no draw is given: evaluation, and looking at one image."""


def _shrink(image: Image.Image, short: int) -> Image.Image:
  """The image with its short side `short`: halved with BOX while it can be, then BICUBIC."""
  while min(image.size) >= 2 * short:
    image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
  scale = short / min(image.size)
  return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _cut(image: Image.Image, size: int, left: int, top: int) -> Image.Image:
  return image.crop((left, top, left + size, top + size))
