"""A network with identity attention in chosen layers: the weak network of perturbed-attention guidance (PAG).

Such a network keeps the appearance of an image and loses its structure (Ahn et al. 2024, arXiv 2403.17377).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from ddpm_jax.errors import UserError
from ddpm_jax.models.layers import Attention


@dataclasses.dataclass(frozen=True)
class IdentityAttention:
  """A network's `apply` with the identity as attention matrix in some layers. Equal fields compare equal.

  Attributes:
    apply: apply(params, x, time, cond) -> the output, running layers of models/layers.py.
    blocks: parts of layer names, such as ("mid",). An attention layer is changed if its path contains one of them.
  """

  apply: Callable
  blocks: tuple[str, ...]

  def __call__(self, params: Any, x: jax.Array, time: jax.Array, cond: Any = None) -> jax.Array:
    """The output of the changed network.

    Raises:
      UserError: if no layer has such a name.
    """
    changed = []
    seen = []

    def values(next_method, args, kwargs, context):
      if not (isinstance(context.module, Attention) and context.method_name == "mix"):
        return next_method(*args, **kwargs)
      path = "/".join(context.module.path)
      seen.append(path)
      if not any(block in path for block in self.blocks):
        return next_method(*args, **kwargs)
      changed.append(path)
      return args[2]

    with nn.intercept_methods(values):
      out = self.apply(params, x, time, cond)
    if not changed:
      raise UserError(
        f"sampling.guidance.blocks = {self.blocks} names no attention layer of this network, which has "
        f"{', '.join(seen) or 'none'}."
      )
    return out
