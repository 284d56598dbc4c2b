"""One self-contained HTML page about a run: what it draws, how it was trained, what was measured, and how to repeat it.

The page holds whatever the run's directory holds when it is written: samples/, edits/, evaluation/, study/,
metrics.jsonl, and the config in the checkpoint. Pictures are inside the page, which needs no network, no script and no
other file, and follows the width and the colours of the reader's screen.
"""

import base64
import html
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ddpm_jax import __version__
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import plots
from ddpm_jax.files.atomic import writing
from ddpm_jax.training import checkpoints, writers

TABLES = ("interpolation", "nearest_neighbours", "progressive")  # of pictures: shown whole on a phone too
PICTURES = {".png": "image/png", ".gif": "image/gif"}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent); }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { margin-top: 2.5rem; font-size: 1.25rem; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; opacity: .8; overflow-wrap: anywhere; }
img { display: block; height: auto; }
img.pixels { image-rendering: pixelated; width: min(100%, 32rem); }
img.plot { max-width: max(100%, 36rem); background: white; }
img.table { max-width: 100%; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: normal; opacity: .8; overflow-wrap: anywhere; }
td { overflow-wrap: anywhere; min-width: 9rem; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; }
pre { overflow-x: auto; padding: .75rem; border: 1px solid var(--line); border-radius: .4rem; font-size: .85rem; }
"""


def write(workdir: str | os.PathLike, path: str | os.PathLike | None = None) -> pathlib.Path:
  """Writes the page about the run in `workdir` to `path` (default WORKDIR/report.html) and returns where.

  Raises:
    UserError: if there is no run.
  """
  workdir = pathlib.Path(workdir)
  path = pathlib.Path(path or workdir / "report.html")
  text = page(workdir)
  with writing(path) as temporary:
    temporary.write_text(text, encoding="utf-8")
  return path


def page(workdir: pathlib.Path) -> str:
  """The whole page."""
  directory = workdir / "checkpoints"
  steps = checkpoints.steps_in(directory)
  if not steps:
    raise UserError(f"{workdir} holds no checkpoint: give the --workdir of a training run or of converted weights.")
  config = checkpoints.load_config(str(directory))
  title = f"{config['data']['name']}, step {max(steps):,}"
  sections = [
    ("In short", _headlines(workdir / "evaluation")),
    ("Samples", _samples(workdir)),
    ("Edits", "".join(picture(file, name_of(file), "pixels") for file in sorted((workdir / "edits").glob("*.png")))),
    ("Training", _training(workdir)),
    ("Measurements", _measurements(workdir)),
    ("Commands", _commands(workdir)),
    ("Environment", table(_environment().items())),
    ("Config", f"<details><summary>all fields</summary><pre>{html.escape(json.dumps(config, indent=2))}</pre></details>"),
  ]
  body = "".join(f"<section><h2>{heading}</h2>{content}</section>\n" for heading, content in sections if content)
  return (
    f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
    f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n'
    f"<body>\n<h1>{html.escape(title)}</h1>\n{body}</body>\n</html>\n"
  )


HEADLINES = {  # (file, number in it): what it is
  ("bits_per_dim", "bits_per_dim"): "bits/dim on held-out images",
  ("metrics", "metrics.fid"): "FID",
  ("metrics", "metrics.inception_score.mean"): "Inception score",
  ("distance", "samples"): "Fréchet distance of samples, own features",
  ("distance", "real"): "the same of real images",
  ("accuracy", "top1"): "accuracy on noisy held-out images",
}

CAPTIONS = {  # of the figures that ddpm-jax writes
  "bits_per_dim": "Where the bits go, step by step",
  "covariances": "Where the bits go, by covariance",
  "rate_distortion": "Rate and distortion over the levels (DDPM figure 5)",
  "progressive": "On the way to samples (DDPM figure 6)",
  "interpolation": "Between test images (DDPM figure 8)",
  "nearest_neighbours": "Nearest neighbours among training images, pixel by pixel",
  "moments": "What the network knows of its error (Analytic-DPM)",
  "study": "Methods by numbers of steps",
}


def _headlines(folder: pathlib.Path) -> str:
  """The numbers that one looks for first, as far as they were measured."""
  rows = []
  for (name, number), label in HEADLINES.items():
    file = folder / f"{name}.json"
    found = dict(flat(json.loads(file.read_text()))) if file.exists() else {}
    features = found.get("features.name", "inception")
    if name == "metrics" and not features.startswith("inception"):
      label = f"{label} in features of {features}"  # no number to compare with published ones
    rows += [(label, found[number])] if number in found else []
  return table(rows) if rows else ""


def _samples(workdir: pathlib.Path) -> str:
  """Every picture below samples/, by the folder that says how it was drawn; without any, the last previews."""
  root = workdir / "samples"
  found = [file for file in sorted(root.rglob("*")) if file.suffix in PICTURES and file.parent.name != "png"]
  whole = workdir / "evaluation" / "samples.png"
  if not found and not whole.exists() and (previews := sorted((workdir / "previews").glob("*.png"))):
    last = previews[-1].name.partition("_")[0]
    root, found = workdir / "previews", [file for file in previews if file.name.startswith(last)]
  kinds = {"beside": "plot"}  # it has letters
  shown = [picture(whole, "seeds 0 to 63", "pixels")] if whole.exists() else []
  for file in found:
    caption = f"{file.relative_to(root).parent.as_posix()} {name_of(file)}".removeprefix(". ").replace("_", " ")
    shown.append(picture(file, caption, kinds.get(file.stem, "pixels")))
  return "".join(shown)


def _training(workdir: pathlib.Path) -> str:
  """Curves of metrics.jsonl."""
  log = workdir / "metrics.jsonl"
  rows = [json.loads(line) for _, line in writers.rows_of(log)]
  if len(rows) < 2:
    return ""
  plots.training_curves(rows, workdir / "evaluation" / "training.png")
  return picture(workdir / "evaluation" / "training.png", f"{len(rows)} rows of metrics.jsonl", "plot")


def _measurements(workdir: pathlib.Path) -> str:
  """Every figure, and a table of every JSON file; what lies deeper than its metrics can be unfolded."""
  folder = workdir / "evaluation"
  figures = [file for file in sorted(folder.glob("*.png")) if file.stem not in ("training", "samples")]
  if (study := workdir / "study" / "study.png").exists():
    figures.append(study)
  kind = lambda file: "table" if file.stem in TABLES else "plot"
  parts = [picture(file, CAPTIONS.get(file.stem, name_of(file)), kind(file)) for file in figures]
  for file in sorted(folder.glob("*.json")):
    numbers = {key: value for key, value in flat(json.loads(file.read_text())) if not isinstance(value, list)}
    deep = {key for key in numbers if "." in key and not key.startswith("metrics.")}
    parts.append(f"<h3>{html.escape(name_of(file))}</h3>{table([row for row in numbers.items() if row[0] not in deep])}")
    if deep:
      how = table([row for row in numbers.items() if row[0] in deep])
      parts.append(f"<details><summary>of what, and how</summary>{how}</details>")
  return "".join(parts)


def _commands(workdir: pathlib.Path) -> str:
  """What repeats or continues this."""
  verbs = ("sample", "evaluate", "evaluate --figures", "report")
  lines = "\n".join(f"ddpm-jax {verb} --workdir {shlex.quote(str(workdir))}" for verb in verbs)
  return f"<pre>{html.escape(lines)}</pre>"


def name_of(file: pathlib.Path) -> str:
  """For people."""
  return file.stem.replace("_", " ")


def _environment() -> dict[str, str]:
  """Where this page was made."""
  versions = {"ddpm_jax": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES}
  devices = jax.devices()
  return {
    "Python": platform.python_version(),
    "system": platform.platform(),
    "devices": f"{len(devices)} x {devices[0].device_kind}",
    **versions,
  }


def picture(file: pathlib.Path, caption: str, kind: str) -> str:
  """A figure with the picture inside; `kind` is a class of STYLE, "pixels": enlarged without smoothing."""
  data = base64.b64encode(file.read_bytes()).decode()
  caption = html.escape(caption)
  return (
    f'<figure><div class="wide"><img class="{kind}" alt="{caption}" src="data:{PICTURES[file.suffix]};base64,{data}">'
    f"</div><figcaption>{caption}</figcaption></figure>\n"
  )


def table(rows: Sequence[tuple[str, Any]]) -> str:
  """Names and values."""
  lines = "".join(f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(show(value))}</td></tr>" for name, value in rows)
  return f'<div class="wide"><table>{lines}</table></div>\n'


def show(value: Any) -> str:
  """A value for reading: numbers to four digits, hashes cut.

  Examples:
    >>> show(3.14159), show(50000), show("0123456789abcdef" * 4), show(True)
    ('3.142', '50,000', '0123456789abcdef…', 'True')
  """
  if isinstance(value, bool) or value is None:
    return str(value)
  if isinstance(value, int):
    return f"{value:,}"
  if isinstance(value, float):
    return f"{value:.4g}"
  text = str(value)
  return f"{text[:16]}…" if len(text) == 64 and " " not in text else text


def flat(node: Any, path: tuple[str, ...] = ()) -> Sequence[tuple[str, Any]]:
  """(dotted name, value) of everything in nested dicts.

  Examples:
    >>> flat({"a": 1, "b": {"c": 2}})
    [('a', 1), ('b.c', 2)]
  """
  if not isinstance(node, Mapping):
    return [(".".join(path), node)]
  return [pair for key, child in node.items() for pair in flat(child, (*path, str(key)))]
