"""Networks: flax modules `network(x [B, H, W, C], time [B], cond=None, *, train=False)`, made by name.

    network = models.make("unet_ddpm", channels=128, channel_mult=(1, 2, 2, 2), dropout=0.1, dtype="bfloat16")
"""

import dataclasses
import difflib

import flax.linen as nn
import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.models.unet_ddpm import UNetDDPM

NETWORKS: dict[str, type[nn.Module]] = {
  "unet_ddpm": UNetDDPM,
}


def make(name: str, **fields) -> nn.Module:
  """The network `name` with these fields; lists become tuples and "bfloat16" a dtype, so that a config can say them.

  Raises:
    UserError: for an unknown name or field; the message has the nearest known one.
  """
  if name not in NETWORKS:
    raise UserError(f"network {name!r} is unknown; {_suggest(name, NETWORKS)}")
  kind = NETWORKS[name]
  known = [field.name for field in dataclasses.fields(kind) if field.name not in ("parent", "name")]
  for field in fields:
    if field not in known:
      raise UserError(f"{name} has no field {field!r}; {_suggest(field, known)}")
  fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
  if isinstance(fields.get("dtype"), str):
    fields["dtype"] = jnp.dtype(fields["dtype"]).type
  return kind(**fields)


def _suggest(name, known):
  near = difflib.get_close_matches(name, known, n=1)
  return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
