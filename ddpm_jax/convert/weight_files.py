"""Reads tensors from the files that other codebases write, and writes such files.

| file                         | written by                                                                  |
|------------------------------|-----------------------------------------------------------------------------|
| .pt .pth .ckpt .bin          | PyTorch (files/torch_files.py)                                              |
| .pkl                         | EDM's training: whole modules (files/torch_modules.py)                      |
| .safetensors                 | diffusers and others                                                        |
| a folder                     | diffusers (diffusers_folder.py)                                             |
| PREFIX.index, PREFIX.data-…  | TensorFlow (files/tf_bundle.py)                                             |

No format needs the library that wrote it. Tensors are mapped from disk where the format allows it, so that a large model is
in memory only once, converted.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.convert import diffusers_folder, weight_sets
from ddpm_jax.convert.weight_sets import WeightSet
from ddpm_jax.errors import UserError
from ddpm_jax.files import download, tf_bundle, torch_files, torch_modules
from ddpm_jax.files.atomic import writing
from ddpm_jax.files.safetensors import read as read_safetensors
from ddpm_jax.files.safetensors import write as write_safetensors
from ddpm_jax.files.tables import read_json

PathLike = str | pathlib.Path


@dataclasses.dataclass(frozen=True)
class Contents:
  """One set of weights from a file, and what the file says about it.

  Attributes:
    tensors: by their names there, without the prefixes of wrappers such as "module.".
    which: what was chosen, as reported to the user: "ema_models_states/eps_model".
    averaged: whether these are averaged weights; None when the file does not say.
    network, scheduler: diffusers' config.json and scheduler_config.json; None where there is no such file.
    beside: tensors beside the weights that have no place in a network, such as a schedule's betas.
    rate: the average's decay, where the file says it.
    step: the training step, where the file says it.
    notes: what was left out, in sentences.
  """

  tensors: dict[str, np.ndarray]
  which: str
  averaged: bool | None
  network: Mapping[str, Any] | None = None
  scheduler: Mapping[str, Any] | None = None
  beside: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  rate: str | None = None
  step: int | None = None
  notes: tuple[str, ...] = ()


def write(path: PathLike, tensors: Mapping[str, np.ndarray]):
  """Writes .safetensors or, for .pt, .pth and .ckpt, a PyTorch state dict, in float32 and atomically.

  Raises:
    UserError: for another ending, or if the file cannot be written.
  """
  writers = {".safetensors": write_safetensors, **dict.fromkeys((".pt", ".pth", ".ckpt"), torch_files.write)}
  if writer := writers.get(pathlib.Path(path).suffix):
    with writing(path) as temporary:
      return writer(temporary, tensors)
  raise UserError(f"{path} must end in .safetensors, .pt, .pth or .ckpt, which selects the format.")


def read(path: PathLike, weights: str | None = None) -> Contents:
  """The weights in `path`; averaged ones if there are any.

  Args:
    weights: which set, when a file has several: one of the names that the error message lists.

  Raises:
    UserError: if the file does not exist, is damaged, is of another kind, or holds several sets to choose from.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    return _of_folder(path, weights)
  if path.with_name(f"{prefix(path).name}.index").exists() or prefix(path) != path:
    return contents_of(_variable_sets(tf_bundle.read(prefix(path))), weights, path)
  if not path.is_file():
    raise UserError(f"{path} does not exist.")
  content = _load(path)
  contents = contents_of(_tensor_sets(content, path), weights, path)
  step = content.get("step") if isinstance(content, Mapping) else None
  return dataclasses.replace(contents, step=step if type(step) is int else None)


def _load(path: pathlib.Path) -> Any:
  """The contents of a file, read by its kind."""
  if path.name.endswith(".json"):
    return read_shards(path)
  _check_container(path)
  if path.suffix == ".pkl":
    return torch_modules.tensors(path)
  return read_safetensors(path) if path.suffix == ".safetensors" else torch_files.read(path)


def _of_folder(folder: pathlib.Path, weights: str | None) -> Contents:
  """The model in a diffusers folder, with today's names of its layers."""
  located = diffusers_folder.locate(folder, weights)
  (model,) = weight_sets.of_object(_load(located.file), located.file)
  return Contents(
    {_renamed(key): tensor for key, tensor in model.tensors.items()},
    located.which,
    located.averaged,
    network=located.network,
    scheduler=located.scheduler,
    rate=located.rate,
    notes=located.notes,
  )


def _renamed(key: str) -> str:
  """Today's name of a layer, such as one called "attentions.0.query" in 2022."""
  for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
    key = key.replace(f".{old}.", f".{new}.")
  return key


def contents_of(sets: Mapping[str, WeightSet], weights: str | None, path: pathlib.Path) -> Contents:
  """The chosen one of `sets`, and whether it is an average.

  OpenAI's training writes one file per average, whose name is `ema_RATE_STEP.pt`. No other name of a file counts.
  """
  chosen = weight_sets.choose(list(sets.values()), weights, path)
  by_name = re.fullmatch(r"ema_(0?\.\d+)_\d+\.(pt|safetensors)", path.name)
  others = [name for name, item in sets.items() if item is not chosen]
  averaged = True if chosen.averaged or by_name else False if any(item.averaged for item in sets.values()) else None
  notes = (f"Took {chosen.name or path.name}, left out {', '.join(others)}.",) if others else ()
  return Contents(
    chosen.tensors,
    chosen.name or path.name,
    averaged,
    beside=chosen.beside,
    rate=by_name[1] if by_name else None,
    notes=notes,
  )


def _tensor_sets(content: Any, path: PathLike) -> dict[str, WeightSet]:
  """The models inside what a file holds, by name."""
  return {item.name: item for item in weight_sets.of_object(content, path)}


def read_shards(index: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of all the files that a `….index.json` names, in its order.

  Raises:
    UserError: if a shard is missing or lacks one of its tensors.
  """
  listed = read_json(index).get("weight_map")
  if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
    raise UserError(f"{index} has no weight_map of names to files: fetch it again.")
  shards = {}
  for name in dict.fromkeys(listed.values()):
    shard = index.parent / name
    if shard.parent != index.parent or not shard.is_file():
      raise UserError(f"{index.name} names the file {name}, which is missing: download all shards of this model.")
    shards[name] = read_safetensors(shard) if shard.suffix == ".safetensors" else torch_files.read(shard)
  try:
    return {key: shards[name][key] for key, name in listed.items()}
  except (KeyError, TypeError) as error:
    raise UserError(f"{index.name} lists the tensor {error.args[0]}, but its file does not have it.") from None


_COMPRESSED = {b"\x1f\x8b": ("gzip", "gunzip"), b"BZh": ("bzip2", "bunzip2"), b"\xfd7zXZ": ("xz", "unxz")}
_COMPRESSED |= {b"\x28\xb5\x2f\xfd": ("zstd", "unzstd")}

_SAVED_AGAIN = "load it with the library that wrote it and save the weights as .safetensors"
_OTHERS = {
  b"version https://git-lfs": ("a pointer of Git LFS", "fetch the file that it stands for with git lfs pull"),
  b"GGUF": ("a GGUF file", _SAVED_AGAIN),
  b"\x89HDF\r\n\x1a\n": ("an HDF5 file", _SAVED_AGAIN),
}


def _check_container(path: pathlib.Path) -> None:
  """Raises UserError for a compressed file, with the command that unpacks it, and for other well-known files."""
  with path.open("rb") as file:
    start = file.read(64)
  for magic, (kind, command) in _COMPRESSED.items():
    if start.startswith(magic):
      raise UserError(f"{path} is compressed with {kind}: unpack it first ({command} {path.name}) and convert the result.")
  if download.is_web_page(start):
    raise UserError(f"{path} is a web page, not weights: download the file itself.")
  for magic, (kind, remedy) in _OTHERS.items():
    if start.startswith(magic):
      raise UserError(f"{path} is {kind}, not weights of PyTorch or safetensors: {remedy}.")


def prefix(path: PathLike) -> pathlib.Path:
  """The name of a TensorFlow checkpoint, of which `path` may be one of the files; any other path as it is."""
  path = pathlib.Path(path)
  return path.with_name(re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", path.name))


def _variable_sets(variables: Mapping[str, np.ndarray]) -> dict[str, WeightSet]:
  """Raw and averaged variables of a TensorFlow model, without Adam's slots and the counters."""
  average = "/ExponentialMovingAverage"
  sets: dict[str, dict] = {"model": {}, "ema": {}}
  for name, tensor in variables.items():
    short = name.removeprefix("model/")
    if name.endswith(average):
      sets["ema"][short.removesuffix(average)] = tensor
    elif not re.search(r"(/Adam(_1)?|_power|global_step)$", name):
      sets["model"][short] = tensor
  return {name: WeightSet(name, tensors) for name, tensors in sets.items() if tensors}
