"""Image files, decoded by Pillow with an allow-list of formats and a limit on pixels."""

import io
from typing import BinaryIO

from PIL import Image, ImageFile

from ddpm_jax.files.limits import damaged

# Pillow tries every format that it knows, by content: a file called .png may be EPS, which starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
PIXELS = 2**26  # of one image, 8192 x 8192: 256 MiB of RGB in Pillow


def opened(file: bytes | BinaryIO) -> ImageFile.ImageFile:
  """The image in `file`, of which only the header has been read.

  Raises:
    ValueError: if it has more than PIXELS pixels.
    Exception: whatever Pillow raises for other formats and damaged files.
  """
  image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)
  if image.width * image.height > PIXELS:
    raise ValueError(f"it has {image.width}x{image.height} pixels, and at most {PIXELS:,} are read")
  return image


def decoded(file: bytes | BinaryIO, name: object = "the image") -> Image.Image:
  """The first frame of the image in `file`, with its pixels in memory; `name` is for messages.

  Raises:
    UserError: if it is not an image of FORMATS, is damaged, or has more than PIXELS pixels.
  """
  with damaged(name, "image", "repair or remove it"):
    image = opened(file)
    image.load()
    return image
