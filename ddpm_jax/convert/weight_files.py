"""Tensors out of the files that other codebases write, and back into them.

| file                         | written by                                                                  |
|------------------------------|-----------------------------------------------------------------------------|
| .pt .pth .ckpt               | PyTorch (torch_files.py)                                                    |
| .safetensors                 | diffusers and others                                                        |
| a folder                     | diffusers: config.json beside the tensors, perhaps in a subfolder `unet`    |
| PREFIX.index, PREFIX.data-…  | TensorFlow (bundle.py)                                                      |

None of them needs the library that wrote it. Tensors stay mapped from disk as far as the format allows, so that a
large model is in memory once: converted.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.files import tf_bundle, torch_files
from ddpm_jax.files.atomic import writing
from ddpm_jax.files.safetensors import read as read_safetensors
from ddpm_jax.files.safetensors import write as write_safetensors

PathLike = str | pathlib.Path


@dataclasses.dataclass(frozen=True)
class Contents:
  """One set of weights out of a file, and what the file says about it.

  Attributes:
    tensors: by their names there, without a wrapper's prefix such as "module.".
    which: what was chosen, to be told to the user: "ema_models_states/eps_model".
    averaged: whether these are averaged weights; None when the file does not say.
    network, scheduler: diffusers' config.json and scheduler_config.json, or empty.
  """

  tensors: dict[str, np.ndarray]
  which: str
  averaged: bool | None
  network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  scheduler: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write(path: PathLike, tensors: Mapping[str, np.ndarray]):
  """Writes .safetensors or, for .pt, .pth and .ckpt, a PyTorch state dict; float32, whole or not at all.

  Raises:
    UserError: for another ending, or where nothing can be written.
  """
  writers = {".safetensors": write_safetensors, **dict.fromkeys((".pt", ".pth", ".ckpt"), torch_files.save)}
  if writer := writers.get(pathlib.Path(path).suffix):
    with writing(path) as temporary:
      return writer(temporary, tensors)
  raise UserError(f"{path} should end in .safetensors, .pt, .pth or .ckpt, which say how it is written.")


def read(path: PathLike, weights: str | None = None) -> Contents:
  """The weights in `path`, averaged ones if there are any.

  Args:
    weights: which set, when a file has several: one of the names that the error message lists.

  Raises:
    UserError: if there is no such file, it is damaged, holds code or an optimizer, or several sets to choose from.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    return _diffusers_folder(path)
  if path.with_name(f"{prefix(path).name}.index").exists() or prefix(path) != path:
    return _choose(_variable_sets(tf_bundle.read(prefix(path))), weights, path)
  if not path.is_file():
    raise UserError(f"{path} does not exist.")
  if path.suffix == ".safetensors":
    return _choose({"": read_safetensors(path)}, weights, path)
  return _choose(_tensor_sets(torch_files.load(path), path), weights, path)


def prefix(path: PathLike) -> pathlib.Path:
  """The name of a TensorFlow checkpoint, of which `path` may be one of the files; any other path as it is."""
  path = pathlib.Path(path)
  return path.with_name(re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", path.name))


# ---------------------------------------------------------------- one set of several

_WRAPPERS = ("module.", "model.")  # of DistributedDataParallel and of Lightning


def _choose(sets: dict[str, dict], weights: str | None, path: pathlib.Path) -> Contents:
  if weights is not None and weights not in sets:
    raise UserError(f"{path} has no weights {weights!r}; it has {', '.join(sets)}.")
  averaged = [name for name in sets if "ema" in name.lower()]
  names = [weights] if weights is not None else averaged or list(sets)
  if len(names) > 1:
    raise UserError(f"{path} holds several sets of weights: {', '.join(names)}. Choose one with --weights NAME.")
  (name,) = names
  tensors = sets[name]
  for wrapper in _WRAPPERS:
    if all(key.startswith(wrapper) for key in tensors):
      tensors = {key.removeprefix(wrapper): tensor for key, tensor in tensors.items()}
  named = name + path.name + path.parent.name
  known = len(sets) > 1 or "ema" in named.lower()
  return Contents(tensors, name or path.name, bool("ema" in named.lower()) if known else None)


def _tensor_sets(obj: Any, path: pathlib.Path) -> dict[str, dict]:
  """Every mapping of names to tensors inside a torch file, by where it is; optimizers are left out."""
  if _is_optimizer(obj):
    raise UserError(f"{path} is the state of an optimizer, not a model; give the model's file (ema_….pt, model….pt).")
  sets: dict[str, dict] = {}

  def walk(node, where):
    if isinstance(node, Mapping) and node and all(map(_is_tensor, node.values())):
      sets["/".join(where)] = dict(node)
    elif not _is_optimizer(node):
      children = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
      for key, child in children:
        walk(child, [*where, str(key)])

  walk(obj, [])
  if set(sets) == {"0", "4"} and isinstance(obj, list | tuple):  # the DDIM code's [model, optimizer, epoch, step, EMA]
    sets = {"model": sets["0"], "ema": sets["4"]}
  if not sets:
    raise UserError(f"{path} holds no tensors by name; it is not a model.")
  return sets


def _is_optimizer(node):
  return isinstance(node, Mapping) and {"state", "param_groups"} <= node.keys()


def _is_tensor(value):
  return hasattr(value, "shape") and hasattr(value, "dtype")


def _variable_sets(variables: Mapping[str, np.ndarray]) -> dict[str, dict]:
  """Raw and averaged variables of a TensorFlow model, without Adam's slots and the counters."""
  average = "/ExponentialMovingAverage"
  sets: dict[str, dict] = {"model": {}, "ema": {}}
  for name, tensor in variables.items():
    short = name.removeprefix("model/")
    if name.endswith(average):
      sets["ema"][short.removesuffix(average)] = tensor
    elif not re.search(r"(/Adam(_1)?|_power|global_step)$", name):
      sets["model"][short] = tensor
  return {name: tensors for name, tensors in sets.items() if tensors}


# ---------------------------------------------------------------- diffusers


def _diffusers_folder(folder: pathlib.Path) -> Contents:
  """`unet/` of a pipeline, or the folder of a bare model, with the scheduler's settings when they are there."""
  unet = folder / "unet" if (folder / "unet").is_dir() else folder
  config = _json(unet / "config.json")
  if config.get("_class_name") != "UNet2DModel":
    kind = config.get("_class_name", "model of no name")
    raise UserError(f"{folder} holds a {kind}; of diffusers' networks, UNet2DModel is supported.")
  found = [file for name in ("safetensors", "bin") for file in sorted(unet.glob(f"diffusion_pytorch_model*.{name}"))]
  if not found:
    raise UserError(f"{unet} has no diffusion_pytorch_model.safetensors and no diffusion_pytorch_model.bin.")
  contents = read(found[0])
  tensors = {_renamed(key): tensor for key, tensor in contents.tensors.items()}
  schedulers = [folder / "scheduler/scheduler_config.json", folder / "scheduler_config.json"]
  scheduler = next((_json(file) for file in schedulers if file.is_file()), {})
  return Contents(tensors, contents.which, None, network=config, scheduler=scheduler)


def _renamed(key):
  """What diffusers calls now what it called "attentions.0.query" in 2022."""
  for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
    key = key.replace(f".{old}.", f".{new}.")
  return key


def _json(path):
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    raise UserError(f"{path} does not exist; a diffusers folder has a config.json beside its tensors.") from None
  except ValueError:
    raise UserError(f"{path} is damaged: it is not JSON.") from None
