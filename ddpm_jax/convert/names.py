"""Translation between our parameters and other codebases' tensors, by structure.

Every network of the family is the same walk over blocks (`ddpm_jax.models.unet`), so a dialect is a short rule from
the place of a layer in that walk to the name it has elsewhere. Nothing is listed name by name.

    table = names.entries(network, shapes, "openai")       # shapes: jax.eval_shape of network.init
    params, report = names.load(table, state_dict)         # their tensors -> our nested dict, and what did not fit
    state_dict = names.save(table, params)                 # and back, bit for bit

| dialect   | codebases                                                                                   |
|-----------|---------------------------------------------------------------------------------------------|
| pesser    | PyTorch ports of Ho's UNet: pytorch_diffusion, DDIM, Analytic-DPM (CelebA), Extended (DDPM) |
| ho_tf     | Ho's TensorFlow variables, without the scope `model/`                                       |
| openai    | improved-diffusion, guided-diffusion, Analytic-DPM (CIFAR), Extended (IDDPM), classifiers   |
| ncsnpp    | score_sde_pytorch's `all_modules.K`, Extended (VP-SDE)                                      |
| diffusers | `UNet2DModel`                                                                               |
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping

import flax.linen as nn
import flax.traverse_util
import numpy as np

from ddpm_jax.errors import UserError

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Entry:
  """One of our parameters and the tensor (or the tensors, for a joint q, k, v) that it is elsewhere."""

  ours: str  # "down_0_block_0/conv1/kernel"
  shape: tuple[int, ...]
  theirs: tuple[str, ...]
  their_shape: tuple[int, ...]  # of each
  load: Callable[[list[Array]], Array]
  save: Callable[[Array], list[Array]]


@dataclasses.dataclass(frozen=True)
class Report:
  """What did not fit, by name: parameters of ours without a tensor, tensors without a use, tensors of a wrong shape."""

  missing: tuple[str, ...]
  unused: tuple[str, ...]
  misshapen: tuple[str, ...]

  def __bool__(self):
    return bool(self.missing or self.unused or self.misshapen)

  def __str__(self):
    parts = [f"{len(names)} {what}: {_some(names)}" for what, names in vars(self).items() if names]
    return "; ".join(parts) or "every tensor found its place"


def entries(network: nn.Module, shapes: Mapping, dialect: str, *, attention_order: str = "legacy") -> list[Entry]:
  """The dictionary between `network`'s parameters and a dialect.

  Args:
    network: tells how many heads an attention has.
    shapes: the "params" collection, or `jax.eval_shape` of it.
    attention_order: of OpenAI's qkv tensors: "legacy" (q k v of head 0, q k v of head 1, …) or "new" (q, k, v, each with
      all heads). Shapes cannot tell them apart; only the 64x64 ADM model is "new".

  Raises:
    UserError: for an unknown dialect or order, or a layer that this dialect has no name for.
  """
  if dialect not in DIALECTS:
    raise UserError(f"dialect {dialect!r} is unknown; use one of {', '.join(DIALECTS)}")
  if attention_order not in ("legacy", "new"):
    raise UserError(f'attention_order={attention_order!r} is unknown; use "legacy" or "new"')
  flat = flax.traverse_util.flatten_dict(dict(shapes), sep="/")
  plan = Plan.of(flat)
  legacy = dialect == "openai" and attention_order == "legacy"
  heads = getattr(network, "backbone", network).heads if legacy else None
  return [_entry(path, leaf.shape, DIALECTS[dialect], plan, heads) for path, leaf in flat.items()]


def load(table: Iterable[Entry], tensors: MutableMapping[str, Array], *, consume: bool = False) -> tuple[dict, Report]:
  """Their tensors as our nested dict of float32 parameters, and a report; what is missing or misshapen is left out.

  consume: remove each tensor from `tensors` once it is used, so that a large model is held only once.
  """
  params, missing, misshapen, used = {}, [], [], set()
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


def save(table: Iterable[Entry], params: Mapping) -> dict[str, Array]:
  """Our parameters under the names and in the layout of the other codebase."""
  flat = flax.traverse_util.flatten_dict(dict(params), sep="/")
  tensors = {}
  for entry in table:
    parts = entry.save(np.asarray(flat[entry.ours]))
    tensors.update((key, np.ascontiguousarray(part)) for key, part in zip(entry.theirs, parts, strict=True))
  return tensors


# ---------------------------------------------------------------- the walk


@dataclasses.dataclass(frozen=True)
class Plan:
  """What the names of parameters say about a network."""

  levels: int
  blocks: int  # per level, on the way down
  attending: frozenset[int]  # levels that attend on the way up
  order: Mapping[str, int]  # module of the walk -> its place in the order of execution
  complex_head: bool  # whether a second head has a residual block

  @classmethod
  def of(cls, flat: Iterable[str]) -> "Plan":
    modules = {module for module, _ in map(_split, flat)}
    walk = sorted(filter(_place, modules), key=_when)
    down = [place for module in walk if module.startswith("down") and (place := _place(module))]
    if not down:
      raise UserError("these parameters are not those of a UNet: none is called down_<level>_block_<i>")
    return cls(
      levels=1 + max(level for _, level, _, _ in down),
      blocks=1 + max(i for _, _, what, i in down if what == "block"),
      attending=frozenset(place[1] for m in walk if m.startswith("up") and "attn" in m and (place := _place(m))),
      order={module: i for i, module in enumerate(walk)},
      complex_head="head/block" in modules,
    )


def _split(path: str) -> tuple[str, str]:
  """A parameter's module in the walk and its layer: "backbone/mid_attn_0/qkv/bias" -> ("mid_attn_0", "qkv")."""
  *module, layer = path.removeprefix("backbone/").split("/")[:-1]
  return ("/".join(module), layer) if module else (layer, "")


def _place(module: str) -> tuple[str, int, str, int] | None:
  """ "up_2_attn_1" -> ("up", 2, "attn", 1), "mid_block_0" -> ("mid", 0, "block", 0); None outside the walk."""
  found = re.fullmatch(r"(down|mid|up)(?:_(\d+))?_(block|attn|downsample|upsample)(?:_(\d+))?", module)
  return found and (found[1], int(found[2] or 0), found[3], int(found[4] or 0))


def _when(module):
  side, level, what, i = _place(module)
  resamples = what in ("downsample", "upsample")
  return ("down", "mid", "up").index(side), -level if side == "up" else level, resamples, i, what == "attn"


# ---------------------------------------------------------------- dialects


class Layer:
  """The name of a layer elsewhere, or the three of a split q, k, v; and how a matrix is stored there.

  rank: of the tensor of a matrix: 2 for Linear, 3 for a 1x1 Conv1d, 4 for a 1x1 Conv2d, 0 for [in, out].
  """

  def __init__(self, *names: str, rank: int = 2):
    self.names, self.rank = names, rank


@dataclasses.dataclass(frozen=True)
class Dialect:
  """How one codebase names and stores what we have.

  Attributes:
    around: plan -> the layers outside the walk, by our "module/layer".
    layers: the layers of residual blocks, attentions and resamplers, by our name.
    place: (plan, module) -> where a module of the walk is.
    spell: turns the dotted name of a layer into the dialect's.
    tensorflow: convolutions are HWIO, matrices [in, out], and norms have gamma and beta.
  """

  around: Callable[[Plan], Mapping[str, Layer]]
  layers: Mapping[str, Layer]
  place: Callable[[Plan, str], str]
  spell: Callable[[str], str] = lambda name: name
  tensorflow: bool = False

  def find(self, plan: Plan, path: str) -> Layer:
    module, layer = _split(path)
    around = self.around(plan)
    key = f"{module}/{layer}" if layer else module
    if key in around:
      found, where = around[key], ""
    else:
      place = _place(module)
      found = self.layers.get(f"{place[2]}/{layer}" if place else layer) or self.layers.get(layer)
      if found is None or not (place or module in around):
        raise UserError(f"this codebase has no name for the layer {key}")
      where = self.place(plan, module) if place else around[module].names[0]
    prefix = f"{where}." if where else ""
    return Layer(*(self.spell(prefix + name) for name in found.names), rank=found.rank)


def _pesser_place(plan, module):
  side, level, what, i = _place(module)
  if side == "mid":
    return f"mid.{what}_{i + 1}"
  return f"{side}.{level}.{what}" + ("" if what.endswith("sample") else f".{i}")


_PESSER = Dialect(
  around=lambda plan: {
    "time_embed/dense_0": Layer("temb.dense.0"),
    "time_embed/dense_1": Layer("temb.dense.1"),
    "conv_in": Layer("conv_in"),
    "out/norm": Layer("norm_out"),
    "out/conv": Layer("conv_out"),
    "head/block": Layer("before_out"),
    "head/norm": Layer("norm_out2"),
    "head/conv": Layer("conv_out2"),
  },
  layers={
    "norm1": Layer("norm1"),
    "conv1": Layer("conv1"),
    "emb": Layer("temb_proj"),
    "norm2": Layer("norm2"),
    "conv2": Layer("conv2"),
    "shortcut": Layer("nin_shortcut", rank=4),
    "norm": Layer("norm"),
    "qkv": Layer("q", "k", "v", rank=4),
    "out": Layer("proj_out", rank=4),
    "conv": Layer("conv"),
  },
  place=_pesser_place,
)

_HO_TF = dataclasses.replace(
  _PESSER,
  # "down.0.block.1.conv1" -> "down_0/block_1/conv1", and "temb.dense.0" -> "temb/dense0"
  spell=lambda name: re.sub(r"\.(\d+)", r"_\1", name).replace("dense_", "dense").replace(".", "/"),
  tensorflow=True,
)


def _openai_place(plan, module):
  side, level, what, i = _place(module)
  if side == "mid":
    return f"middle_block.{1 if what == 'attn' else 2 * i}"
  per_level = plan.blocks + 1  # entries of input_blocks (after the first) and of output_blocks
  if side == "down":
    entry = 1 + level * per_level + (plan.blocks if what == "downsample" else i)
    return f"input_blocks.{entry}.{int(what == 'attn')}"
  entry = (plan.levels - 1 - level) * per_level
  if what == "upsample":
    return f"output_blocks.{entry + plan.blocks}.{1 + (level in plan.attending)}"
  return f"output_blocks.{entry + i}.{int(what == 'attn')}"


def _openai_around(plan):
  first = int(plan.complex_head)  # of the norm in `out2`, after the residual block
  return {
    "time_embed/dense_0": Layer("time_embed.0"),
    "time_embed/dense_1": Layer("time_embed.2"),
    "label_embed": Layer("label_emb"),
    "conv_in": Layer("input_blocks.0.0"),
    "out/norm": Layer("out.0"),
    "out/conv": Layer("out.2"),
    "head/block": Layer("out2.0"),
    "head/norm": Layer(f"out2.{first}"),
    "head/conv": Layer(f"out2.{first + 2}"),
    "pool_attention/norm": Layer("out.0"),
    "pool_attention": Layer("out.2"),
    "pool_attention/qkv": Layer("out.2.qkv_proj", rank=3),
    "pool_attention/out": Layer("out.2.c_proj", rank=3),
    "pool_adaptive/norm": Layer("out.0"),
    "pool_adaptive/out": Layer("out.3", rank=4),
    "pool_spatial/hidden": Layer("out.0"),
    "pool_spatial/out": Layer("out.2"),
    "pool_spatial_v2/hidden": Layer("out.0"),
    "pool_spatial_v2/norm": Layer("out.1"),
    "pool_spatial_v2/out": Layer("out.3"),
  }


_OPENAI = Dialect(
  around=_openai_around,
  layers={
    "norm1": Layer("in_layers.0"),
    "conv1": Layer("in_layers.2"),
    "emb": Layer("emb_layers.1"),
    "norm2": Layer("out_layers.0"),
    "conv2": Layer("out_layers.3"),
    "shortcut": Layer("skip_connection", rank=4),
    "norm": Layer("norm"),
    "qkv": Layer("qkv", rank=3),
    "out": Layer("proj_out", rank=3),
    "downsample/conv": Layer("op"),
    "conv": Layer("conv"),
  },
  place=_openai_place,
)


def _ncsnpp_around(plan):
  last = 3 + len(plan.order)
  return {
    "time_embed/dense_0": Layer("all_modules.0"),
    "time_embed/dense_1": Layer("all_modules.1"),
    "conv_in": Layer("all_modules.2"),
    "out/norm": Layer(f"all_modules.{last}"),
    "out/conv": Layer(f"all_modules.{last + 1}"),
    "head/norm": Layer("gn_out2"),
    "head/conv": Layer("conv_out2"),
  }


_NCSNPP = Dialect(
  around=_ncsnpp_around,
  layers={
    "norm1": Layer("GroupNorm_0"),
    "conv1": Layer("Conv_0"),
    "emb": Layer("Dense_0"),
    "norm2": Layer("GroupNorm_1"),
    "conv2": Layer("Conv_1"),
    "shortcut": Layer("Conv_2", rank=4),
    "norm": Layer("GroupNorm_0"),
    "qkv": Layer("NIN_0", "NIN_1", "NIN_2", rank=0),
    "out": Layer("NIN_3", rank=0),
  },
  place=lambda plan, module: f"all_modules.{3 + plan.order[module]}",
)


def _diffusers_place(plan, module):
  side, level, what, i = _place(module)
  kind = {"block": "resnets", "attn": "attentions", "downsample": "downsamplers", "upsample": "upsamplers"}[what]
  if side == "mid":
    return f"mid_block.{kind}.{i}"
  return f"{side}_blocks.{level if side == 'down' else plan.levels - 1 - level}.{kind}.{i}"


_DIFFUSERS = Dialect(
  around=lambda plan: {
    "time_embed/dense_0": Layer("time_embedding.linear_1"),
    "time_embed/dense_1": Layer("time_embedding.linear_2"),
    "label_embed": Layer("class_embedding"),
    "conv_in": Layer("conv_in"),
    "out/norm": Layer("conv_norm_out"),
    "out/conv": Layer("conv_out"),
  },
  layers={
    "norm1": Layer("norm1"),
    "conv1": Layer("conv1"),
    "emb": Layer("time_emb_proj"),
    "norm2": Layer("norm2"),
    "conv2": Layer("conv2"),
    "shortcut": Layer("conv_shortcut", rank=4),
    "norm": Layer("group_norm"),
    "qkv": Layer("to_q", "to_k", "to_v"),
    "out": Layer("to_out.0"),
    "conv": Layer("conv"),
  },
  place=_diffusers_place,
)

DIALECTS: dict[str, Dialect] = {
  "pesser": _PESSER,
  "ho_tf": _HO_TF,
  "openai": _OPENAI,
  "ncsnpp": _NCSNPP,
  "diffusers": _DIFFUSERS,
}

# ---------------------------------------------------------------- tensors


def _entry(path, shape, dialect, plan, heads):
  """`heads` is given when the columns of a qkv tensor come head by head."""
  layer = dialect.find(plan, path)
  param = path.split("/")[-1]
  suffix = _suffix(param, layer, dialect, is_norm="norm" in path.split("/")[-2])
  parts = len(layer.names)
  part_shape = (*shape[:-1], shape[-1] // parts)

  if len(shape) == 4 and not dialect.tensorflow:
    there, back = (lambda a: a.transpose(3, 2, 0, 1)), (lambda a: a.transpose(2, 3, 1, 0))
  elif len(shape) == 2 and param != "embedding" and layer.rank and not dialect.tensorflow:
    rank = layer.rank if param == "kernel" else 2
    there, back = (lambda a: a.T.reshape(a.shape[::-1] + (1,) * (rank - 2))), (lambda a: a.reshape(a.shape[:2]).T)
  else:
    there = back = lambda a: a

  if heads and path.split("/")[-2] == "qkv" and not path.startswith("pool"):
    count = heads(shape[-1] // 3, _split(path)[0].startswith("up"))
    ours, theirs = _columns(shape[-1], count)
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
  if param == "positional_embedding":
    return ".positional_embedding"
  kernel = param != "bias"
  if dialect.tensorflow:
    return "/" + (("gamma" if kernel else "beta") if is_norm else ("W" if kernel else "b"))
  if layer.rank == 0:
    return ".W" if kernel else ".b"
  return ".weight" if kernel else ".bias"


def _columns(width, heads):
  """Where our column [q | k | v] x head x channel is among head x [q | k | v] x channel, and the inverse."""
  legacy = np.arange(width).reshape(heads, 3, -1)
  ours = legacy.transpose(1, 0, 2).reshape(-1)
  return ours, np.argsort(ours)


def _some(names, most=8):
  shown = ", ".join(names[:most])
  return shown if len(names) <= most else f"{shown}, and {len(names) - most} more"
