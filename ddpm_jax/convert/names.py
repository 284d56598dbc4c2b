"""Translation between our parameters and other codebases' tensors, by structure.

Every network of the family is the same walk over blocks (`ddpm_jax.models.unet`), so a dialect (dialects.py) is a short rule
from the position of a layer in this walk to its name in another codebase.

    table = names.entries(network, shapes, "openai")       # shapes: jax.eval_shape of network.init
    params, report = names.to_params(table, state_dict)         # their tensors -> our nested dict, and what did not fit
    state_dict = names.to_tensors(table, params)                 # and back, bit for bit

| dialect     | codebases                                                                                   |
|-------------|---------------------------------------------------------------------------------------------|
| pesser      | PyTorch ports of Ho's UNet: pytorch_diffusion, DDIM, Analytic-DPM (CelebA), Extended (DDPM) |
| ho_tf       | Ho's TensorFlow variables, without the scope `model/`                                       |
| openai      | improved-diffusion, guided-diffusion, P2, Analytic-DPM (CIFAR), Extended (IDDPM)            |
| consistency | openai/consistency_models                                                                   |
| ncsnpp      | score_sde_pytorch's `all_modules.K`, Extended (VP-SDE)                                      |
| diffusers   | `UNet2DModel`                                                                               |
| edm_adm     | EDM's `DhariwalUNet`                                                                        |
| edm_song    | EDM's `SongUNet`: DDPM++ and NCSN++                                                         |
| lucidrains  | denoising-diffusion-pytorch                                                                 |
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, MutableMapping

import flax.linen as nn
import flax.traverse_util
import numpy as np

from ddpm_jax.convert.dialects import DIALECTS
from ddpm_jax.convert.walk import split
from ddpm_jax.errors import UserError

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Entry:
  """One of our parameters, and the tensor (or tensors, for a joint q, k, v) that stores it in another codebase."""

  ours: str  # "down_0_block_0/conv1/kernel"
  shape: tuple[int, ...]
  theirs: tuple[str, ...]
  their_shape: tuple[int, ...]  # of each
  load: Callable[[list[Array]], Array]
  save: Callable[[Array], list[Array]]


@dataclasses.dataclass(frozen=True)
class Report:
  """What does not match, by name: our parameters without a tensor, unused tensors, and tensors of the wrong shape."""

  missing: tuple[str, ...]
  unused: tuple[str, ...]
  misshapen: tuple[str, ...]

  def __bool__(self):
    return bool(self.missing or self.unused or self.misshapen)

  def __str__(self):
    parts = [f"{len(names)} {what}: {_some(names)}" for what, names in vars(self).items() if names]
    return "; ".join(parts) or "every tensor found its place"


def entries(
  network: nn.Module, shapes: Mapping, dialect: str, *, attention_order: str = "legacy", image_size: int = 0
) -> list[Entry]:
  """The dictionary between `network`'s parameters and a dialect.

  Args:
    network: says how many heads an attention has.
    shapes: the "params" collection, or `jax.eval_shape` of it.
    attention_order: of OpenAI's qkv tensors: "legacy" (q k v of head 0, q k v of head 1, …) or "new" (q, k, v, each with
      all heads). Shapes cannot tell them apart; only the 64x64 ADM model is "new".
    image_size: of the images, for EDM, whose names hold resolutions.

  Raises:
    UserError: for an unknown dialect or order, or a layer that this dialect has no name for.
  """
  if dialect not in DIALECTS:
    raise UserError(f"dialect {dialect!r} is unknown; use one of {', '.join(DIALECTS)}")
  if attention_order not in ("legacy", "new"):
    raise UserError(f'attention_order={attention_order!r} is unknown; use "legacy" or "new"')
  flat = flax.traverse_util.flatten_dict(dict(shapes), sep="/")
  words = DIALECTS[dialect]
  plan = words.plan(flat, image_size)
  order = "q k v" if words.qkv == "legacy" and attention_order == "new" else words.qkv
  heads = getattr(network, "backbone", network).heads if order != "q k v" else None
  return [_entry(path, leaf.shape, words, plan, order, heads) for path, leaf in flat.items()]


def to_params(table: Iterable[Entry], tensors: MutableMapping[str, Array], *, consume: bool = False) -> tuple[dict, Report]:
  """Their tensors as our nested dict of float32 parameters, and a report. Missing or misshapen tensors are omitted.

  consume: remove each tensor from `tensors` once it is used, so that a large model is held only once.
  """
  params = {}
  missing = []
  misshapen = []
  used = set()
  for entry in table:
    absent = [key for key in entry.theirs if key not in tensors]
    wrong = [key for key in entry.theirs if key in tensors and tensors[key].shape != entry.their_shape]
    missing += absent
    misshapen += [f"{key} {tensors[key].shape}, not {entry.their_shape}" for key in wrong]
    used.update(entry.theirs)
    if not absent and not wrong:
      parts = [np.asarray(tensors.pop(key) if consume else tensors[key], np.float32) for key in entry.theirs]
      params[entry.ours] = np.ascontiguousarray(entry.load(parts))
  unused = [key for key in tensors if key not in used]
  report = Report(tuple(missing), tuple(unused), tuple(misshapen))
  return flax.traverse_util.unflatten_dict(params, sep="/"), report


def to_tensors(table: Iterable[Entry], params: Mapping) -> dict[str, Array]:
  """Our parameters under the names and in the layout of the other codebase."""
  flat = flax.traverse_util.flatten_dict(dict(params), sep="/")
  tensors = {}
  for entry in table:
    parts = entry.save(np.asarray(flat[entry.ours]))
    tensors.update((key, np.ascontiguousarray(part)) for key, part in zip(entry.theirs, parts, strict=True))
  return tensors


# ---------------------------------------------------------------- tensors


def _entry(path, shape, dialect, plan, order, heads):
  """`heads`: (channels, on the way up) -> number of heads, where the columns of a qkv tensor are not in our order."""
  layer = dialect.find(plan, path)
  param = path.split("/")[-1]
  suffix = _suffix(param, layer, dialect, is_norm="norm" in path.split("/")[-2])
  parts = len(layer.names)
  part_shape = (*shape[:-1], shape[-1] // parts)

  if param == "g":  # of a norm over channels, [C]
    there = lambda a: a.reshape(1, -1, 1, 1)
    back = lambda a: a.reshape(-1)
  elif param == "mem_kv":
    there = back = lambda a: a
  elif len(shape) == 4 and not dialect.tensorflow:
    there = lambda a: a.transpose(3, 2, 0, 1)
    back = lambda a: a.transpose(2, 3, 1, 0)
  elif len(shape) == 2 and param != "embedding" and layer.rank and not dialect.tensorflow:
    rank = layer.rank if param == "kernel" else 2
    there = lambda a: a.T.reshape(a.shape[::-1] + (1,) * (rank - 2))
    back = lambda a: a.reshape(a.shape[:2]).T
  else:
    there = back = lambda a: a

  if heads and path.split("/")[-2] == "qkv" and not path.startswith("pool"):
    count = heads(shape[-1] // 3, split(path)[0].startswith("up"))
    ours, theirs = _columns(shape[-1], count, order)
  else:
    ours = theirs = slice(None)

  return Entry(
    ours=path,
    shape=shape,
    theirs=tuple(f"{name}{suffix}" for name in layer.names),
    their_shape=there(np.broadcast_to(0, part_shape)).shape,
    load=lambda tensors: np.concatenate([back(tensor) for tensor in tensors], axis=-1)[..., ours],
    save=lambda array: [there(part) for part in np.split(array[..., theirs], parts, axis=-1)],
  )


def _suffix(param, layer, dialect, is_norm):
  if param in ("positional_embedding", "g", "mem_kv", "freqs"):
    return f".{param}"
  kernel = param != "bias"
  if dialect.tensorflow:
    return "/" + (("gamma" if kernel else "beta") if is_norm else ("W" if kernel else "b"))
  if layer.rank == 0:
    return ".W" if kernel else ".b"
  return ".weight" if kernel else ".bias"


def _columns(width, heads, order):
  """Where our column [q | k | v] x head x channel is among theirs, and the inverse."""
  theirs = np.arange(width)
  if order == "legacy":  # head x [q | k | v] x channel
    ours = theirs.reshape(heads, 3, -1).transpose(1, 0, 2).reshape(-1)
  else:  # head x channel x [q | k | v]
    ours = theirs.reshape(heads, -1, 3).transpose(2, 0, 1).reshape(-1)
  return ours, np.argsort(ours)


def _some(names, most=8):
  shown = ", ".join(names[:most])
  return shown if len(names) <= most else f"{shown}, and {len(names) - most} more"


load = to_params  # the names of the first release, which programs of others use
save = to_tensors
