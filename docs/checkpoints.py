"""Writes the tables of checkpoints.md anew: python docs/checkpoints.py"""

import pathlib

from ddpm_jax.convert import formats

PAGE = pathlib.Path(__file__).with_name("checkpoints.md")


def page() -> str:
  """The page with its tables as they should be."""
  return PAGE.read_text().split("## Files\n")[0] + formats.tables()


if __name__ == "__main__":
  PAGE.write_text(page())
