"""A dialect: how one codebase names and stores the layers of a network."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ddpm_jax.convert.walk import Plan, place_of, split
from ddpm_jax.errors import UserError


class Layer:
  """The name of a layer in another codebase, or three names for split q, k, v, and how its matrix is stored.

  rank: of the tensor of a matrix: 2 for Linear, 3 for a 1x1 Conv1d, 4 for a 1x1 Conv2d, 0 for [in, out].
  """

  def __init__(self, *names: str, rank: int = 2):
    self.names = names
    self.rank = rank


@dataclasses.dataclass(frozen=True)
class Dialect:
  """How one codebase names and stores our layers.

  Attributes:
    around: plan -> the layers outside the walk, by our "module/layer".
    layers: the layers of residual blocks, attentions and resamplers, by our name.
    place: (plan, module) -> the name of a module of the walk.
    spell: turns the dotted name of a layer into the dialect's name.
    tensorflow: convolutions are HWIO, matrices [in, out], and norms have gamma and beta.
    qkv: the order of a joint tensor's columns: "q k v", with all heads of each one after the other as here; "legacy", q k v
      of head 0, q k v of head 1, …; or "channels", where the three of a channel stand side by side.
  """

  around: Callable[[Plan], Mapping[str, Layer]]
  layers: Mapping[str, Layer]
  place: Callable[[Plan, str], str]
  spell: Callable[[str], str] = lambda name: name
  tensorflow: bool = False
  qkv: str = "q k v"

  def plan(self, flat: Iterable[str], image_size: int) -> Any:
    """The plan of the network, from the names of our parameters."""
    return Plan.of(flat, image_size)

  def find(self, plan: Plan, path: str) -> Layer:
    module, layer = split(path)
    around = self.around(plan)
    key = f"{module}/{layer}" if layer else module
    if key in around:
      found = around[key]
      where = ""
    else:
      place = place_of(module)
      found = self.layers.get(f"{place[2]}/{layer}" if place else layer) or self.layers.get(layer)
      if found is None or not (place or module in around):
        raise UserError(f"this codebase has no name for the layer {key}")
      where = self.place(plan, module) if place else around[module].names[0]
    prefix = f"{where}." if where else ""
    return Layer(*(self.spell(prefix + name) for name in found.names), rank=found.rank)
