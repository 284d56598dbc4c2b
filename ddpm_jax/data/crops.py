"""How each published result fitted its training images: PIL image -> PIL image of the wanted size.

| name   | the image is resized to cover `size` by         | then        | used by                              |
|--------|-------------------------------------------------|-------------|--------------------------------------|
| adm    | halving with BOX while >= 2 size, then BICUBIC  | center crop | Improved DDPM and ADM, all data sets |
| random | the same to size .. size / 0.8, drawn           | random crop | ADM's classifiers, training          |
| lsun   | BOX                                             | center crop | OpenAI's LSUN script                 |
| ddim   | BILINEAR                                        | center crop | DDIM, LSUN                           |
| celeba | rows 57..184, columns 25..152, then BILINEAR    | -           | DDIM, CelebA 64                      |

The published code knows square images only. For another shape "cover" means the smallest image of the same proportions
that holds height x width; square sizes give the published pixels.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from ddpm_jax.errors import UserError
from ddpm_jax.sizes import ImageSize, pair

Crop = Callable[[Image.Image, ImageSize], Image.Image]


def adm(image: Image.Image, size: ImageSize) -> Image.Image:
  """OpenAI's `center_crop_arr`."""
  height, width = pair(size)
  image = _shrink(image, height, width)
  return _cut(image, height, width, (image.width - width) // 2, (image.height - height) // 2)


def random(image: Image.Image, size: ImageSize, draw: int) -> Image.Image:
  """OpenAI's `random_crop_arr` with fractions 0.8 to 1; `draw` (64 random bits) decides everything."""
  height, width = pair(size)
  scale, left, top = np.random.Philox(key=np.array([draw, 0], np.uint64)).random_raw(3).tolist()
  short = min(height, width)
  larger = short + scale % (math.ceil(short / 0.8) - short + 1)
  image = _shrink(image, round(height * larger / short), round(width * larger / short))
  return _cut(image, height, width, left % (image.width - width + 1), top % (image.height - height + 1))


def lsun(image: Image.Image, size: ImageSize) -> Image.Image:
  """OpenAI's LSUN script: one BOX resize."""
  height, width = pair(size)
  scale = max(width / image.width, height / image.height)
  image = image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.BOX)
  return _cut(image, height, width, (image.width - width) // 2, (image.height - height) // 2)


def ddim(image: Image.Image, size: ImageSize) -> Image.Image:
  """torchvision's Resize(size) and CenterCrop(size): the other side is cut to an integer, the offset is rounded."""
  height, width = pair(size)
  if width * image.height >= height * image.width:
    covering = (width, width * image.height // image.width)
  else:
    covering = (height * image.width // image.height, height)
  image = image.resize(covering, Image.Resampling.BILINEAR)
  return _cut(image, height, width, round((image.width - width) / 2), round((image.height - height) / 2))


def celeba(image: Image.Image, size: ImageSize) -> Image.Image:
  """DDIM's crop of 128 x 128 about (89, 121) of an aligned CelebA image, then torchvision's Resize(size)."""
  height, width = pair(size)
  if image.size != (178, 218):
    raise UserError(
      f"crop 'celeba' is for the aligned 178x218 images of CelebA, not {image.width}x{image.height}: use 'adm'."
    )
  if height != width:
    raise UserError(f"crop 'celeba' makes square images, not {width}x{height}: use 'adm'.")
  image = _cut(image, 128, 128, 25, 57)
  return image if height == 128 else image.resize((width, height), Image.Resampling.BILINEAR)


CROPS: dict[str, Crop] = {"adm": adm, "random": adm, "lsun": lsun, "ddim": ddim, "celeba": celeba}
"""By name. "random" is a center crop wherever no draw is given: in evaluation, and for a look at one image."""


def _shrink(image: Image.Image, height: int, width: int) -> Image.Image:
  """The image resized to just cover height x width: halved with BOX while possible, then BICUBIC."""
  while image.width >= 2 * width and image.height >= 2 * height:
    image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
  scale = max(width / image.width, height / image.height)
  return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _cut(image: Image.Image, height: int, width: int, left: int, top: int) -> Image.Image:
  return image.crop((left, top, left + width, top + height))
