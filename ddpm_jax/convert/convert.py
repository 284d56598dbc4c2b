"""From a published file to a self-describing checkpoint, and back.

What the tensors tell (architecture.py) is taken from them; the rest (size of images, heads, noise levels) comes from
the config of a published model, from diffusers' own config files, or from the user, and is refused while it is unknown.
Nothing is written before everything fits.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax import config as configs
from ddpm_jax.convert import architecture, diffusers, names, registry, weight_files
from ddpm_jax.convert.fingerprint import fingerprint
from ddpm_jax.errors import UserError
from ddpm_jax.sizes import image_shape, pair
from ddpm_jax.training import checkpoints
from ddpm_jax.training.manifest import names as names_of

RECORD = "conversion.json"
_BUFFERS = ("sigmas", "logvar")  # constants that NCSN++ and DDIM store beside the parameters


@dataclasses.dataclass(frozen=True)
class Conversion:
  """What became of a file."""

  config: ConfigDict
  params: Mapping[str, Any]
  which: str  # "ema", "models_states/eps_model": what was taken out of the file
  rate: str | None  # of the averaged weights; None for raw ones
  step: int
  dialect: str
  attention_order: str
  buffers: tuple[str, ...]  # tensors of the file that are no parameters
  notes: tuple[str, ...]  # what was assumed, in sentences


def convert(
  source: str | pathlib.Path,
  *,
  like: str | None = None,
  overrides: Sequence[str] = (),
  weights: str | None = None,
  family: str | None = None,
  attention_order: str | None = None,
) -> Conversion:
  """Parameters and config of the model in `source`.

  Args:
    like: a published model (`registry.PUBLISHED`) or a config ("cifar10_iddpm", "my.py") that it is like. None: what
      its file name says, if that is a published one.
    overrides: "schedule.T=4000": changes to the config, and answers to what the file does not say.
    weights: which set, if the file has several.
    family: the dialect that it should be of; only checked.
    attention_order: "legacy" or "new" (OpenAI's UNets); None: as published, else "legacy".

  Raises:
    UserError: if the file cannot be read, is not what it should be, or does not say enough.
  """
  contents = weight_files.read(source, weights)
  found = architecture.infer(contents.tensors)
  if family is not None and family != found.dialect:
    raise UserError(f"{source} is not of the family {family}: its tensors are named as in {found.dialect}.")
  published = registry.find(like) if like else registry.of_file(source)
  config, notes = _config(contents, found, published, like, list(overrides))
  order = attention_order or (published.attention_order if published else "legacy")
  if found.dialect == "openai" and not published and attention_order is None:
    notes.append("The order of attention's q, k, v is assumed to be \"legacy\", as in all published models but ADM's 64x64.")

  module = build.model(config, config.data.channels, config.data.num_classes)
  module.check_size(*pair(config.data.image_size))
  table = names.entries(module, parameter_shapes(module, config), found.dialect, attention_order=order)
  buffers = tuple(key for key in _BUFFERS if contents.tensors.pop(key, None) is not None)
  params, report = names.load(table, contents.tensors, consume=True)
  if report:
    raise UserError(f"{source} does not fit the network {config.network.name}: {report}.")
  if published and published.fingerprint:
    _verify(module, config, params, published)

  averaged = contents.averaged if contents.averaged is not None else bool(published and published.averaged)
  if contents.averaged is None and not published:
    notes.append("The file does not say whether its weights are averaged; they are stored as raw ones.")
  return Conversion(
    config,
    params,
    contents.which,
    _rate(str(source), config) if averaged else None,
    published.step if published else _step(source),
    found.dialect,
    order,
    buffers,
    tuple(notes),
  )


def save(conversion: Conversion, out: str | pathlib.Path, source: str | pathlib.Path):
  """Writes a checkpoint that sampling reads like any other, with a record of where it came from.

  Raises:
    UserError: if `out` already holds checkpoints, or a weight is not finite.
  """
  out = pathlib.Path(out)
  for name, leaf in zip(names_of(conversion.params), jax.tree.leaves(conversion.params), strict=True):
    if not np.isfinite(leaf).all():
      raise UserError(f"The weights {name} have values that are not finite: {source} is damaged or of a run that diverged.")
  if checkpoints.steps_in(out / "checkpoints"):
    raise UserError(f"{out} already holds checkpoints; choose another --out, or remove it.")
  state = {"ema": {conversion.rate: conversion.params}} if conversion.rate else {"params": conversion.params}
  writer = checkpoints.Checkpoints(str(out / "checkpoints"))
  writer.save(state, conversion.step, conversion.config.to_dict(), wait=True)
  writer.close()
  record = {
    "source": pathlib.Path(source).name,
    "weights": conversion.which,
    "dialect": conversion.dialect,
    "attention_order": conversion.attention_order,
    "buffers_left_out": conversion.buffers,
    "notes": conversion.notes,
  }
  (out / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def export(
  workdir: str | pathlib.Path,
  target: str | pathlib.Path,
  *,
  family: str | None = None,
  attention_order: str | None = None,
  ema: str | None = None,
):
  """Writes the weights of a checkpoint under the names of another codebase; bitwise what was converted.

  Args:
    target: .safetensors, .pt, .pth or .ckpt.
    family: the dialect; None: that of the file it was converted from, else the one of its network.
    attention_order: likewise.
    ema: which average; None: the slowest.

  Raises:
    UserError: if there is no such checkpoint, or the codebase has no words for its network.
  """
  workdir = pathlib.Path(workdir)
  record = json.loads((workdir / RECORD).read_text()) if (workdir / RECORD).is_file() else {}
  directory = workdir / "checkpoints" if (workdir / "checkpoints").is_dir() else workdir
  stored = checkpoints.load_weights(str(directory), ema=ema)
  config = configs.from_dict(stored.config)
  module = build.model(config, config.data.channels, config.data.num_classes)
  unet = config.network.get("backbone", config.network)
  if unet.get("block_size", 1) != 1:
    raise UserError(f"{workdir} works on blocks of pixels (network.block_size): no other codebase reads its weights.")
  family = family or record.get("dialect") or next(name for name, kinds in _NETWORKS_OF.items() if unet.name in kinds)
  if unet.name not in _NETWORKS_OF.get(family, (unet.name,)):
    known = " or ".join(name for name, kinds in _NETWORKS_OF.items() if unet.name in kinds)
    raise UserError(f"The codebases of {family} have no network like this one, a {unet.name}: take --family {known}.")
  order = attention_order or record.get("attention_order") or "legacy"
  table = names.entries(module, stored.params, family, attention_order=order)
  weight_files.write(target, names.save(table, stored.params))


_NETWORKS_OF = {  # the networks that each dialect's codebases have, the usual one of a network first
  "pesser": ("unet_ddpm",),
  "ho_tf": ("unet_ddpm",),
  "openai": ("unet_adm", "classifier"),
  "ncsnpp": ("ncsnpp",),
  "diffusers": ("unet_ddpm", "unet_adm"),
}


def parameter_shapes(module: Any, config: ConfigDict) -> Mapping[str, Any]:
  """The parameters of the network that `config` describes, without their values."""
  x = jax.ShapeDtypeStruct((1, *image_shape(config.data)), jnp.float32)
  cond = {"label": jax.ShapeDtypeStruct((1,), jnp.int32), "low_res": x}
  time = jax.ShapeDtypeStruct((1,), jnp.float32)
  return jax.eval_shape(module.init, jax.random.key(0), x, time, cond)["params"]


# ---------------------------------------------------------------- the config


def _config(contents, found, published, like, overrides):
  """(config, notes) of what was found, filled up from what it is like, what diffusers says, and the overrides."""
  notes = []
  if published is not None:
    config = published.config()
    notes.append(f"Taken for {published.name}: {published.data}, config {published.config_name}.")
  elif like is not None:
    config = configs.load(like)
  elif contents.network:
    config = diffusers.config(contents.network, contents.scheduler)
  else:
    return _answered(found, overrides), notes
  configs.override(config, overrides)
  _check(found, config)
  _fill_in(config, found)
  return config, notes


def _answered(found, overrides):
  """The default config with what was found and answered; refused while something is unknown."""
  answered = [assignment.partition("=")[0] for assignment in overrides]
  asked = list(found.unknown)
  if found.dialect == "openai" and any(a.startswith("schedule.T=") and a != "schedule.T=1000" for a in overrides):
    asked.append("prediction.time_scale")  # improved-diffusion scales by 1000 / T, guided-diffusion does not
  either = lambda field: (field, field.replace("num_heads", "head_channels"))
  unknown = [field for field in asked if not any(f"{a}.".startswith(f"{f}.") for a in answered for f in either(field))]
  if unknown:
    raise UserError(
      f"The tensors are a {found.network['name']} in the words of {found.dialect}, but do not tell {', '.join(unknown)}. "
      f"Say which published model it is like (--like, see --list), or answer: "
      + " ".join(f"--config.{_EXAMPLES[field]}" for field in unknown)
    )
  config = configs.default()
  if found.network["name"] == "classifier":
    config.loss.name = "classifier"
  schedule = [assignment for assignment in overrides if assignment.startswith("schedule.")]
  data = [assignment for assignment in overrides if assignment.startswith("data.")]
  configs.override(config, data + schedule)
  if found.dialect == "ncsnpp":
    config.prediction.update(time_scale=999 / config.schedule.get("T", 1000), time_shift=0)  # 999 t of the time t = n / T
  if found.image_size:
    config.data.image_size = found.image_size
  config.network = found.at(config.data.image_size)
  configs.override(config, [assignment for assignment in overrides if assignment not in data + schedule])
  if found.network.get("low_res") and config.data.low_res_size is None:
    raise UserError("The network enlarges small images of a size that tensors do not tell: set --config.data.low_res_size.")
  _fill_in(config, found)
  return config


_EXAMPLES = {
  "data.image_size": "data.image_size=64",
  "network.num_heads": "network.num_heads=4 (or head_channels=64)",
  "network.backbone.num_heads": "network.backbone.num_heads=4 (or head_channels=64)",
  "schedule": "schedule.name=cosine --config.schedule.T=4000",
  "prediction.time_scale": "prediction.time_scale=1.0 (or 1000 / T: --rescale_timesteps True)",
  "prediction.second": "prediction.second=residual (NPR-DPM), second_moment (SN-DPM) or hessian (OCM-DPM)",
}


def _fill_in(config, found):
  """What a training run would have written down of its data."""
  with config.unlocked(), config.ignore_type():
    config.data.channels = found.image_channels
    if found.num_classes is not None:
      labels = found.num_classes - (config.train.label_dropout > 0)  # without the null label
      config.data.num_classes, config.train.class_conditional = labels, True
    if found.network["name"] == "classifier":
      config.data.num_classes = found.network["out_channels"]
    if found.network.get("out_channels") == 2 * found.image_channels and config.prediction.second is None:
      config.prediction.second = "range"
    if config.data.image_size is None:
      config.data.image_size = found.image_size
  if config.data.image_size is None:
    raise UserError("The size of the images is unknown: set --config.data.image_size.")


def _check(found, config):
  """Refuses a config that the tensors contradict, naming the first field."""
  stated = config.network.to_dict()
  here = [(found.network, stated)]
  if "backbone" in found.network and "backbone" in stated:
    here = [(found.network["backbone"], stated["backbone"])] + here
  for told, said in here:
    for field, value in told.items():
      known = field != "backbone" and field in said and (field != "name" or found.dialect != "diffusers")
      if known and _plain(said[field]) != _plain(value):
        raise UserError(f"The tensors have {field}={value}, the config has {field}={said[field]}: this is another model.")
  if config.train.class_conditional and found.num_classes is None:
    raise UserError("The config is of a class-conditional network, the tensors have no labels: this is another model.")


def _plain(value):
  return list(value) if isinstance(value, tuple | list) else value


def _rate(source, config):
  """Of an average: in OpenAI's file names, else as the config trains it."""
  named = re.search(r"ema_(0\.\d+)", source)
  return named[1] if named else str(max(config.ema.rates, default=0.9999))


def _step(source):
  """The last long number in the file's name, which is the step in every codebase."""
  numbers = re.findall(r"(?<![.\d])\d{4,}", weight_files.prefix(source).name)
  return int(numbers[-1]) if numbers else 0


# ---------------------------------------------------------------- verification


def _verify(module, config, params, published):
  got, want = fingerprint(module, params, config), np.asarray(published.fingerprint)
  error = np.abs(got - want).max()
  if not error <= 1e-3 * np.abs(want).max():
    raise UserError(
      f"The weights are not those of {published.name}: a forward pass gives {np.round(got, 4)}, not {np.round(want, 4)}."
    )
