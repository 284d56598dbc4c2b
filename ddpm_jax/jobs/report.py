"""One self-contained HTML page about a run: its samples, its training, its measurements, and the commands to repeat them.

The page shows what the run's directory holds when it is written: samples/, edits/, evaluation/, study/, metrics.jsonl,
commands.log, and the config in the checkpoint. Pictures are inside the page. It needs no network, no script, and no other
file, and it follows the width and the colors of the reader's screen.
"""

import datetime
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
from ddpm_jax.evaluation import page, plots
from ddpm_jax.files import limits, tables
from ddpm_jax.files.atomic import writing
from ddpm_jax.training import checkpoints, writers
from ddpm_jax.training.manifest import Manifest

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")

FIGURES = {  # in the order of the page: caption and kind of picture
  "samples": ("Samples of the seeds 0 to 63", "pixels"),
  "progressive": ("The network's estimate of the image on the way to eight samples (DDPM figure 6)", "table"),
  "interpolation": ("Interpolations between pairs of test images (DDPM figure 8)", "table"),
  "nearest_neighbours": ("Samples and the training images nearest to them in pixel space (DDPM figure 13)", "table"),
  "bits_per_dim": ("The bound on bits/dim: the term of each step, and their sum", "plot"),
  "covariances": ("The bound on bits/dim by covariance", "plot"),
  "rate_distortion": ("Rate and distortion over the noise levels (DDPM figure 5)", "plot"),
  "moments": ("Moments of the network's noise estimate by level (Analytic-DPM)", "plot"),
}

HEADLINES = {  # (file, number, uncertainty): what it is
  ("bits_per_dim", "bits_per_dim", "standard_error"): "bits/dim on held-out images",
  ("metrics", "metrics.fid", None): "FID",
  ("metrics", "metrics.inception_score.mean", "metrics.inception_score.std"): "Inception score",
  ("metrics", "metrics.kid.mean", "metrics.kid.std"): "KID",
  ("distance", "samples", None): "Fréchet distance of samples, in features of the data set's classifier",
  ("distance", "real", None): "Fréchet distance of as many real images",
  ("accuracy", "top1", None): "accuracy on noisy held-out images",
}

TITLES = {  # of the tables of numbers, in the order of the page
  "bits_per_dim": "Bits/dim",
  "distance": "Fréchet distance",
  "metrics": "Sample quality",
  "accuracy": "Accuracy of the noisy classifier",
}


def write(workdir: str | os.PathLike, path: str | os.PathLike | None = None) -> pathlib.Path:
  """Writes the page about the run in `workdir` to `path` (default WORKDIR/report.html) and returns its path.

  Raises:
    UserError: if there is no run.
  """
  workdir = pathlib.Path(workdir)
  path = pathlib.Path(path or workdir / "report.html")
  text = text_of(workdir)
  with writing(path) as temporary:
    temporary.write_text(text, encoding="utf-8")
  return path


def text_of(workdir: pathlib.Path) -> str:
  """The whole page as HTML.

  Raises:
    UserError: if `workdir` holds no checkpoint.
  """
  directory = workdir / "checkpoints"
  steps = checkpoints.steps_in(directory)
  if not steps:
    raise UserError(f"{workdir} holds no checkpoint: give the --workdir of a training run or of converted weights.")
  manifest = checkpoints.load_manifest(str(directory))
  config = manifest.config
  rows = [row for row, _ in writers.rows_of(workdir / "metrics.jsonl")]
  evaluation = workdir / "evaluation"
  with limits.damaged(workdir, "training run", "repair or remove its damaged files"):
    sections = [
      ("Results", _headlines(evaluation)),
      ("Samples", _samples(workdir)),
      ("Edits", _edits(workdir / "edits")),
      ("Figures", _figures(evaluation)),
      ("Study", _study(workdir / "study")),
      ("Training", _training(rows, evaluation)),
      ("Run", page.table(_facts(workdir, manifest, rows))),
      ("Measurements", _measurements(evaluation)),
      ("Commands", _commands(workdir)),
      ("Environment", page.table(list(_environment().items()))),
      ("Config", page.details("all fields", page.preformatted(json.dumps(config, indent=2)))),
    ]
    return page.document(f"{config['data']['name']}, step {max(steps):,}", sections)


# ---------------------------------------------------------------- sections


def _headlines(folder: pathlib.Path) -> str:
  """The most important numbers, as far as they were measured."""
  rows = []
  for (name, number, error), what in HEADLINES.items():
    files = sorted(folder.glob("metrics*.json")) if name == "metrics" else [folder / f"{name}.json"]
    for file in files:
      found = _numbers(file)
      label = what
      features = found.get("features.name", "inception")
      if name == "metrics" and not features.startswith("inception"):
        label = f"{label} in features of {features}"  # not comparable with published numbers
      if len(files) > 1 and "sampling" in found:
        label = f"{label}, {found['sampling']}"
      if number in found:
        spread = found.get(error) if error else None
        rows.append((label, page.show(found[number]) + ("" if spread is None else f" ± {spread:.2g}")))
  return page.table(rows) if rows else ""


def _samples(workdir: pathlib.Path) -> str:
  """Every picture below samples/, by the folder that names its settings; without any, the last previews."""
  root = workdir / "samples"
  found = [file for file in sorted(root.rglob("*")) if file.suffix in page.PICTURES and file.parent.name != "png"]
  if not found and not (workdir / "evaluation" / "samples.png").exists():
    root = workdir / "previews"
    previews = sorted(root.glob("*.png"))
    found = [file for file in previews if file.name.partition("_")[0] == previews[-1].name.partition("_")[0]]
  parts = []
  for file in found:
    kind = "plot" if file.stem == "beside" else "pixels"  # "beside" has letters
    parts.append(page.picture(file, _caption_of_samples(file, root), kind))
  return "".join(parts)


SAMPLE_KINDS = {
  "grid": "samples",
  "denoising": "the network's estimate of the image on the way",
  "beside": "the same seeds with two settings",
}


def _caption_of_samples(file: pathlib.Path, root: pathlib.Path) -> str:
  """What a picture below samples/ shows, and how it was drawn."""
  what = SAMPLE_KINDS.get(file.stem, name_of(file))
  how = file.relative_to(root).parent.as_posix().replace("_", " ")
  return what.capitalize() if how == "." else f"{what.capitalize()}: {how}"


def _edits(folder: pathlib.Path) -> str:
  return "".join(page.picture(file, name_of(file).capitalize(), "pixels") for file in sorted(folder.glob("*.png")))


def _figures(folder: pathlib.Path) -> str:
  """The figures of `ddpm-jax evaluate` and `moments` in the order of FIGURES, then any others."""
  known = [folder / f"{name}.png" for name in FIGURES]
  others = [file for file in sorted(folder.glob("*.png")) if file not in known and file.stem != "training"]
  parts = []
  for file in [*known, *others]:
    if file.exists():
      caption, kind = FIGURES.get(file.stem, (name_of(file).capitalize(), "plot"))
      parts.append(page.picture(file, caption, kind))
  return "".join(parts)


def _study(folder: pathlib.Path) -> str:
  """The figure and the numbers of `ddpm-jax study`."""
  parts = []
  if (folder / "study.png").exists():
    parts.append(page.picture(folder / "study.png", "Methods by number of steps", "plot"))
  if (folder / "study.csv").exists():
    head, *rows = tables.read_csv(folder / "study.csv")
    kept = [i for i, name in enumerate(head) if not name.endswith((".seconds", ".count"))]
    shown = [[_short(row[i]) for i in kept] for row in rows]
    parts.append(page.details("all numbers", page.columns([head[i] for i in kept], shown)))
  return "".join(parts)


def _training(rows: Sequence[Mapping[str, float]], folder: pathlib.Path) -> str:
  """Curves of metrics.jsonl."""
  if len(rows) < 2:
    return ""
  plots.training_curves(rows, folder / "training.png")
  return page.picture(folder / "training.png", f"Loss, gradient norm, and speed ({len(rows)} rows of metrics.jsonl)", "plot")


def _facts(workdir: pathlib.Path, manifest: Manifest, rows: Sequence[Mapping]) -> list[tuple[str, Any]]:
  """What was trained, for how long, and when."""
  config = manifest.config
  data = config["data"]
  facts = [
    ("data set", data["name"]),
    ("image size and channels", f"{data['image_size']}, {data['channels']}"),
    ("network", f"{config['network']['name']}, {manifest.parameter_count:,} parameters"),
    ("trained", f"{manifest.step:,} steps of {config['train']['batch_size']:,} images"),
  ]
  if seconds := training_seconds(rows, config["train"]["batch_size"]):
    facts.append(("training time", str(datetime.timedelta(seconds=round(seconds)))))
  newest = max(path.stat().st_mtime for path in (workdir / "checkpoints").iterdir())
  facts.append(("last checkpoint", _date(newest)))
  facts.append(("page written", _date(datetime.datetime.now().timestamp())))
  return facts


def training_seconds(rows: Sequence[Mapping[str, float]], batch_size: int) -> float:
  """The time that the logged steps took, from their rate.

  Examples:
    >>> training_seconds([{"step": 10, "images_per_second": 20.0}, {"step": 20, "images_per_second": 40.0}], 4)
    3.0
  """
  total = 0.0
  before = 0
  for row in rows:
    if rate := row.get("images_per_second"):
      total += (row["step"] - before) * batch_size / rate
    before = row["step"]
  return total


def _measurements(folder: pathlib.Path) -> str:
  """A table for every JSON file. Nested values other than metrics are folded."""
  files = {file.stem: file for file in sorted(folder.glob("*.json"))}
  ordered = [name for name in TITLES if name in files] + [name for name in files if name not in TITLES]
  parts = []
  for name in ordered:
    numbers = {key: value for key, value in _numbers(files[name]).items() if not isinstance(value, list)}
    deep = {key for key in numbers if "." in key and not key.startswith("metrics.")}
    title = TITLES.get(name, name_of(files[name]).capitalize())
    parts.append(f"<h3>{title}</h3>{page.table([row for row in numbers.items() if row[0] not in deep])}")
    if deep:
      how = page.table([row for row in numbers.items() if row[0] in deep])
      parts.append(page.details("measured on what, and how", how))
  return "".join(parts)


def _commands(workdir: pathlib.Path) -> str:
  """The commands that were run, and commands that add to the page."""
  history = workdir / "commands.log"
  used = history.read_text(errors="replace") if history.is_file() else ""
  verbs = ("sample", "evaluate", "evaluate --figures", "report")
  more = "".join(f"ddpm-jax {verb} --workdir {shlex.quote(str(workdir))}\n" for verb in verbs)
  parts = [f"<p>Commands that were run:</p>{page.preformatted(used)}"] if used else []
  parts.append(f"<p>Commands that add to this page:</p>{page.preformatted(more)}")
  return "".join(parts)


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


# ---------------------------------------------------------------- small parts


def _numbers(file: pathlib.Path) -> dict[str, Any]:
  """{dotted name: value} of a JSON file; empty if there is none."""
  return dict(page.flat(tables.read_json(file))) if file.exists() else {}


def _date(seconds: float) -> str:
  return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _short(text: str) -> str:
  """A number of a CSV file, to four digits; other text unchanged."""
  try:
    return page.show(float(text)) if "." in text else text
  except ValueError:
    return text


def name_of(file: pathlib.Path) -> str:
  """The name of a file in words."""
  return file.stem.replace("_", " ")
