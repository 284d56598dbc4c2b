"""Images are read as a viewer shows them: known pixels for every kind of file."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import viewing
from ddpm_jax.errors import UserError

CORNERS = np.zeros((4, 6, 3), np.uint8)  # upright: red at the top left, green at the top right, blue at the bottom left
CORNERS[:2, :2, 0] = CORNERS[:2, -2:, 1] = CORNERS[-2:, :2, 2] = 255

STORED = {  # EXIF 2.3, "Orientation": how the upright image is stored for each value
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.swapaxes(0, 1),
  6: lambda a: np.rot90(a),
  7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
  8: lambda a: np.rot90(a, -1),
}


def encoded(image, kind="PNG", **options):
  buffer = io.BytesIO()
  image = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def seen(data, channels=3, **options):
  pixels = np.asarray(viewing.pixels(data, channels, **options))
  return pixels[..., None] if pixels.ndim == 2 else pixels


def png(rows, color_type, depth=16, extra=b""):
  """A PNG written by hand: Pillow writes none with 16 bits and colors. rows: bytes of each row."""
  channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
  width = len(rows[0]) * 8 // (depth * channels)
  chunk = lambda name, body: struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
  header = struct.pack(">IIBBBBB", width, len(rows), depth, color_type, 0, 0, 0)
  pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def sixteen(channels, seed=0):
  values = np.random.RandomState(seed).randint(0, 65536, (5, 7, channels)).astype(">u2")
  values[0, 0] = 0
  values[0, 1] = 65535
  values[0, 2] = 255  # its upper byte is 0, the nearest level 1
  return values


def rounded(values):
  return np.round(values.astype(float) * 255 / 65535).astype(np.uint8)  # no ties: 65535 / 255 = 257 is odd


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_every_orientation_is_turned_upright(kind, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  options = {"WEBP": dict(lossless=True), "JPEG": dict(quality=100, subsampling=0)}.get(kind, {})
  big = CORNERS.repeat(8, 0).repeat(8, 1)  # JPEG's blocks are 8x8
  data = encoded(STORED[orientation](big), kind, exif=exif, **options)
  header = viewing.header(io.BytesIO(data))
  assert (header.height, header.width) == big.shape[:2] and header.kind == kind
  # JPEG: colors are rounded twice, YCbCr and back
  assert abs(seen(data).astype(int) - big).max() <= (3 if kind == "JPEG" else 0)


def test_a_damaged_orientation_leaves_the_image_as_stored():
  exif = Image.Exif()
  exif[0x0112] = 99
  np.testing.assert_array_equal(seen(encoded(CORNERS, exif=exif)), CORNERS)
  np.testing.assert_array_equal(seen(encoded(CORNERS, exif=b"Exif\0\0II*\0nothing that EXIF allows")), CORNERS)


@pytest.mark.parametrize(("background", "behind"), [("white", 255), ("black", 0), ("#808080", 128)])
def test_transparency_is_laid_over_the_background(background, behind):
  alpha = np.array([[0, 255, 128]], np.uint8)
  colors = np.array([[[200, 10, 60]] * 3], np.uint8)
  data = encoded(np.concatenate([colors, alpha[..., None]], -1))
  expected = behind + (colors.astype(float) - behind) * (alpha[..., None] / 255)
  assert abs(seen(data, background=background) - expected).max() <= 1  # Pillow blends with integers
  grey = encoded(Image.merge("LA", [Image.fromarray(colors[..., 0]), Image.fromarray(alpha)]))
  assert abs(seen(grey, 1, background=background) - expected[..., :1]).max() <= 1
  np.testing.assert_array_equal(seen(data, 4), np.concatenate([colors, alpha[..., None]], -1))
  np.testing.assert_array_equal(seen(grey, 2)[..., 1], alpha)
  with pytest.raises(UserError, match="background must be a color"):
    seen(data, background="transparent-ish")


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palettes_are_colors_with_or_without_a_transparent_entry(kind):
  image = Image.new("P", (3, 1))
  image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
  image.putdata([0, 1, 2])
  np.testing.assert_array_equal(seen(encoded(image, kind)), [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]])
  clear = encoded(image, kind, transparency=1)
  np.testing.assert_array_equal(seen(clear), [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]])
  assert viewing.header(io.BytesIO(clear)).transparent and viewing.header(io.BytesIO(clear)).channels == 3
  image.putpalette([0, 0, 0, 90, 90, 90, 255, 255, 255])
  assert viewing.header(io.BytesIO(encoded(image))).channels == 1
  np.testing.assert_array_equal(seen(encoded(image), 1)[..., 0], [[0, 90, 255]])


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_rounded_to_the_nearest(color_type, channels):
  values = sixteen(channels)
  data = png([row.tobytes() for row in values], color_type)
  assert viewing.header(io.BytesIO(data)).bits == 16
  np.testing.assert_array_equal(seen(data, channels), rounded(values))
  low = 1000
  high = 5000
  ranged = seen(data, channels, value_range=(low, high))
  colors = slice(None) if channels in (1, 3) else slice(-1)
  exact = ((values.astype(float) - low) / (high - low) * 255).clip(0, 255)
  assert abs(ranged[..., colors] - exact[..., colors]).max() <= 0.5


def test_the_invisible_color_of_a_deep_png_is_transparent():
  values = np.array([[[300, 600, 900], [300, 600, 901]]], ">u2")
  body = struct.pack(">HHH", 300, 600, 900)
  extra = struct.pack(">I", 6) + b"tRNS" + body + struct.pack(">I", zlib.crc32(b"tRNS" + body))
  data = png([row.tobytes() for row in values], 2, extra=extra)
  np.testing.assert_array_equal(seen(data), [[[255, 255, 255], [1, 2, 4]]])  # 901 / 257 = 3.5058


def test_sixteen_bit_tiff_and_pgm_are_rounded_to_the_nearest():
  values = sixteen(1)[..., 0]
  for data in (
    encoded(Image.fromarray(values.astype("<u2")), "TIFF"),
    encoded(Image.fromarray(values.astype("<u2")), "TIFF", compression="tiff_lzw"),
    b"P5 7 5 65535\n" + values.tobytes(),
  ):
    np.testing.assert_array_equal(seen(data, 1)[..., 0], rounded(values))
  colors = sixteen(3)
  tags = [(256, 7), (257, 5), (258, 16), (259, 1), (262, 2), (273, 200), (277, 3), (278, 5), (279, colors.nbytes)]
  for order, mark in (("<", b"II*\0"), (">", b"MM\0*")):
    entries = b"".join(struct.pack(f"{order}HHI", tag, 4, 1) + struct.pack(f"{order}I", value) for tag, value in tags)
    entries = entries.replace(struct.pack(f"{order}HHII", 258, 4, 1, 16), struct.pack(f"{order}HHII", 258, 3, 3, 180))
    file = mark + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4)
    file = file.ljust(180, b"\0") + struct.pack(f"{order}HHH", 16, 16, 16)
    data = file.ljust(200, b"\0") + colors.astype(f"{order}u2").tobytes()
    np.testing.assert_array_equal(seen(data), rounded(colors))


def test_pixels_of_32_bits_need_a_range():
  values = np.linspace(-1, 3, 12, dtype=np.float32).reshape(3, 4)
  data = encoded(Image.fromarray(values), "TIFF")
  with pytest.raises(ValueError, match="set data.value_range"):
    seen(data, 1)
  np.testing.assert_array_equal(seen(data, 1, value_range=(0, 2))[..., 0], viewing.to_bytes(values, 0, 2))


def test_the_first_frame_of_an_animation_is_read_and_counted():
  frames = [Image.new("RGB", (4, 3), (200, 0, 0)), Image.new("RGB", (4, 3), (0, 200, 0))]
  for kind in ("GIF", "PNG", "WEBP", "TIFF"):
    data = encoded(
      frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert viewing.header(io.BytesIO(data)).animated
    np.testing.assert_array_equal(seen(data), np.full((3, 4, 3), (200, 0, 0), np.uint8))
  assert not viewing.header(io.BytesIO(encoded(frames[0]))).animated


def test_profiles_are_noted_unless_they_are_srgb():
  from PIL import ImageCms

  srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  assert not viewing.header(io.BytesIO(encoded(CORNERS, icc_profile=srgb))).profile
  assert viewing.header(
    io.BytesIO(encoded(CORNERS, icc_profile=srgb.replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be"))))
  ).profile


def npy(array, **options):
  buffer = io.BytesIO()
  np.save(buffer, array, **options)
  return buffer.getvalue()


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_have_any_number_of_channels(order):
  values = np.random.RandomState(0).randint(0, 256, (3, 4, 5)).astype(np.uint8)
  data = npy(np.asarray(values, order=order))
  assert viewing.header(io.BytesIO(data))[:4] == ("npy", 3, 4, 5)
  np.testing.assert_array_equal(seen(data, 5), values)
  deep = sixteen(6)
  for kind in ("<u2", ">u2"):
    np.testing.assert_array_equal(seen(npy(deep.astype(kind)), 6), rounded(deep))
  np.testing.assert_array_equal(seen(npy(values[..., 0]), 1)[..., 0], values[..., 0])
  np.testing.assert_array_equal(seen(npy(values[..., 0] > 100), 1)[..., 0], 255 * (values[..., 0] > 100))
  floats = np.linspace(-1, 1, 3 * 4 * 2).reshape(3, 4, 2)
  np.testing.assert_array_equal(seen(npy(floats), 2, value_range=(-1, 1)), viewing.to_bytes(floats, -1, 1))


@pytest.mark.parametrize(
  ("array", "channels", "message"),
  [
    (np.zeros((4, 4, 2)), 2, "float64 values are black and white"),
    (np.zeros((4, 4, 2), np.int16), 2, "int16 values are black and white"),
    (np.zeros((4, 4, 2), np.uint8), 3, "has 2 channels where 3"),
    (np.zeros((3, 40, 40), np.uint8), 3, "channels first"),
    (np.zeros((1, 8, 8), np.uint8), 8, "channels first"),
    (np.zeros((3, 8, 8), np.uint8), 8, "channels first"),
    (np.zeros((4, 4, 4, 4), np.uint8), 4, "is no image"),
    (np.zeros(4, np.uint8), 1, "is no image"),
    (np.array([[object()]]), 1, "is no image"),
  ],
)
def test_arrays_that_are_no_images_are_refused(array, channels, message):
  with pytest.raises(ValueError, match=message):
    viewing.pixels(npy(array), channels)


def test_a_header_that_claims_more_than_there_is_allocates_nothing():
  data = npy(np.zeros((2, 2), np.uint8)).replace(b"(2, 2)", b"(90000, 90000)")
  with pytest.raises(ValueError):
    viewing.pixels(data, 1)


def test_other_formats_are_not_opened_whatever_a_file_is_called():
  with pytest.raises(Image.UnidentifiedImageError):
    viewing.pixels(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", 3)
