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


# LLVM's optimization is half of the time that these tests take, and changes nothing that they check
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(jit, static_argnums=0)
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


# ---------------------------------------------------------------- the published networks

HO = dict(name="unet_ddpm")
HO_256 = dict(HO, channel_mult=(1, 1, 2, 2, 4, 4))
IDDPM = dict(name="unet_adm", num_res_blocks=3, out_channels=6, attention_resolutions=(16, 8))
ADM = dict(
  name="unet_adm",
  channels=256,
  num_res_blocks=2,
  out_channels=6,
  attention_resolutions=(32, 16, 8),
  head_channels=64,
  resblock_updown=True,
  num_classes=1000,
)
ADM_256 = dict(ADM, channel_mult=(1, 1, 2, 2, 4, 4))
ADM_4_HEADS = dict(ADM, head_channels=None, num_heads=4)
CLASSIFIER = dict(
  name="classifier", attention_resolutions=(32, 16, 8), num_res_blocks=2, head_channels=64, resblock_updown=True
)
BY_SIZE = {64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4), 512: (0.5, 1, 1, 2, 2, 4, 4)}
NCSNPP = dict(name="ncsnpp")

# name: (fields, image size, parameters, tensors there), counted by the authors' own code
PUBLISHED = {
  "DDPM CIFAR-10": (HO, 32, 35_746_307, 328),
  "DDIM CelebA": (dict(HO, channel_mult=(1, 2, 2, 2, 4)), 64, 78_700_803, None),
  "DDPM LSUN and CelebA-HQ": (HO_256, 256, 113_673_219, None),
  "IDDPM CIFAR-10": (IDDPM, 32, 52_546_438, 446),
  "IDDPM ImageNet-64": (dict(IDDPM, channel_mult=BY_SIZE[64]), 64, 121_063_942, 450),
  "IDDPM ImageNet-64 cond": (
    dict(IDDPM, channel_mult=BY_SIZE[64], channels=192, num_classes=1000),
    64,
    273_049_350,
    451,
  ),
  "IDDPM LSUN": (
    dict(IDDPM, channel_mult=BY_SIZE[256], num_res_blocks=2, num_heads=1, scale_shift=False, attention_resolutions=(16,)),
    256,
    113_676_678,
    426,
  ),
  "IDDPM 64 to 256": (
    dict(IDDPM, channel_mult=BY_SIZE[256], num_res_blocks=2, channels=192, num_classes=1000, low_res=True),
    256,
    279_792_390,
    457,
  ),
  "ADM 64": (dict(ADM, channel_mult=BY_SIZE[64], channels=192, num_res_blocks=3), 64, 295_904_454, 541),
  "ADM 128": (dict(ADM_4_HEADS, channel_mult=BY_SIZE[128]), 128, 421_529_606, 493),
  "ADM 256": (ADM_256, 256, 553_838_086, 567),
  "ADM 256 uncond and LSUN": (dict(ADM_256, num_classes=None), 256, 552_814_086, 566),
  "ADM 512": (dict(ADM, channel_mult=BY_SIZE[512]), 512, 558_997_638, 645),
  "ADM 64 to 256": (
    dict(ADM_4_HEADS, channel_mult=BY_SIZE[256], channels=192, low_res=True),
    256,
    311_795_910,
    567,
  ),
  "ADM 128 to 512": (
    dict(ADM, channel_mult=(1, 1, 2, 2, 4, 4), channels=192, low_res=True, attention_resolutions=(32, 16)),
    512,
    308_835_270,
    537,
  ),
  "classifier 64": (dict(CLASSIFIER, channel_mult=BY_SIZE[64], num_res_blocks=4), 64, 65_438_568, 307),
  "classifier 128": (dict(CLASSIFIER, channel_mult=BY_SIZE[128]), 128, 42_568_040, 221),
  "classifier 256": (dict(CLASSIFIER, channel_mult=BY_SIZE[256]), 256, 54_096_360, 249),
  "classifier 512": (dict(CLASSIFIER, channel_mult=BY_SIZE[512]), 512, 54_448_360, 281),
  "DDPM++ CIFAR-10": (NCSNPP, 32, 61_804_419, 565 - 1),  # without the buffer `sigmas`
  "DDPM++ CIFAR-10 with head": (dict(name="two_headed", backbone=NCSNPP), 32, 61_808_134, 569 - 1),
}
