"""Networks: flax modules `network(x [B, H, W, C], time [B], cond=None, *, train=False)`, made by name.

network = models.make("unet_ddpm", channels=128, channel_mult=(1, 2, 2, 2), dropout=0.1, dtype="bfloat16")
"""

import flax.linen as nn
import jax.numpy as jnp

from ddpm_jax import named
from ddpm_jax.errors import UserError
from ddpm_jax.models.classifier import EncoderUNet
from ddpm_jax.models.heads import TwoHeaded
from ddpm_jax.models.ncsnpp import NCSNpp
from ddpm_jax.models.unet_2d import UNet2D
from ddpm_jax.models.unet_adm import UNetADM
from ddpm_jax.models.unet_ddpm import UNetDDPM
from ddpm_jax.models.unet_edm import SongUNet, UNetEDM
from ddpm_jax.models.unet_lucidrains import UNetLucidrains

NETWORKS: dict[str, type[nn.Module]] = {
  "unet_ddpm": UNetDDPM,
  "unet_adm": UNetADM,
  "unet_2d": UNet2D,
  "ncsnpp": NCSNpp,
  "unet_edm": UNetEDM,
  "song_unet": SongUNet,
  "unet_lucidrains": UNetLucidrains,
  "two_headed": TwoHeaded,
  "classifier": EncoderUNet,
}


def make(name: str, **fields) -> nn.Module:
  """The network `name` with these fields, as a config can say them.

  Lists become tuples, "bfloat16" becomes a dtype, and a mapping (the backbone of "two_headed") becomes a network.

  Raises:
    UserError: for an unknown name or field, with the nearest known one, or a value of another type than the field has.
  """
  return named.make(NETWORKS, {"name": name} | {field: _parse(field, value) for field, value in fields.items()}, "network")


def _parse(field, value):
  if hasattr(value, "keys"):
    return make(**value)
  if field == "dtype":
    return _dtype(value)
  value = tuple(value) if isinstance(value, list) else value
  return _REMAT.get(value, value) if field == "remat" else value


# Old configs have a bool. jobs/train.py replaces "auto" when a run begins; elsewhere there is no gradient.
_REMAT = {True: "blocks", False: "none", "auto": "none"}


def _dtype(value):
  try:
    return jnp.dtype(value).type
  except TypeError:
    raise UserError(f'dtype {value!r} is unknown; use "float32" or "bfloat16"') from None
