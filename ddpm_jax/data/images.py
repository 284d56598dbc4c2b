"""Pixels between uint8 outside and [-1, 1] inside, and pictures on disk.

`to_float`, `to_uint8` and `area` take NumPy and JAX arrays alike and return the same kind.
"""

import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddpm_jax.errors import UserError
from ddpm_jax.files.atomic import writing
from ddpm_jax.sizes import ImageSize, pair


def to_float(pixels):
  """uint8 [..., H, W, C] as float32 in [-1, 1]: x / 127.5 - 1, as in every implementation of the family.

  Examples:
    >>> to_float(np.array([0, 51, 255], np.uint8)).tolist()
    [-1.0, -0.6000000238418579, 1.0]
  """
  return pixels.astype(np.float32) / 127.5 - 1


def to_uint8(x, rounding: str = "truncate"):
  """Images in [-1, 1] as uint8; values outside are clipped. The choice of rounding changes FID.

  Args:
    x: float array of any shape.
    rounding: "truncate": (x + 1) 127.5, cut off (Improved DDPM, ADM and their evaluator's npz); in float32 some values
      of to_float come back one level lower.
      "round": to the nearest, half up (DDIM and Analytic-DPM, whose PNGs are torchvision's); inverts to_float.

  Examples:
    >>> to_uint8(np.array([-1., 0., .999, 2.])).tolist(), to_uint8(np.array([-1., 0., .999, 2.]), "round").tolist()
    ([0, 127, 254, 255], [0, 128, 255, 255])
  """
  x = x.astype(np.float32)
  if rounding == "truncate":
    return ((x + 1) * 127.5).clip(0, 255).astype(np.uint8)
  if rounding == "round":
    return (((x + 1) / 2).clip(0, 1) * 255 + 0.5).clip(0, 255).astype(np.uint8)
  raise UserError(f"rounding must be 'truncate' or 'round', not {rounding!r}.")


def area(x, size: ImageSize):
  """[B, H, W, C] reduced to [B, h, w, C] by the mean over blocks (torch's interpolate with mode "area").

  Args:
    size: h = w = N, or (h, w); both divide H and W.
  """
  batch, height, width, channels = x.shape
  h, w = pair(size)
  if height % h or width % w:
    raise UserError(f"Images of {width}x{height} have no whole blocks at low_res_size {size}: choose a divisor.")
  return x.reshape(batch, h, height // h, w, width // w, channels).mean((2, 4))


def grid(images: np.ndarray, columns: int | None = None, *, gap: int = 1, scale: int = 1) -> np.ndarray:
  """One picture of many: uint8 [N, H, W, C] -> uint8 [rows (H + gap) - gap, columns (W + gap) - gap, C], all x scale.

  Rows are filled from the left. Gaps and empty places are black.

  Args:
    columns: images in a row; None makes the picture about square.
    gap: pixels between images.
    scale: each pixel becomes scale x scale pixels, so that small images can be seen.
  """
  count, height, width, channels = images.shape
  if not count:
    raise UserError("A grid needs at least one image.")
  columns = columns or math.ceil(math.sqrt(count))
  rows = -(-count // columns)
  cells = np.zeros((rows * columns, height + gap, width + gap, channels), np.uint8)
  cells[:count, :height, :width] = images
  picture = cells.reshape(rows, columns, height + gap, width + gap, channels).swapaxes(1, 2)
  picture = picture.reshape(rows * (height + gap), columns * (width + gap), channels)
  picture = picture[: rows * (height + gap) - gap, : columns * (width + gap) - gap]
  return picture.repeat(scale, 0).repeat(scale, 1)


def grid_by_class(
  images: np.ndarray, labels: np.ndarray, names: Sequence[str] | None = None, *, scale: int = 1
) -> np.ndarray:
  """As `grid`, with a row per class and the class's name or number at the left.

  With one class, more than 20, or fewer than two images per class, it is `grid`.

  Args:
    labels: the class of each image, int [N].
    names: by class number; None: the numbers.
  """
  classes = np.unique(labels)
  if not 2 <= len(classes) <= min(20, len(images) // 2) or images.shape[-1] not in (1, 3):
    return grid(images, scale=scale)
  rows = [images[labels == k] for k in classes]
  longest = max(map(len, rows))
  cells = np.concatenate([np.pad(row, ((0, longest - len(row)), (0, 0), (0, 0), (0, 0))) for row in rows])
  picture = grid(cells, columns=longest, scale=scale)
  texts = [str(k) if names is None else str(names[k]) for k in classes]
  height = (images.shape[1] + 1) * scale
  font = ImageFont.load_default(size=min(14, height // 2))
  width = 8 + math.ceil(max(font.getlength(text) for text in texts))
  margin = Image.new("L", (width, len(picture)), 255)
  draw = ImageDraw.Draw(margin)
  for i, text in enumerate(texts):
    draw.text((width - 4, (i + 0.5) * height), text, fill=0, font=font, anchor="rm")
  margin = np.asarray(margin)[..., None].repeat(images.shape[-1], axis=-1)
  return np.concatenate([margin, picture], axis=1)


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
  """Writes uint8 [H, W, C] as PNG, whole or not at all.

  One channel is grey, two are grey and alpha, three RGB, four RGBA. More are written as grey images side by side.
  """
  with writing(path) as temporary:
    _picture(image).save(temporary, format="PNG")


def save_npz(path: str | os.PathLike, images: np.ndarray, labels: np.ndarray | None = None) -> None:
  """Writes the layout of OpenAI's evaluator: `arr_0` uint8 [N, H, W, C] and, when given, `arr_1` int64 [N]."""
  arrays = [np.asarray(images, np.uint8)] + ([] if labels is None else [np.asarray(labels, np.int64)])
  with writing(path) as temporary, open(temporary, "wb") as file:
    np.savez(file, *arrays)


def save_gif(path: str | os.PathLike, frames: np.ndarray, *, seconds: float = 0.05, hold: float = 1.0) -> None:
  """Writes uint8 [F, H, W, C] as an endless animation: each frame for `seconds`, the last for `hold`."""
  pictures = [_picture(frame) for frame in frames]
  durations = [round(1000 * seconds)] * (len(pictures) - 1) + [round(1000 * hold)]
  with writing(path) as temporary:
    pictures[0].save(temporary, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def viewable(image: np.ndarray) -> np.ndarray:
  """uint8 [H, W, C] as [H, W, 1, 3 or 4], which every viewer knows; more channels lie side by side as grey images."""
  channels = image.shape[-1]
  if channels == 2:
    return image[..., [0, 0, 0, 1]]
  return image if channels < 5 else np.concatenate(np.moveaxis(image, -1, 0), axis=1)[..., None]


def _picture(image: np.ndarray) -> Image.Image:
  image = image if image.shape[-1] == 2 else viewable(image)
  return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
