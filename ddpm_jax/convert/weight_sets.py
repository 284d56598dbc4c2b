"""The sets of weights inside one file, and which of them to take.

Training programs store a model in many ways: behind the prefixes of wrappers (`module.`, `_orig_mod.`, `unet.`), together
with optimizers and settings, and with one or more averages. A set is found by the tensors that every network of a known
codebase has (`signatures.py`), whatever the names of wrappers. Everything else is ignored.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.convert.signatures import SIGNATURES
from ddpm_jax.errors import UserError

# Words that name an average, as whole words in the keys of a file: "ema", "ema_model", "model_ema", "shadow_params".
_AVERAGES = {"ema", "average", "averaged", "avg", "shadow", "swa"}
_RAW = {"online"}  # ema-pytorch keeps the raw model beside the average, under the same key "ema"
_BUFFER = re.compile(r"(^|\.)(sigmas|logvar|u|freqs|resample_filter|num_batches_tracked|betas|loss_weight)$")


@dataclasses.dataclass(frozen=True)
class WeightSet:
  """One model of a file.

  Attributes:
    name: where it is in the file, with the prefix of its names: "ema/ema_model.model".
    tensors: by their names without the prefix.
    beside: names of the tensors that lie beside it under the same key, without a place in the network.
  """

  name: str
  tensors: dict[str, np.ndarray]
  beside: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  @property
  def averaged(self) -> bool:
    """Whether the keys of the file call this an average."""
    words = set(re.split(r"[^a-z]+", self.name.lower()))
    return bool(words & _AVERAGES) and not words & _RAW


def of_object(obj: Any, path: Any) -> list[WeightSet]:
  """Every model in the contents of a file, including averages that are stored as lists.

  Raises:
    UserError: if there is none.
  """
  if is_optimizer(obj):
    raise UserError(f"{path} is the state of an optimizer, not a model: use the model's file (ema_….pt, model….pt).")
  found = [item for where, tensors in _mappings(obj) for item in _of_mapping("/".join(where), tensors)]
  found = [item for item in found if any(key in item.tensors for key in SIGNATURES.values())] or found
  if isinstance(obj, list | tuple) and [item.name for item in found] == ["0", "4"]:
    # the DDIM code's [model, optimizer, epoch, step, EMA]
    found = [dataclasses.replace(item, name=name) for item, name in zip(found, ("model", "ema"), strict=True)]
  if not found:
    raise UserError(f"{path} does not contain named tensors: it is not a model.")
  return [*found, *_shadows(obj, found)]


def choose(sets: Sequence[WeightSet], weights: str | None, path: Any) -> WeightSet:
  """The set called `weights`; without a name, the only average or the only set.

  Raises:
    UserError: if there is no such set, or several to choose from.
  """
  known = {item.name: item for item in sets}
  if weights is not None and weights not in known:
    raise UserError(f"{path} has no weights {weights!r}; it has {', '.join(known) or 'one set without a name'}.")
  candidates = [known[weights]] if weights is not None else [item for item in sets if item.averaged] or list(sets)
  if len(candidates) > 1:
    names = ", ".join(item.name for item in candidates)
    raise UserError(f"{path} holds several sets of weights: {names}. Choose one with --weights NAME.")
  return candidates[0]


def is_optimizer(node: Any) -> bool:
  """Whether this is the state of a PyTorch optimizer."""
  return isinstance(node, Mapping) and {"state", "param_groups"} <= node.keys()


def is_tensor(value: Any) -> bool:
  """Whether this is an array, as opposed to a setting."""
  return hasattr(value, "shape") and hasattr(value, "dtype")


def _mappings(node: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, np.ndarray]]]:
  """(keys, tensors by name) of every mapping that holds tensors, outside of optimizers."""
  if is_optimizer(node):
    return
  items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
  tensors = {}
  for key, child in items:
    if is_tensor(child):
      tensors[key] = child
    else:
      yield from _mappings(child, (*where, str(key)))
  if isinstance(node, Mapping) and tensors:
    yield where, {str(key): tensor for key, tensor in tensors.items()}


def _of_mapping(where: str, tensors: dict[str, np.ndarray]) -> list[WeightSet]:
  """The models among `tensors`, one per prefix; all of them as one set where nothing is known."""
  prefixes = {}  # in the order of the file
  for key in tensors:
    for signature in SIGNATURES.values():
      prefix = key.removesuffix(signature)
      if prefix != key and (not prefix or prefix.endswith((".", "/"))):
        prefixes[prefix] = None
  if not prefixes:
    return [WeightSet(where, tensors)] if all(tensor.ndim for tensor in tensors.values()) else []
  known = lambda key: next((prefix for prefix in sorted(prefixes, key=len, reverse=True) if key.startswith(prefix)), None)
  parts: dict[str, dict] = {prefix: {} for prefix in prefixes}
  beside = {}
  for key, tensor in tensors.items():
    prefix = known(key)
    if prefix is None:
      beside[key] = tensor
    else:
      parts[prefix][key.removeprefix(prefix)] = tensor
  found = []
  for prefix, part in parts.items():
    label = prefix.strip("./")
    named = len(parts) > 1 or WeightSet(label, {}).averaged
    found.append(WeightSet("/".join(filter(None, (where, label if named else ""))), part, beside))
  return found + _without_dots(where, found, beside)


def _without_dots(where: str, found: list[WeightSet], beside: dict[str, np.ndarray]) -> list[WeightSet]:
  """The average of Lightning's `LitEma`, whose names are those of the model without dots, behind `model_ema.`."""
  flat = {key.removeprefix("model_ema."): tensor for key, tensor in beside.items() if key.startswith("model_ema.")}
  for item in found:
    first = next(iter(item.tensors)).replace(".", "")
    for wrapper in [key.removesuffix(first) for key in flat if key.endswith(first)]:
      dotless = {name: wrapper + name.replace(".", "") for name in item.tensors}
      if all(key in flat for key in dotless.values()):
        label = f"{where}/model_ema" if where else "model_ema"
        return [WeightSet(label, {name: flat[key] for name, key in dotless.items()})]
  return []


def _shadows(node: Any, models: Sequence[WeightSet], where: tuple[str, ...] = ()) -> Iterator[WeightSet]:
  """Averages without names: `shadow_params`, a list in the order of the model's parameters (score_sde, torch_ema)."""
  items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
  for key, child in items:
    here = (*where, str(key))
    if key == "shadow_params" and isinstance(child, list | tuple) and child and all(map(is_tensor, child)):
      matched = [tensors for model in models if (tensors := _in_order(model.tensors, child)) is not None]
      if not matched:
        raise UserError(
          f"The average {'/'.join(here)} is a list of {len(child)} tensors, which fits no model beside it. Take the raw "
          "weights with --weights NAME, or save the average with its names."
        )
      yield WeightSet("/".join(here), matched[0])
    else:
      yield from _shadows(child, models, here)


def _in_order(model: Mapping[str, np.ndarray], values: Sequence[np.ndarray]) -> dict[str, np.ndarray] | None:
  """`values` under the names of the model's parameters, or None if they do not fit one after the other."""
  names = [name for name in model if not _BUFFER.search(name)]
  names = names if len(names) == len(values) else list(model)
  if len(names) != len(values) or any(model[name].shape != value.shape for name, value in zip(names, values, strict=True)):
    return None
  buffers = {name: tensor for name, tensor in model.items() if name not in names}
  return buffers | dict(zip(names, values, strict=True))
