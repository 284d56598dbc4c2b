"""Writes docs/formats.md from what the code does with small files of each kind: python docs/formats.py"""

import io
import pathlib

import numpy as np
from PIL import Image

from ddpm_jax.data import classes, splits, viewing

PAGE = pathlib.Path(__file__).with_name("formats.md")

INTRODUCTION = """# Files that are read

A data set is a folder, a .zip, or Hugging Face's Parquet files. `ddpm-jax data show ./photos` lists what is there,
what is done with it, and what is left out. `ddpm-jax train` prints the same before it starts.
"""


def page() -> str:
  """The page as it should be."""
  parts = [
    INTRODUCTION,
    "## Formats\n",
    *formats(),
    "\n## Pixels\n",
    *pixels(),
    "\n## Classes\n",
    *labels(),
    "\n## Splits\n",
  ]
  return "\n".join([*parts, *split_rows()]) + "\n"


def formats() -> list[str]:
  """A row for each format that is read, and the endings that are not."""
  rows = ["| format | endings | channels |", "|---|---|---|"]
  for kind, endings in viewing.ENDINGS.items():
    rows.append(f"| {kind} | {', '.join(endings)} | 1 to 4 |")
  rows.append(f"| NumPy array | {viewing.ARRAYS} | any number |")
  rows.append("| Parquet | .parquet | as the images in it; needs pyarrow |")
  left_out = ", ".join(sorted(viewing.NOT_READ))
  return [*rows, f"\nLeft out, with a warning that counts them: {left_out}. A folder of .parquet files alone is read."]


def pixels() -> list[str]:
  """A row for each way to store one pixel: what it becomes."""
  rows = ["| stored | as | one pixel | is read as |", "|---|---|---|---|"]
  for what, data, channels, pixel in stored():
    header = viewing.header(io.BytesIO(data))
    seen = np.asarray(viewing.pixels(data, channels)).reshape(-1, channels)[0].tolist()
    rows.append(f"| {what} | {header.kind} {header.mode} | {pixel} | {seen[0] if channels == 1 else tuple(seen)} |")
  return [
    *rows,
    "",
    "* Images are turned upright as their EXIF orientation says.",
    "* Transparent pixels are laid over `data.background`. `data.channels=4` (or 2) keeps alpha.",
    "* 16 bits are rounded to the nearest of 8. `data.value_range=(low,high)` says which values become 0 and 255. It is",
    "  required for floats and for signed and 32-bit integers.",
    "* Of an animation or a file of several pages the first image is read.",
    "* Color profiles are counted, not applied.",
    "* The set is in color if one image is. `data.channels=1` makes it grey.",
    "* Sizes may differ if `data.image_size` is given: N or (height, width).",
  ]


def stored():
  """(what, bytes, channels wanted, the pixel as stored)."""
  palette = Image.new("P", (1, 1))
  palette.putpalette([200, 100, 50])
  yield "grey", encoded(Image.new("L", (1, 1), 90)), 1, 90
  yield "black and white", encoded(Image.new("1", (1, 1), 1)), 1, 1
  yield "color", encoded(Image.new("RGB", (1, 1), (200, 100, 50))), 3, (200, 100, 50)
  yield "palette", encoded(palette, "GIF"), 3, "entry 0: (200, 100, 50)"
  yield "palette, entry 0 transparent", encoded(palette, "GIF", transparency=0), 3, "entry 0"
  yield "color, half transparent", encoded(Image.new("RGBA", (1, 1), (200, 100, 50, 128))), 3, (200, 100, 50, 128)
  yield "the same, channels=4", encoded(Image.new("RGBA", (1, 1), (200, 100, 50, 128))), 4, (200, 100, 50, 128)
  yield "16 bits", encoded(Image.fromarray(np.full((1, 1), 255, np.uint16))), 1, 255
  yield "16 bits", encoded(Image.fromarray(np.full((1, 1), 65535, np.uint16)), "TIFF"), 1, 65535
  yield "CMYK", encoded(Image.new("CMYK", (1, 1), (0, 0, 0, 255)), "TIFF"), 3, (0, 0, 0, 255)
  yield "array of 8 bits", array(np.full((1, 1, 5), 7, np.uint8)), 5, (7,) * 5
  yield "array of 16 bits", array(np.full((1, 1, 2), 25700, np.uint16)), 2, (25700,) * 2
  yield "array of truth values", array(np.ones((1, 1), bool)), 1, "True"


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def array(values: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  np.save(buffer, values)
  return buffer.getvalue()


def labels() -> list[str]:
  """Where classes come from."""
  rows = ["| `data.labels` | classes are |", "|---|---|"]
  rows += [f"| `{rule}` | {meaning} |" for rule, meaning in classes.RULES.items()]
  rows.append("| a .csv, .tsv, .txt, .json or .jsonl file | those of the table, in the data set or anywhere else |")
  rows += ["", "| table found by `auto` | holds |", "|---|---|"]
  rows += [f"| `{table}` | {holds} |" for table, holds in classes.TABLES.items()]
  return [
    *rows,
    "",
    "One numbering serves all splits: the names of the training split in alphabetical order. A table whose classes are all",
    "numbers is taken as it is. Names and their order are stored with the run (`data.class_names`, and with their counts in",
    "data.json) and with prepared sets.",
  ]


def split_rows() -> list[str]:
  """What folders of splits are called."""
  rows = ["| split | folder, in any case |", "|---|---|"]
  rows += [f"| {split} | {', '.join(names)} |" for split, names in splits.NAMES.items()]
  return [
    *rows,
    "",
    "They are found at the top or below one folder that holds everything. Without them all images are `train`, and",
    "`data.holdout=0.1` holds a tenth of them out as `test`, the same tenth always.",
  ]


if __name__ == "__main__":
  PAGE.write_text(page())
