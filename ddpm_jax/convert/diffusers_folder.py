"""Finds the files of a model in a diffusers folder: component, average, variant, shards and scheduler.

PIPELINE/unet, PIPELINE/scheduler          a pipeline
checkpoint-N/unet, checkpoint-N/unet_ema   what diffusers' training scripts save; the average is taken
a folder with config.json                  one component alone
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from ddpm_jax.errors import UserError
from ddpm_jax.files.tables import read_json

_EMA_FIELDS = ("decay", "optimization_step")  # what diffusers' EMAModel adds to the config.json of an average


@dataclasses.dataclass(frozen=True)
class Located:
  """The files of one model.

  Attributes:
    file: the tensors, or the index of their shards.
    which: the component and file as reported to the user: "unet_ema".
    network: config.json.
    scheduler: scheduler_config.json, or None where there is none.
    averaged: True for an average, None where the folder does not say.
    rate: the decay of the average, if stored.
    notes: what was chosen and what was left out, in sentences.
  """

  file: pathlib.Path
  which: str
  network: Mapping[str, Any]
  scheduler: Mapping[str, Any] | None
  averaged: bool | None
  rate: str | None
  notes: tuple[str, ...]


def locate(folder: pathlib.Path, weights: str | None = None) -> Located:
  """The model in `folder`.

  Args:
    weights: a component ("unet", "unet_ema"), a variant of the file ("fp16"), or both ("unet/fp16"). None: the average
      if there is one, and the file without a variant.

  Raises:
    UserError: if there is no UNet2DModel, or none of that name.
  """
  components = [name for name in ("unet_ema", "unet") if (folder / name).is_dir()] or [""]
  wanted, _, variant = (weights or "").partition("/")
  if wanted and wanted not in components:
    wanted = ""
    variant = weights or ""
  component = wanted or components[0]
  root = folder / component
  network = read_json(root / "config.json")
  if network.get("_class_name") != "UNet2DModel":
    kind = network.get("_class_name", "model without a _class_name")
    raise UserError(f"{root} holds a {kind}; of diffusers' networks, UNet2DModel is supported.")
  file, others = _file(root, variant)
  averaged = component == "unet_ema" or all(field in network for field in _EMA_FIELDS)
  left = [name for name in components if name != component] + others
  shown = "/".join(filter(None, (component, variant)))
  notes = [f"Took {shown or file.name}, left out {', '.join(left)}."] if left else []
  scheduler, place = _scheduler(folder)
  if scheduler is not None and place.parent.parent != folder and place.parent != folder:
    notes.append(f"The scheduler is that of the pipeline around it, {place}.")
  rate = network.get("decay")
  return Located(
    file,
    f"{shown} ({file.name})" if shown else file.name,
    network,
    scheduler,
    averaged or None,
    str(rate) if averaged and isinstance(rate, float) and 0 < rate < 1 else None,
    tuple(notes),
  )


def _file(root: pathlib.Path, variant: str) -> tuple[pathlib.Path, list[str]]:
  """The file of a variant ("" is the default), and the variants that are left out."""
  pattern = re.compile(r"diffusion_pytorch_model(?:\.([\w-]+?))?\.(safetensors|bin)(\.index(?:\.[\w-]+)?\.json)?")
  found: dict[str, list[pathlib.Path]] = {}
  for path in sorted(root.iterdir()):
    match = pattern.fullmatch(path.name)
    if match and not re.fullmatch(r"\d+-of-\d+", match[1] or ""):
      found.setdefault(match[1] or "", []).append(path)
  if variant and variant not in found:
    known = ", ".join(name for name in found if name) or "no variants"
    raise UserError(f"{root} has no weights {variant!r}; it has {known}.")
  chosen = variant if variant or "" in found or len(found) != 1 else next(iter(found))
  if chosen not in found:
    if found:
      names = ", ".join(found)
      raise UserError(f"{root} holds several variants of the weights: {names}. Choose one with --weights NAME.")
    raise UserError(f"{root} has no diffusion_pytorch_model.safetensors and no diffusion_pytorch_model.bin.")
  order = lambda path: ("safetensors" not in path.name, path.name.endswith(".json"))
  return min(found[chosen], key=order), [name for name in found if name not in ("", chosen)]


def _scheduler(folder: pathlib.Path) -> tuple[dict[str, Any] | None, pathlib.Path]:
  """The scheduler's settings and where they are: in the folder, or in the pipeline that the folder is a component of."""
  places = [folder / "scheduler/scheduler_config.json", folder / "scheduler_config.json"]
  if folder.resolve().name in ("unet", "unet_ema"):
    places.append(folder.resolve().parent / "scheduler/scheduler_config.json")
  for place in places:
    if place.is_file():
      return read_json(place), place
  return None, folder
