"""Image files, decoded by Pillow with an allow-list of formats and a limit on pixels."""

import io
import warnings
from typing import BinaryIO

from PIL import Image

from ddpm_jax.errors import UserError
from ddpm_jax.files.limits import damaged, shown

# Pillow tries every format that it knows, by content: a file called .png may be EPS, which starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
PIXELS = 2**26  # of one image, 8192 x 8192: 256 MiB of RGB in Pillow


def open_image(file: bytes | BinaryIO, name: object = "the image") -> Image.Image:
  """The image in `file`, of which only the header has been read.

  Args:
    file: the encoded bytes, or an open file.
    name: for messages.

  Raises:
    UserError: if it is not an image of FORMATS, is damaged, or has more than PIXELS pixels.
  """
  with damaged(name, "image", f"{', '.join(FORMATS)} are read"), warnings.catch_warnings():
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
    image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)
  if image.width * image.height > PIXELS:
    raise UserError(f"{shown(name)} has {image.width}x{image.height} pixels; at most {PIXELS:,} are read: make it smaller.")
  return image


def decoded(file: bytes | BinaryIO, name: object = "the image") -> Image.Image:
  """The first frame of the image in `file`, with its pixels in memory. Raises UserError as `open_image`."""
  image = open_image(file, name)
  with damaged(name, "image", "repair or remove it"):
    image.load()
  return image
