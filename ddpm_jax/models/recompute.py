"""Rematerialization: what the backward pass recomputes instead of keeping (network.remat)."""

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from ddpm_jax.errors import UserError

_COSTLY = "costly"
# `UNet.remat` -> what a layer keeps for its gradient besides its input; each keeps less than the one before
REMAT = {
  "none": jax.checkpoint_policies.everything_saveable,
  "norms": jax.checkpoint_policies.save_only_these_names(_COSTLY),
  "blocks": jax.checkpoint_policies.nothing_saveable,
}


def recomputing(layer: type[nn.Module], remat: str, **options) -> type[nn.Module]:
  """`layer` under a policy of REMAT; `options`: further arguments of nn.remat.

  Raises:
    UserError: for an unknown policy.
  """
  if remat not in REMAT:
    raise UserError(f'remat={remat!r} is unknown; use "auto", {", ".join(map(repr, REMAT))}')
  return layer if remat == "none" else nn.remat(layer, policy=REMAT[remat], **options)


def costly(x: jax.Array) -> jax.Array:
  """Marks x as more expensive to recompute than to keep; "norms" keeps it."""
  return checkpoint_name(x, _COSTLY)
