"""EDM's networks and consistency models: what their tensors tell, and the process that goes with each preconditioning."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.errors import UserError

Tensors = Mapping[str, np.ndarray]

# EDM's classes and what they are here, as prediction.mean.
CLASSES = {"EDMPrecond": "edm", "VEPrecond": "ve", "VPPrecond": "vp", "iDDPMPrecond": "eps"}


def is_adm(tensors: Tensors) -> bool:
  """Whether these are the tensors of EDM's `DhariwalUNet`, as opposed to its `SongUNet`."""
  return "out_norm.weight" in tensors


def infer(tensors: Tensors) -> dict[str, Any]:
  """The fields of an Architecture (architecture.py).

  Raises:
    KeyError: for a tensor that is missing.
    UserError: for an option of the network that is not supported here.
  """
  for option in ("aux_skip", "aux_down", "aux_up"):
    if any(f"_{option}." in key for key in tensors):
      raise UserError(f"This network of EDM has {option} layers (encoder or decoder of type skip), which are not supported.")
  sizes = sorted({int(found[1]) for key in tensors if (found := re.match(r"enc\.(\d+)x\d+_block", key))}, reverse=True)
  if not sizes:
    raise KeyError("enc.<size>x<size>_block0")
  adm = is_adm(tensors)
  name = lambda level, layer: f"enc.{sizes[level]}x{sizes[level]}_{layer}"
  stem = tensors[name(0, "conv.weight")].shape
  embedded = tensors["map_layer0.weight"].shape[1]
  channels = embedded if adm else stem[0]
  widths = [tensors[name(level, "block0.conv0.weight")].shape[0] for level in range(len(sizes))]
  out = "out_conv.weight" if adm else f"dec.{sizes[0]}x{sizes[0]}_aux_conv.weight"
  network: dict[str, Any] = {
    "name": "unet_edm" if adm else "song_unet",
    "channels": channels,
    "channel_mult": tuple(int(w / channels) if w % channels == 0 else w / channels for w in widths),
    "num_res_blocks": sum(key.startswith(name(0, "block")) and key.endswith(".conv0.weight") for key in tensors),
    "out_channels": tensors[out].shape[0],
    "augment_dim": tensors["map_augment.weight"].shape[1] if "map_augment.weight" in tensors else None,
  }
  smooth = _smooth(tensors)
  if not adm:
    network |= {
      "fourier": "map_noise.freqs" in tensors,
      "residual": any("_aux_residual." in key for key in tensors),
      "smooth": smooth,
      "noise_mult": embedded // channels,
    }
  elif smooth:
    raise UserError("This DhariwalUNet resamples with the filter [1, 3, 3, 1]; only [1, 1] is supported.")
  return dict(
    network=network,
    attending=tuple(level for level in range(len(sizes)) if name(level, "block0.qkv.weight") in tensors),
    image_channels=stem[1],
    num_classes=tensors["map_label.weight"].shape[1] if "map_label.weight" in tensors else None,
    image_size=sizes[0],
    unknown=("prediction.mean",),
  )


def _smooth(tensors: Tensors) -> bool:
  """Whether images are resampled with the filter [1, 3, 3, 1] instead of [1, 1]."""
  filters = {tuple(np.float32(t).ravel() * 64) for key, t in tensors.items() if key.endswith(".resample_filter")}
  known = {tuple(np.outer(taps, taps).ravel() * scale): taps for taps, scale in (((1, 1), 16), ((1, 3, 3, 1), 1))}
  if not filters <= known.keys() or len(filters) > 1:
    raise UserError("This network of EDM resamples with other filters than [1, 1] and [1, 3, 3, 1], which is not supported.")
  return bool(filters) and len(known[filters.pop()]) == 4


def buffers(keys: list[str], smooth: bool) -> dict[str, np.ndarray]:
  """The filters that EDM stores beside the convolutions `keys` that resample."""
  taps = np.array([1, 3, 3, 1] if smooth else [1, 1], np.float32)
  kernel = (np.outer(taps, taps) / taps.sum() ** 2)[None, None]
  found = {}
  for key in keys:
    block = re.match(r"((?:enc|dec)\.\d+x\d+_(?:down|up))\.", key)
    image = re.match(r"(enc\.\d+x\d+_aux_residual)\.", key)
    for name in ([f"{block[1]}.conv0", f"{block[1]}.skip"] if block else []) + ([image[1]] if image else []):
      found[f"{name}.resample_filter"] = kernel
  return found


def set_process(config: ConfigDict, consistency: bool) -> None:
  """The schedule and the sampler that the authors use with config.prediction.mean, where the user states none.

  Args:
    consistency: whether the network comes from consistency_models, which clips x_0 and takes 40 levels.

  Raises:
    UserError: for a prediction that such networks do not make.
  """
  mean = config.prediction.mean
  levels = {"edm": (0.002, 80.0), "consistency": (0.002, 80.0), "vp": (0.002, 80.0), "ve": (0.02, 80.0)}
  if mean == "eps":  # EDM's iDDPMPrecond
    config.schedule = dict(name="cosine", T=1000)
    config.sampling.grid = "edm"
  elif mean in levels:
    config.schedule = dict(name="karras", T=40 if consistency else 18, sigma_min=levels[mean][0], sigma_max=levels[mean][1])
  else:
    raise UserError(f"prediction.mean={mean!r} is not what such a network predicts: use {', '.join(levels)} or eps.")
  if mean == "edm" and consistency:
    config.prediction.time_scale = 1000.0
  config.sampling.update(solver="heun", clip="x0" if consistency else "none")
  if mean == "consistency":
    config.sampling.update(solver="consistency", grid="trailing")
  if mean in ("consistency", "eps"):
    with config.ignore_type():
      config.sampling.steps = 1 if mean == "consistency" else 18
