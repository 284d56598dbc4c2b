"""Image sizes: an integer N for N x N pixels, or (height, width)."""

from collections.abc import Sequence
from typing import Any

from ddpm_jax.errors import UserError

LARGEST = 16384  # pixels on a side; one RGB image of this size in float32 takes 3 GiB

ImageSize = int | tuple[int, int]


def pair(size: int | Sequence[int]) -> tuple[int, int]:
  """(height, width) of an image size.

  Examples:
    >>> pair(32), pair((48, 64))
    ((32, 32), (48, 64))

  Raises:
    UserError: if it is neither a positive integer nor two of them.
  """
  sides = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
  if len(sides) != 2 or not all(type(side) is int and 0 < side <= LARGEST for side in sides):
    raise UserError(f"image_size must be N or (height, width), each from 1 to {LARGEST} pixels, not {size!r}.")
  return sides


def simplest(height: int, width: int) -> ImageSize:
  """N for a square image, (height, width) for any other."""
  return height if height == width else (height, width)


def channels_first(shape: Sequence[int]) -> bool:
  """Whether an image array of this shape must be [channels, height, width] instead of [height, width, channels].

  Examples:
    >>> channels_first((3, 32, 32)), channels_first((1, 8, 8)), channels_first((64, 48, 5))
    (True, True, False)
  """
  few = shape[0] <= 4 < shape[1] == shape[2]
  return few or shape[0] <= 16 < shape[2]


def text(size: int | Sequence[int]) -> str:
  """Width and height as viewers give them.

  Examples:
    >>> text((48, 64)), text(32)
    ('64x48', '32x32')
  """
  height, width = pair(size)
  return f"{width}x{height}"


def image_shape(data: Any) -> tuple[int, int, int]:
  """(height, width, channels) of the images that the `data` section of a config describes."""
  return (*pair(data.image_size), data.channels)
