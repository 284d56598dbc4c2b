"""Networks of the golden numbers: from the reference's constructor arguments and tensors to ours."""

import functools
import zlib

import jax
import numpy as np
from reference import nhwc

from ddpm_jax import models
from ddpm_jax.convert import names

_RENAMED = {
  "model_channels": "channels",
  "use_scale_shift_norm": "scale_shift",
  "num_head_channels": "head_channels",
  "ch": "channels",
  "ch_mult": "channel_mult",
  "out_ch": "out_channels",
  "attn_resolutions": "attention_resolutions",
  "resamp_with_conv": "resample_with_conv",
}
_KEPT = (
  "out_channels num_res_blocks dropout channel_mult num_classes num_heads num_heads_upsample resblock_updown "
  "conv_resample pool attention_resolutions"
).split()


def ours(args: dict, size: int):
  """(network, dialect, options of names.entries) for the arguments of a reference's constructor."""
  fields = {_RENAMED.get(key, key): value for key, value in args.items() if key in _RENAMED or key in _KEPT}
  openai = "model_channels" in args
  if openai:  # their attention_resolutions are factors of downsampling
    fields["attention_resolutions"] = [size // factor for factor in args["attention_resolutions"]]
  if args.get("cls") == "SuperResModel":
    fields["low_res"] = True
  name = ("classifier" if "pool" in args else "unet_adm") if openai else "unet_ddpm"
  network = {"name": name, **fields}
  if "mode" in args:
    network = {"name": "two_headed", "backbone": network, "complex": args["mode"] == "complex"}
  order = "new" if args.get("use_new_attention_order") else "legacy"
  return models.make(**network), "openai" if openai else "pesser", {"attention_order": order}


def shapes(network, x, time, cond=None):
  """The parameters of `network` without their values."""
  return jax.eval_shape(network.init, jax.random.key(0), x, time, cond)["params"]


def inputs(golden, group: str):
  """(x NHWC, time, cond) of a stored forward pass."""
  keys = golden.arrays.files
  x = nhwc(golden[f"{group}/x"])
  time = np.broadcast_to(golden[f"{group}/t"].astype(np.float32), len(x))
  cond = {}
  if f"{group}/y" in keys:
    cond["label"] = golden[f"{group}/y"].astype(np.int32)
  if f"{group}/low_res" in keys:
    cond["low_res"] = nhwc(golden[f"{group}/low_res"])
  return x, time, cond


@functools.partial(jax.jit, static_argnums=0)
def forward(network, params, x, time, cond=None):
  return network.apply({"params": params}, x, time, cond)


def filler(name: str, size: int) -> np.ndarray:
  """The deterministic numbers in (-1, 1) of which REFERENCE's appendix A.7 made weights and inputs, float64."""
  x = np.uint64(zlib.crc32(name.encode())) + np.uint64(0x9E3779B9) * np.arange(1, size + 1, dtype=np.uint64)
  x = x.astype(np.uint32)
  x ^= x >> np.uint32(16)
  x *= np.uint32(0x7FEB352D)
  x ^= x >> np.uint32(15)
  x *= np.uint32(0x846CA68B)
  x ^= x >> np.uint32(16)
  return x / 2.0**32 * 2 - 1


def filled(table: list[names.Entry]) -> dict[str, np.ndarray]:
  """A state dict of filler in the shapes that a table of names asks for."""

  def tensor(key, shape):
    u = filler(key, int(np.prod(shape))).reshape(shape)
    if len(shape) >= 2:
      u = u * np.sqrt(3 / (u.size / shape[0]))
    else:
      u = 0.2 * u + key.endswith("weight")
    return u.astype(np.float32)

  return {key: tensor(key, entry.their_shape) for entry in table for key in entry.theirs}
