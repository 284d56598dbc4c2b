"""The walk over blocks that every UNet of the family is, read off the names of its parameters."""

import dataclasses
import re
from collections.abc import Iterable, Mapping

from ddpm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Plan:
  """What the names of parameters say about a network.

  Attributes:
    levels: number of resolutions.
    blocks: residual blocks per level on the way down.
    attending: levels that attend on the way up.
    order: each module of the walk -> its place in the order of execution.
    complex_head: whether a second head has a residual block.
    image_size: of the images, for codebases whose names contain resolutions.
  """

  levels: int
  blocks: int
  attending: frozenset[int]
  order: Mapping[str, int]
  complex_head: bool
  image_size: int = 0

  @classmethod
  def of(cls, flat: Iterable[str], image_size: int = 0) -> "Plan":
    """The plan of parameters with these names, "down_0_block_0/conv1/kernel".

    Raises:
      UserError: if they are not those of a UNet.
    """
    modules = {module for module, _ in map(split, flat)}
    walk = sorted(filter(place_of, modules), key=_when)
    down = [place for module in walk if module.startswith("down") and (place := place_of(module))]
    if not down:
      raise UserError("these parameters are not those of a UNet: none is called down_<level>_block_<i>")
    return cls(
      levels=1 + max(level for _, level, _, _ in down),
      blocks=1 + max(i for _, _, what, i in down if what == "block"),
      attending=frozenset(place[1] for m in walk if m.startswith("up") and "attn" in m and (place := place_of(m))),
      order={module: i for i, module in enumerate(walk)},
      complex_head="head/block" in modules,
      image_size=image_size,
    )


def split(path: str) -> tuple[str, str]:
  """A parameter's module in the walk and its layer: "backbone/mid_attn_0/qkv/bias" -> ("mid_attn_0", "qkv")."""
  *module, layer = path.removeprefix("backbone/").split("/")[:-1]
  return ("/".join(module), layer) if module else (layer, "")


def place_of(module: str) -> tuple[str, int, str, int] | None:
  """ "up_2_attn_1" -> ("up", 2, "attn", 1), "mid_block_0" -> ("mid", 0, "block", 0); None outside the walk."""
  found = re.fullmatch(r"(down|mid|up)(?:_(\d+))?_(block|attn|downsample|upsample)(?:_(\d+))?", module)
  return found and (found[1], int(found[2] or 0), found[3], int(found[4] or 0))


def _when(module):
  side, level, what, i = place_of(module)
  resamples = what in ("downsample", "upsample")
  return ("down", "mid", "up").index(side), -level if side == "up" else level, resamples, i, what == "attn"
