"""Writes the tables of published.md anew: python docs/published.py"""

import pathlib

from ddpm_jax import configs
from ddpm_jax.convert.registry import PUBLISHED

PAGE = pathlib.Path(__file__).with_name("published.md")
OURS = ("digits", "mnist")  # no paper's


def page() -> str:
  """The page with its two tables as they should be."""
  rows = ["| name | trained on | config | published |", "|---|---|---|---|"]
  for entry in PUBLISHED.values():
    config = f"`{entry.config_name}`" + (f" on `{entry.backbone}`" if entry.backbone else "")
    rows.append(f"| `{entry.name}` | {entry.data} | {config} | {entry.expected or '-'} |")
  names = sorted(path.stem for path in pathlib.Path(configs.__file__).parent.glob("[a-z]*.py"))
  sections = [
    f"### {name}\n\n::: configs.{name}\n    options:\n      members: false\n      show_source: false\n"
    "      show_root_heading: false\n      show_root_toc_entry: false\n"
    for name in names
    if not name.startswith(OURS)
  ]
  before = PAGE.read_text().split("| name |")[0]
  after = "\n\n## Configs\n\n"
  return before + "\n".join(rows) + after + "\n".join(sections)


if __name__ == "__main__":
  PAGE.write_text(page())
