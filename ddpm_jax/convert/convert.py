"""Converts a published file to a self-describing checkpoint.

The network is recognized by its tensors (architecture.py). What they do not determine (size of images, heads, noise levels)
comes from the config of a published model, from diffusers' config files, or from the user. Anything still unknown is an
error. Nothing is written before everything fits.
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

from ddpm_jax import build, fields
from ddpm_jax import config as configs
from ddpm_jax.convert import architecture, configure, names, registry, weight_files
from ddpm_jax.convert.fingerprint import fingerprint
from ddpm_jax.errors import UserError
from ddpm_jax.files.atomic import writing
from ddpm_jax.sizes import image_shape, pair
from ddpm_jax.training import checkpoints
from ddpm_jax.training.manifest import names as names_of

RECORD = "conversion.json"
_BUFFERS = re.compile(r"(^|\.)(sigmas|logvar|u|resample_filter)$")  # constants that are stored beside the parameters


@dataclasses.dataclass(frozen=True)
class Conversion:
  """A converted file."""

  config: ConfigDict
  params: Mapping[str, Any]
  which: str  # the set of weights that was taken, such as "ema" or "models_states/eps_model"
  rate: str | None  # of the averaged weights; None for raw ones
  step: int
  dialect: str
  attention_order: str
  buffers: tuple[str, ...]  # tensors of the file that are not parameters
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
    like: a similar published model (`registry.PUBLISHED`) or config ("cifar10_iddpm", "my.py"). None: the model that
      the file name says, if it is a published one.
    overrides: changes to the config, such as "schedule.T=4000", and what the file does not say.
    weights: which set of weights, if the file has several.
    family: the expected dialect, which is only checked.
    attention_order: "legacy" or "new" (OpenAI's UNets); None: as published, else "legacy".

  Raises:
    UserError: if the file cannot be read, is not as expected, does not say enough, or has a weight that is not finite.
  """
  contents = weight_files.read(source, weights)
  _check_kinds(contents.tensors, source)
  published = registry.find(like) if like else registry.of_file(source)
  model = published.config() if published else configs.load(like) if like else None
  found = architecture.infer(contents.tensors, **configure.structure(model, overrides))
  if family is not None and family != found.dialect:
    raise UserError(f"{source} is not of the family {family}: its tensors are named as in {found.dialect}.")
  config, notes = configure.configure(contents, found, published, like, overrides)
  notes = [*contents.notes, *notes]
  fields.check(config)
  build.schedule(config)  # raises UserError for noise levels that cannot be
  order = attention_order or (published.attention_order if published else "legacy")
  if found.dialect == "openai" and not published and attention_order is None:
    notes.append("The order of attention's q, k, v is assumed to be \"legacy\", as in all published models but ADM's 64x64.")

  module = build.model(config, config.data.channels, config.data.num_classes)
  module.check_size(*pair(config.data.image_size))
  shapes = parameter_shapes(module, config)
  table = names.entries(module, shapes, found.dialect, attention_order=order, image_size=pair(config.data.image_size)[0])
  buffers = tuple(key for key in list(contents.tensors) if _BUFFERS.search(key) and contents.tensors.pop(key) is not None)
  params, report = names.to_params(table, contents.tensors, consume=True)
  if report:
    raise UserError(f"{source} does not fit the network {config.network.name}: {report}.")
  for name, leaf in zip(names_of(params), jax.tree.leaves(params), strict=True):
    if not np.isfinite(leaf).all():
      raise UserError(f"The weights {name} have values that are not finite: {source} is damaged, or its run diverged.")
  if published and published.fingerprint:
    _verify(module, config, params, published)

  averaged = contents.averaged if contents.averaged is not None else bool(published and published.averaged)
  if contents.averaged is None and not published:
    notes.append("The file does not say whether its weights are averaged; they are stored as raw ones.")
  if contents.beside:
    notes.append(f"Left out {len(contents.beside)} tensors beside the weights: {', '.join(list(contents.beside)[:4])}.")
  return Conversion(
    config,
    params,
    contents.which,
    (contents.rate or str(max(config.ema.rates, default=0.9999))) if averaged else None,
    published.step if published else _step(source) if contents.step is None else contents.step,
    found.dialect,
    order,
    buffers,
    tuple(notes),
  )


def save(conversion: Conversion, out: str | pathlib.Path, source: str | pathlib.Path):
  """Writes a checkpoint that sampling reads like any other, with a record of its source.

  Raises:
    UserError: if `out` already holds checkpoints.
  """
  out = pathlib.Path(out)
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
  with writing(out / RECORD) as temporary:
    temporary.write_text(json.dumps(record, indent=2) + "\n")


def parameter_shapes(module: Any, config: ConfigDict) -> Mapping[str, Any]:
  """The parameters of the network that `config` describes, without their values."""
  x = jax.ShapeDtypeStruct((1, *image_shape(config.data)), jnp.float32)
  cond = {"label": jax.ShapeDtypeStruct((1,), jnp.int32), "low_res": x}
  time = jax.ShapeDtypeStruct((1,), jnp.float32)
  return jax.eval_shape(module.init, jax.random.key(0), x, time, cond)["params"]


def _check_kinds(tensors: Mapping[str, Any], source: str | pathlib.Path) -> None:
  """Raises UserError for weights that are empty, or that are not real numbers, such as quantized ones without a scale."""
  for key, tensor in tensors.items():
    if 0 in tensor.shape:
      raise UserError(f"{source} has an empty tensor {key} of shape {tensor.shape}: save the whole model.")
    if tensor.ndim and tensor.dtype.kind in "biuc":
      raise UserError(f"{source} has the weights {key} as {tensor.dtype}: save the model as float32 (model.float()).")


def _step(source):
  """The last long number in the file's name, which every codebase uses for the step."""
  numbers = re.findall(r"(?<![.\d])\d{4,}", weight_files.prefix(source).name)
  return int(numbers[-1]) if numbers else 0


# ---------------------------------------------------------------- verification


def _verify(module, config, params, published):
  got = fingerprint(module, params, config)
  want = np.asarray(published.fingerprint)
  error = np.abs(got - want).max()
  if not error <= 1e-3 * np.abs(want).max():
    raise UserError(
      f"The weights are not those of {published.name}: a forward pass gives {np.round(got, 4)}, not {np.round(want, 4)}."
    )
