"""denoising-diffusion-pytorch: the names of its UNet's layers, what its tensors tell, and the schedule in its buffers."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ddpm_jax.convert.dialect import Dialect, Layer
from ddpm_jax.diffusion import schedule
from ddpm_jax.errors import UserError

Tensors = Mapping[str, np.ndarray]

_LAYERS = {
  "mlp": "mlp.1",
  "proj1": "block1.proj",
  "norm1": "block1.norm",
  "proj2": "block2.proj",
  "norm2": "block2.norm",
  "res_conv": "res_conv",
  "norm": "norm",
  "to_qkv": "to_qkv",
  "out_norm": "to_out.1",
}


class _Lucidrains(Dialect):
  """Names that follow the modules of models/unet_lucidrains.py, instead of the walk that other UNets share."""

  def plan(self, flat, image_size):
    """The names of our parameters."""
    return frozenset(flat)

  def find(self, plan, path):
    module, layer = path.split("/")[:-1] if path.count("/") == 2 else ("", path.split("/")[0])
    if not module:
      behind = ".1" if self._resamples(plan, layer) and not path.endswith("mem_kv") else ""
      return Layer(_dotted(layer) + behind, rank=2 if layer.startswith("time_mlp") else 4)
    if layer == "to_out":  # linear attention has a norm behind it
      return Layer(f"{_dotted(module)}.{'to_out.0' if f'{module}/out_norm/g' in plan else 'to_out'}", rank=4)
    return Layer(f"{_dotted(module)}.{self.layers[layer]}", rank=2 if layer == "mlp" else 4)

  @staticmethod
  def _resamples(plan, layer):
    """Whether this convolution comes behind a change of size, in one sequence with it; those of the last level do not."""
    found = re.fullmatch(r"(downs|ups)_(\d+)_3", layer)
    return bool(found) and f"{found[1]}_{int(found[2]) + 1}_3/bias" in plan


def _dotted(module: str) -> str:
  """ "downs_0_3" -> "downs.0.3", "time_mlp_1" -> "time_mlp.1", and "final_res_block" as it is."""
  return re.sub(r"_(?=\d)", ".", module)


LUCIDRAINS = _Lucidrains(around=lambda plan: {}, layers=_LAYERS, place=lambda plan, module: module)


# ---------------------------------------------------------------- the network, from its tensors


def infer(tensors: Tensors) -> dict[str, Any]:
  """The fields of an Architecture (architecture.py).

  Raises:
    KeyError: for a tensor that is missing.
    UserError: for an option of the UNet that the network here does not have.
  """
  for key, option in (
    ("time_mlp.0.weights", "learned or random sinusoids"),
    ("downs.0.2.fn.norm.g", "a version before 1.9"),
  ):
    if key in tensors:
      raise UserError(f"This denoising-diffusion-pytorch network has {option} ({key}), which is not supported.")
  channels = tensors["time_mlp.1.weight"].shape[1]
  levels = 1 + max(int(found[1]) for key in tensors if (found := re.match(r"downs\.(\d+)\.", key)))
  inputs = tensors["init_conv.weight"].shape[1]
  outputs = tensors["final_conv.weight"].shape[0]
  if inputs == 2 * outputs:
    raise UserError(f"This network takes {inputs} channels and gives {outputs}: self-conditioning is not supported.")
  halve = lambda level: f"downs.{level}.3.{'1.' if level < levels - 1 else ''}weight"
  widths = [tensors[halve(level)].shape[0] for level in range(levels)]
  if any(width % channels for width in widths):
    raise UserError(
      f"The widths {widths} of this network's levels are not multiples of the {channels} of its time embedding."
    )
  full = tuple(f"downs.{level}.2.to_out.weight" in tensors for level in range(levels))
  memory = tensors["mid_attn.mem_kv"].shape  # [2, heads, memory, channels per head] where attention is full
  network = {
    "name": "unet_lucidrains",
    "channels": channels,
    "channel_mult": tuple(width // channels for width in widths),
    "init_channels": tensors["init_conv.weight"].shape[0],
    "heads": memory[1],
    "head_channels": memory[3],
    "memory": memory[2],
    "full_attn": full,
    "out_channels": outputs,
  }
  return dict(
    network=network,
    attending=None,
    image_channels=inputs,
    num_classes=None,
    image_size=None,
    unknown=("data.image_size", "schedule"),
  )


# ---------------------------------------------------------------- the process, from the buffers of GaussianDiffusion

_SCHEDULES: dict[str, Callable[..., schedule.Schedule]] = {
  "linear": schedule.linear,
  "cosine": schedule.cosine,
  "logistic": schedule.logistic,
}


def process(buffers: Tensors) -> dict[str, dict[str, Any]] | None:
  """The schedule and prediction sections that `betas` and `loss_weight` of a checkpoint tell; None without these buffers.

  The loss weight is snr / snr for eps, snr for x0 and snr / (snr + 1) for v, with at most 5 in the place of its snr if the
  network was trained with min-SNR weights.

  Raises:
    UserError: if the buffers fit none of them.
  """
  found = {key.rpartition(".")[2]: np.asarray(tensor, np.float64) for key, tensor in buffers.items()}
  if "betas" not in found:
    return None
  betas = found["betas"]
  if betas.ndim != 1 or len(betas) < 2:
    raise UserError(f"The buffer betas has the shape {betas.shape}, not that of a schedule: set --config.schedule.name.")
  same = [name for name, make in _SCHEDULES.items() if _close(make(len(betas)).betas, betas)]
  fields = dict(name=same[0], T=len(betas)) if same else dict(name="from_betas", betas=tuple(map(float, betas)))
  sections = {"schedule": fields}
  if "loss_weight" in found:
    alpha_bar = np.cumprod(1 - betas)
    snr = alpha_bar / np.maximum(1 - alpha_bar, 1e-20)
    weights = {"eps": snr, "x0": np.ones_like(snr), "v": snr + 1}
    of = [
      mean
      for mean, by in weights.items()
      for most in (math.inf, 5.0)
      if _close(np.minimum(snr, most) / by, found["loss_weight"])
    ]
    if not of:
      raise UserError(
        "The buffer loss_weight is that of no objective (pred_noise, pred_x0, pred_v) with a min_snr_gamma of 5 or without: "
        "say what the network predicts with --config.prediction.mean=eps, x0 or v."
      )
    sections["prediction"] = {"mean": of[0]}
  return sections


def _close(mine: np.ndarray, theirs: np.ndarray) -> bool:
  """Whether float32 buffers agree with numbers that were computed in float64."""
  return mine.shape == theirs.shape and np.allclose(mine, theirs, rtol=1e-4, atol=1e-9)
