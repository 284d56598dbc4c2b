"""Encoded images as a viewer shows them: upright, over a background, every depth rounded to 8 bits.

`header` tells what a file is without decoding it. `pixels` decodes it. Formats are those of `FORMATS`, whatever a file's
name says; Pillow's other readers (EPS starts Ghostscript) are never reached.
"""

import io
import sys
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageFile

from ddpm_jax.errors import UserError
from ddpm_jax.files import images
from ddpm_jax.sizes import channels_first

ENDINGS = {
  "PNG": (".png", ".apng"),
  "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
  "WEBP": (".webp",),
  "GIF": (".gif",),
  "BMP": (".bmp", ".dib"),
  "TIFF": (".tif", ".tiff"),
  "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
  "AVIF": (".avif",),
}
"""Pillow's name of each format that is read, and the file endings it goes by."""

ARRAYS = ".npy"
NOT_READ = {
  ".heic", ".heif", ".jp2", ".j2k", ".jxl", ".svg", ".psd", ".eps", ".tga", ".ico", ".exr", ".hdr", ".dcm", ".nii", ".raw",
  ".dng", ".cr2", ".nef", ".arw", ".pcx", ".dds", ".npz", ".mat", ".h5", ".mp4", ".mov", ".avi", ".webm", ".pdf",
  ".parquet",
}  # fmt: skip
"""Endings of images, arrays, tables and videos that are not read beside images, and whose omission is reported."""

MAGIC = b"\x93NUMPY"
TURNS = {
  2: (Image.Transpose.FLIP_LEFT_RIGHT,),
  3: (Image.Transpose.ROTATE_180,),
  4: (Image.Transpose.FLIP_TOP_BOTTOM,),
  5: (Image.Transpose.TRANSPOSE,),
  6: (Image.Transpose.ROTATE_270,),
  7: (Image.Transpose.TRANSVERSE,),
  8: (Image.Transpose.ROTATE_90,),
}  # EXIF orientation (tag 0x0112) -> what turns the stored pixels upright


class Header(NamedTuple):
  """What a file says about itself before its pixels are decoded."""

  kind: str  # Pillow's format, or "npy"
  height: int  # upright
  width: int
  channels: int  # 1 grey, 3 color; the last axis of an array
  mode: str  # Pillow's mode, or the array's dtype
  bits: int  # of a channel
  transparent: bool
  turned: bool  # stored in another orientation than it is shown in
  animated: bool  # more frames than the first, which is the one that is read
  profile: bool  # a color profile other than sRGB, which is not applied


def header(file: BinaryIO) -> Header:
  """The header of an encoded image or array.

  Raises:
    Exception: whatever Pillow or NumPy raises for a file that is no image.
  """
  if _magic(file) == MAGIC:
    shape, _, dtype = _npy_header(file)
    height, width, channels = _npy_shape(shape)
    return Header("npy", height, width, channels, str(dtype), 8 * dtype.itemsize, False, False, False, False)
  with images.opened(file) as image:
    bits = 16 if _is_deep(image) else 8
    colors = 1 if _is_grey(image) else 3
    late_exif = image.format == "PNG" and "exif" not in image.info and _png_has(file, b"eXIf")
    # For its EXIF Pillow decodes a PNG that has none before its pixels.
    turn = _orientation(image) if image.format != "PNG" or late_exif or "exif" in image.info else 1
    swapped = turn >= 5 and image.format != "TIFF"  # Pillow swaps the sides of a TIFF itself
    width, height = image.size[::-1] if swapped else image.size
    profile = image.info.get("icc_profile") or b""
    animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
    other = bool(profile) and b"sRGB" not in profile and "sRGB".encode("utf-16-be") not in profile
    kind = "JPEG" if image.format == "MPO" else image.format or ""
    return Header(kind, height, width, colors, image.mode, bits, _is_transparent(image), turn > 1, animated, other)


def pixels(
  data: bytes, channels: int, background: str = "white", value_range: tuple[float, float] | None = None
) -> Image.Image | np.ndarray:
  """One image, upright, with 8 bits a channel: a PIL image of mode L, LA, RGB or RGBA; an array for .npy.

  Args:
    data: an encoded image, or the bytes of a .npy file.
    channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; of an array, what it has.
    background: a color that transparent pixels are laid over, as in CSS; not used when alpha is kept.
    value_range: (low, high), which become 0 and 255 in arrays and in images of 16 bits; None: the range of the type.

  Raises:
    ValueError: for pixels that have no 8-bit meaning without `value_range`, or a wrong number of channels.
    Exception: whatever Pillow or NumPy raises for broken data.
  """
  if data[:6] == MAGIC:
    return _array(data, channels, value_range)
  with images.opened(data) as image:
    shallow = _shallow(data, image, value_range)
    turn = _orientation(image)
  for step in TURNS.get(turn, ()):
    shallow = shallow.transpose(step)
  if channels in (2, 4):
    return shallow.convert("RGBA").convert("LA" if channels == 2 else "RGBA")
  if channels not in (1, 3):
    raise ValueError(f"a {image.format} file cannot give {channels} channels; .npy arrays can")
  if _is_transparent(shallow):
    shallow = shallow.convert("RGBA")
    behind = Image.new("RGBA", shallow.size, (*color(background), 255))
    shallow = Image.alpha_composite(behind, shallow).convert("RGB")
  mode = "L" if channels == 1 else "RGB"
  return shallow if shallow.mode == mode else shallow.convert(mode)


def color(name: str) -> tuple[int, int, int]:
  """The red, green and blue of a color name or "#rrggbb".

  Raises:
    UserError: if it is no color.
  """
  try:
    return ImageColor.getrgb(name)[:3]
  except (ValueError, AttributeError, TypeError):
    raise UserError(f"background must be a color such as 'white', 'black' or '#8090a0', not {name!r}.") from None


def to_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
  """Values as uint8, low as 0 and high as 255, rounded to the nearest and clipped."""
  scaled = (values.astype(np.float64) - low) * (255 / (high - low))
  return np.floor(scaled.clip(0, 255) + 0.5).astype(np.uint8)


# ---------------------------------------------------------------- images


def _orientation(image: Image.Image) -> int:
  """EXIF's orientation, 1 to 8; 1 where it is missing or damaged."""
  try:
    found = image.getexif().get(0x0112, 1)
  except Exception:  # EXIF is a file inside the file; viewers show an image with a broken one as it is stored
    return 1
  return found if found in TURNS else 1


def _png_has(file: BinaryIO, name: bytes) -> bool:
  """Whether a PNG has a chunk of that name; the file's position is kept."""
  before = file.tell()
  position = 8
  found = b""
  while found not in (name, b"IEND"):
    file.seek(position)
    start = file.read(8)
    if len(start) < 8:
      break
    found = start[4:]
    position += 12 + int.from_bytes(start[:4], "big")
  file.seek(before)
  return found == name


def _is_transparent(image: Image.Image) -> bool:
  return image.has_transparency_data or (image.mode.startswith("I") and "transparency" in image.info)


def _is_grey(image: Image.Image) -> bool:
  if image.mode in ("P", "PA"):
    entries = np.frombuffer(bytes(image.getpalette("RGB") or b""), np.uint8).reshape(-1, 3)
    return bool((entries == entries[:, :1]).all())
  return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I") or _raw_mode(image) == "LA;16B"


def _is_deep(image: Image.Image) -> bool:
  return image.mode.startswith(("I", "F")) or "16" in _raw_mode(image)


def _raw_mode(image: Image.Image) -> str:
  """How the pixels are stored, such as "RGB;16B"; "" if Pillow does not say."""
  if not isinstance(image, ImageFile.ImageFile) or not image.tile:
    return ""
  args = image.tile[0][3]
  first = args[0] if isinstance(args, tuple) and args else args
  return first if isinstance(first, str) else ""


def _shallow(data: bytes, image: Image.Image, value_range: tuple[float, float] | None) -> Image.Image:
  """The decoded image with 8 bits a channel, as stored; 16 bits are rounded to the nearest."""
  if not _is_deep(image) or image.format == "AVIF":
    image.load()
    return image
  if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
    if value_range is None:
      raise ValueError(f"its pixels have 32 bits (mode {image.mode}): set data.value_range, or convert it to 8 or 16 bits")
    return Image.fromarray(to_bytes(np.asarray(image), *value_range))
  values = _deep_values(data, image)
  transparent = image.info.get("transparency")
  low, high = value_range or (0, 65535)
  alpha = values[..., -1:] if values.shape[-1] in (2, 4) else None
  colors = to_bytes(values if alpha is None else values[..., :-1], low, high)
  if alpha is not None:
    opacity = to_bytes(alpha, 0, 65535)
  elif transparent is not None:  # PNG's tRNS: one value or color that is invisible
    opacity = np.where((values == np.asarray(transparent)).all(-1, keepdims=True), 0, 255).astype(np.uint8)
  else:
    return Image.fromarray(colors[..., 0] if colors.shape[-1] == 1 else colors)
  return Image.fromarray(np.concatenate([colors, opacity], -1))


def _deep_values(data: bytes, image: Image.Image) -> np.ndarray:
  """[H, W, C] of 16 bits.

  Pillow keeps only the upper bytes of colors. The lower bytes are what it gives when told the other byte order.
  """
  if image.mode.startswith("I"):
    return np.asarray(image).astype(np.int64)[..., None]
  raw = _raw_mode(image)
  if raw == "LA;16B":  # four bytes a pixel, read as they stand
    both = _decoded_as(data, "RGBA", "RGBA").astype(np.int64)
    return both[..., ::2] * 256 + both[..., 1::2]
  name, _, order = raw.partition(";16")
  native = "L" if sys.byteorder == "little" else "B"
  other = {"L": "B", "B": "L"}[native if order in ("", "N") else order]
  upper = np.asarray(image).astype(np.int64)
  return upper * 256 + _decoded_as(data, image.mode, f"{name};16{other}")


def _decoded_as(data: bytes, mode: str, raw_mode: str) -> np.ndarray:
  """The image decoded as if its pixels were stored in `raw_mode`."""
  with images.opened(data) as image:
    tiles: list[Any] = []
    for codec, extents, offset, args in image.tile:
      tiles.append((codec, extents, offset, (raw_mode, *args[1:]) if isinstance(args, tuple) else raw_mode))
    image._mode = mode
    image.tile = [type(old)(*new) if hasattr(old, "_fields") else new for old, new in zip(image.tile, tiles, strict=True)]
    return np.asarray(image)


# ---------------------------------------------------------------- arrays


def _magic(file: BinaryIO) -> bytes:
  start = file.read(6)
  file.seek(0)
  return start


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
  """(shape, Fortran order, dtype); the file then stands at its first value."""
  version = np.lib.format.read_magic(file)
  read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
  shape, fortran, dtype = read(file)
  if dtype.kind not in "buif":
    raise ValueError(f"an array of {dtype} is no image")
  return shape, fortran, dtype


def _npy_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
  if len(shape) == 2:
    return (*shape, 1)
  if len(shape) != 3 or 0 in shape:
    raise ValueError(f"an array of shape {shape} is no image: [height, width] or [height, width, channels] is")
  if channels_first(shape):
    raise ValueError(f"an array of shape {shape} has its channels first: store it as [height, width, channels]")
  return shape


def _array(data: bytes, channels: int, value_range: tuple[float, float] | None) -> np.ndarray:
  """uint8 [H, W, C] of a .npy file."""
  file = io.BytesIO(data)
  shape, fortran, dtype = _npy_header(file)
  wanted = _npy_shape(shape)
  if wanted[2] != channels:
    raise ValueError(f"an array has {wanted[2]} channels where {channels} are expected")
  values = np.frombuffer(data, dtype, int(np.prod(shape, dtype=np.int64)), file.tell())
  values = values.reshape(shape, order="F" if fortran else "C").reshape(wanted)
  if dtype == np.bool_:
    return values.astype(np.uint8) * np.uint8(255)
  if dtype == np.uint8 and value_range is None:
    return values.copy()
  if dtype.kind != "u" and value_range is None:
    raise ValueError(f"which {dtype} values are black and white is not known: set data.value_range=(low,high)")
  if not np.isfinite(values).all():
    raise ValueError("some of its values are not finite")
  return to_bytes(values, *(value_range or (0, np.iinfo(dtype).max)))
