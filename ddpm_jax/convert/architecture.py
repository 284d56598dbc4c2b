"""Recognizes the network that a set of tensors belongs to, by their names and shapes.

Names determine the walk (levels, blocks, attention), shapes the widths. The caller must supply the rest, which
`Architecture.unknown` lists: the size of the images, the number of heads, the diffusion process.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ddpm_jax.convert import edm, lucidrains
from ddpm_jax.convert.dialect import Dialect, Layer
from ddpm_jax.convert.dialects import DIALECTS
from ddpm_jax.convert.signatures import SIGNATURES
from ddpm_jax.convert.walk import Plan
from ddpm_jax.errors import UserError
from ddpm_jax.sizes import ImageSize, pair

Tensors = Mapping[str, np.ndarray]

_NETWORKS = {"pesser": "unet_ddpm", "ho_tf": "unet_ddpm", "ncsnpp": "ncsnpp", "diffusers": "unet_ddpm"}
_NETWORKS |= dict.fromkeys(("openai", "consistency"), "unet_adm")


@dataclasses.dataclass(frozen=True)
class Architecture:
  """What is known of a network from its tensors.

  Attributes:
    dialect: a dialect of `ddpm_jax.convert.names`.
    network: fields for `models.make`, without those in `unknown`; attention is in `attending`.
    attending: levels with attention, where 0 is the full resolution; None for a network without this choice.
    image_channels: channels of the images.
    num_classes: number of classes, or None for an unconditional network.
    image_size: None unless shapes depend on it, as those of an attention pool do.
    unknown: fields of a config that tensors do not determine.
  """

  dialect: str
  network: Mapping[str, Any]
  attending: tuple[int, ...] | None
  image_channels: int
  num_classes: int | None
  image_size: int | None
  unknown: tuple[str, ...]

  def at(self, image_size: ImageSize) -> dict[str, Any]:
    """`network` for images of this size, with the resolutions (heights) that attend."""
    height, _ = pair(image_size)
    fields = dict(self.network)
    if self.attending is None:
      return fields
    inner = dict(fields["backbone"]) if "backbone" in fields else fields
    inner["attention_resolutions"] = tuple(height >> level for level in self.attending)
    return dict(fields, backbone=inner) if "backbone" in fields else inner


def dialect_of(tensors: Tensors) -> str:
  """The codebase that wrote these tensors. Raises UserError if it is unknown."""
  for dialect, signature in SIGNATURES.items():
    if signature in tensors:
      return _VARIANTS[dialect](tensors) if dialect in _VARIANTS else dialect
  known = ", ".join(SIGNATURES.values())
  some = ", ".join(list(tensors)[:4])
  raise UserError(f"These tensors are not from a known codebase: they begin with {some}, and none of {known} is there.")


def _of_openai(tensors: Tensors) -> str:
  """Tells consistency_models, with 2D convolutions in attention, from guided-diffusion, with 1D ones."""
  qkv = next((tensor for key, tensor in tensors.items() if key.endswith(".qkv.weight")), None)
  return "consistency" if qkv is not None and qkv.ndim == 4 else "openai"


_VARIANTS: dict[str, Callable[[Tensors], str]] = {
  "openai": _of_openai,
  "edm": lambda tensors: "edm_adm" if edm.is_adm(tensors) else "edm_song",
}


def infer(tensors: Tensors, num_res_blocks: int | None = None, levels: int | None = None) -> Architecture:
  """The network of these tensors.

  Args:
    num_res_blocks, levels: given by the user, for names from which the ends of levels cannot be seen.

  Raises:
    UserError: if the codebase is unknown, too many tensors are missing, or something is ambiguous and not given.
  """
  dialect = dialect_of(tensors)
  try:
    if dialect in _OWN_NAMES:
      return Architecture(dialect, **_OWN_NAMES[dialect](tensors))
    return _infer(tensors, dialect, _Stated(num_res_blocks, levels))
  except KeyError as error:
    raise UserError(f"The {dialect} tensors are incomplete: there is no {error.args[0]}.") from None


_OWN_NAMES = {"lucidrains": lucidrains.infer, "edm_adm": edm.infer, "edm_song": edm.infer}


@dataclasses.dataclass(frozen=True)
class _Stated:
  """What a user or a config says about a network."""

  blocks: int | None
  levels: int | None


def _infer(tensors, dialect, stated):
  walk = _WALKS.get(dialect, _named_levels)(tensors, DIALECTS[dialect], stated)
  look = _Look(tensors, DIALECTS[dialect], walk.plan())
  channels = look.shape("time_embed/dense_0")[0]
  widths = [look.shape(f"down_{level}_block_0/conv1")[1] for level in range(walk.levels)]
  stem = look.shape("conv_in")[0]
  low_res = dialect == "openai" and stem % 2 == 0  # images have 1 or 3 channels, twice as many with a small image
  image_channels = stem // 2 if low_res else stem
  classifier = dialect == "openai" and not any(key.startswith("output_blocks.") for key in tensors)
  num_classes = look.shape("label_embed")[0] if look.has("label_embed") else None

  fields: dict[str, Any] = {
    "name": "classifier" if classifier else _NETWORKS[dialect],
    "channels": channels,
    "channel_mult": tuple(_ratio(width, channels) for width in widths),
    "num_res_blocks": walk.blocks,
  }
  if dialect in ("openai", "consistency"):
    fields["scale_shift"] = look.shape("down_0_block_0/emb")[1] == 2 * widths[0]
    if dialect == "openai":
      fields["low_res"] = low_res
    if walk.levels > 1:
      fields["resblock_updown"] = look.has("down_0_downsample/conv1")
      fields["conv_resample"] = fields["resblock_updown"] or look.has("down_0_downsample/conv")
  elif dialect in ("pesser", "ho_tf") and walk.levels > 1:
    fields["resample_with_conv"] = look.has("down_0_downsample/conv")
  image_size = None
  unknown = ["network.num_heads"] if dialect in ("openai", "consistency") else []
  if classifier:
    fields["pool"] = _pool(tensors)
    fields["out_channels"] = look.shape(f"pool_{fields['pool']}/out")[1]
    if fields["pool"] == "attention":  # of all positions and their mean
      image_size = math.isqrt(tensors["out.2.positional_embedding"].shape[1] - 1) << (walk.levels - 1)
    unknown += [] if image_size else ["data.image_size"]
    return Architecture(dialect, fields, walk.attending, image_channels, None, image_size, tuple(unknown))

  out_channels = look.shape("out/conv")[1]
  fields["out_channels"] = out_channels
  unknown += ["data.image_size", "prediction.mean" if dialect == "consistency" else "schedule"]
  unknown += ["network.name"] if dialect == "diffusers" else []
  if look.has("head/conv"):
    complex = look.has("head/block/conv1")
    fields = {"name": "two_headed", "backbone": fields, "complex": complex}
    unknown = [field.replace("network.", "network.backbone.") for field in unknown] + ["prediction.second"]
  return Architecture(dialect, fields, walk.attending, image_channels, num_classes, image_size, tuple(unknown))


def _pool(tensors):
  if "out.2.positional_embedding" in tensors:
    return "attention"
  if tensors["out.0.weight"].ndim == 1:
    return "adaptive"
  return "spatial_v2" if "out.3.weight" in tensors else "spatial"


def _ratio(width, channels):
  ratio = width / channels
  return int(ratio) if ratio == int(ratio) else ratio


class _Look:
  """Tensors by our names."""

  def __init__(self, tensors: Tensors, dialect: Dialect, plan: Plan):
    self.tensors = tensors
    self.dialect = dialect
    self.plan = plan

  def key(self, layer: str) -> str:
    found: Layer = self.dialect.find(self.plan, f"{layer}/kernel")
    suffixes = ("/W",) if self.dialect.tensorflow else (".weight", ".W")
    return next((found.names[0] + s for s in suffixes if found.names[0] + s in self.tensors), found.names[0] + suffixes[0])

  def has(self, layer: str) -> bool:
    try:
      return self.key(layer) in self.tensors
    except UserError:  # the codebase has no such layer
      return False

  def shape(self, layer: str) -> tuple[int, int]:
    """(inputs, outputs) of a layer; (rows, columns) of an embedding."""
    shape = self.tensors[self.key(layer)].shape
    return shape[-2:] if self.dialect.tensorflow else shape[:2] if layer == "label_embed" else (shape[1], shape[0])


# ---------------------------------------------------------------- the walk, from names


@dataclasses.dataclass(frozen=True)
class _Walk:
  levels: int
  blocks: int
  attending: tuple[int, ...]
  attends_once: bool = False  # per level on the way up, after its last block (NCSN++)
  complex_head: bool = False

  def plan(self) -> Plan:
    """As if from the names of our parameters."""
    modules = ["mid_block_0", "mid_attn_0", "mid_block_1"]
    for level in range(self.levels):
      down = range(self.blocks)
      up = range(self.blocks + 1)
      modules += [f"down_{level}_block_{i}" for i in down] + [f"up_{level}_block_{i}" for i in up]
      modules += [f"down_{level}_downsample"] if level < self.levels - 1 else []
      modules += [f"up_{level}_upsample"] if level else []
      if level in self.attending:
        modules += [f"down_{level}_attn_{i}" for i in down]
        modules += [f"up_{level}_attn_{i}" for i in (up[-1:] if self.attends_once else up)]
    modules += ["head/block"] if self.complex_head else []
    return Plan.of(f"{module}/layer/kernel" for module in modules)


def _named_levels(tensors, dialect, stated):
  """Dialects whose names count levels and blocks."""
  look = _Look(tensors, dialect, _Walk(1, 1, ()).plan())
  levels = _count(lambda level: look.has(f"down_{level}_block_0/conv1"))
  blocks = _count(lambda i: look.has(f"down_0_block_{i}/conv1"))
  if not levels:
    raise KeyError("first residual block")
  attending = tuple(level for level in range(levels) if look.has(f"down_{level}_attn_0/qkv"))
  return _Walk(levels, blocks, attending, complex_head=look.has("head/block/conv1"))


def _count(present: Callable[[int], bool]) -> int:
  n = 0
  while present(n):
    n += 1
  return n


def _openai_walk(tensors, dialect, stated):
  """`input_blocks` numbers blocks and downsamplers in one sequence, so the ends of levels must be inferred.

  A downsampler is a convolution `op`, nothing (pooling), or, with resblock_updown, a residual block like any other. Such a
  block does not change the width and has no attention.
  """
  entries = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("input_blocks."))
  steps = []  # (may be a block, may be a downsampler, width changes, attends) of every entry after the stem
  for k in range(1, entries):
    conv = tensors.get(f"input_blocks.{k}.0.in_layers.2.weight")
    changes = conv is not None and conv.shape[0] != conv.shape[1]
    attends = f"input_blocks.{k}.1.qkv.weight" in tensors
    steps.append((conv is not None, not changes and not attends, changes, attends))
  if any(not block for block, *_ in steps):  # some are not residual blocks, so these are the downsamplers
    steps = [(block, not block, changes, attends) for block, _, changes, attends in steps]

  def fits(per_level):
    if entries % per_level:
      return False
    for start in range(0, entries, per_level):
      *blocks, down = steps[start : start + per_level] + ([None] if start + per_level == entries else [])
      if not all(block for block, *_ in blocks) or any(changes for _, _, changes, _ in blocks[1:]):
        return False
      if len({attends for *_, attends in blocks}) != 1 or (down is not None and not down[1]):
        return False
    return True

  found = [per_level for per_level in range(2, entries + 1) if fits(per_level)]
  # on the way up, resampling blocks are seen: the first one closes the last level
  ups = [re.match(r"output_blocks\.(\d+)\.[12]\.(conv|in_layers\.0)\.weight", key) for key in tensors]
  first = min((int(up[1]) for up in ups if up), default=None)
  if first is not None:
    found = [per_level for per_level in found if per_level == first + 1]
  if len(found) > 1:
    found = [per_level for per_level in found if stated.blocks in (None, per_level - 1)]
    found = [per_level for per_level in found if stated.levels in (None, entries // per_level)]
  if len(found) != 1:
    if not found:
      raise UserError(f"The {entries} input_blocks do not divide into levels of equally many residual blocks.")
    ways = " or ".join(str(per_level - 1) for per_level in found)
    raise UserError(
      f"The {entries} input_blocks divide into levels in {len(found)} ways, with {ways} residual blocks each: set "
      "--config.network.num_res_blocks, or name a similar model with --like."
    )
  (per_level,) = found
  attending = tuple(start // per_level for start in range(0, entries, per_level) if steps[start][3])
  return _Walk(entries // per_level, per_level - 1, attending, complex_head="out2.0.in_layers.2.weight" in tensors)


def _ncsnpp_walk(tensors, dialect, stated):
  """`all_modules` is one sequence: down, (block, attention, block), up, which begins with a block that joins a skip."""
  kinds = []
  previous = None
  count = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("all_modules."))
  for k in range(3, count):
    conv = tensors.get(f"all_modules.{k}.Conv_0.weight")
    if conv is None:
      kinds.append("attn")
      continue
    width = conv.shape[0]
    joined = conv.shape[1]
    if previous is not None and joined != previous:
      break
    resamples = width == joined and f"all_modules.{k}.Conv_2.weight" in tensors
    kinds.append("resample" if resamples else "block")
    previous = width
  down = kinds[:-3]  # without the middle
  levels = 1 + down.count("resample")
  first = down.index("resample") if "resample" in down else len(down)
  blocks = down[:first].count("block")
  attending = set()
  level = 0
  for kind in down:
    level += kind == "resample"
    if kind == "attn":
      attending.add(level)
  return _Walk(levels, blocks, tuple(sorted(attending)), attends_once=True)


_WALKS = {"openai": _openai_walk, "consistency": _openai_walk, "ncsnpp": _ncsnpp_walk}
