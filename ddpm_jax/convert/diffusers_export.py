"""Writes the JSON files of a diffusers pipeline around the weights of a UNet."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax.errors import UserError
from ddpm_jax.sizes import pair

_BETAS = {"linear": "linear", "quad": "scaled_linear", "cosine": "squaredcos_cap_v2", "sigmoid": "sigmoid"}
_MEANS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
_VARIANCES = {
  "posterior": "fixed_small",
  "marginal": "fixed_large",
  "learned_range": "learned_range",
  "learned_diagonal": "learned",
}
_SPACINGS = {"leading": ("leading", 0), "leading1": ("leading", 1), "uniform": ("linspace", 0), "trailing": ("trailing", 0)}
_VERSION = "0.30.0"  # whose fields are written


def files(config: ConfigDict) -> dict[str, dict[str, Any]]:
  """model_index.json, unet/config.json and scheduler/scheduler_config.json of a run, by path.

  Raises:
    UserError: if diffusers has no such network, schedule or prediction, naming the field of the config.
  """
  scheduler = scheduler_config(config)
  kind = scheduler["_class_name"]
  index = {
    "_class_name": kind.replace("Scheduler", "Pipeline"),
    "_diffusers_version": _VERSION,
    "scheduler": ["diffusers", kind],
    "unet": ["diffusers", "UNet2DModel"],
  }
  return {"model_index.json": index, "unet/config.json": unet_config(config), "scheduler/scheduler_config.json": scheduler}


def unet_config(config: ConfigDict) -> dict[str, Any]:
  """config.json of the network.

  Raises:
    UserError: for a network that is not a `UNet2DModel`.
  """
  module = build.model(config, config.data.channels, config.data.num_classes)
  name = config.network.name
  if name not in ("unet_ddpm", "unet_adm", "unet_2d"):
    raise UserError(f"diffusers' UNet2DModel is not a {name}: export it to a file instead, such as model.safetensors.")
  if int(module.channel_mult[0] * module.channels) != module.channels:
    _refuse("network.channel_mult", module.channel_mult, "a first entry of 1")
  if not getattr(module, "resample_with_conv", True) or not (
    getattr(module, "conv_resample", True) or getattr(module, "resblock_updown", False)
  ):
    _refuse("resampling", "by pooling", "convolutions or residual blocks")
  if getattr(module, "low_res", False):
    _refuse("data.low_res_size", config.data.low_res_size, "None")
  height, width = pair(config.data.image_size)
  attends = [height >> level in module.attention_resolutions for level in range(len(module.channel_mult))]
  down_types, downsample = _blocks("Down", attends, _resampling(module, "down_types"))
  up_types, upsample = _blocks("Up", attends[::-1], _resampling(module, "up_types")[::-1])
  scale_shift = getattr(module, "scale_shift", False)
  mid_groups = module.mid_groups if name == "unet_2d" else module.groups
  classes = None if module.num_classes is None else module.num_classes + module.null_label
  sinusoids = getattr(module, "label_sinusoids", False)
  return {
    "_class_name": "UNet2DModel",
    "_diffusers_version": _VERSION,
    "sample_size": height if height == width else [height, width],
    "in_channels": config.data.channels,
    "out_channels": module.out_channels,
    "block_out_channels": [int(module.channels * mult) for mult in module.channel_mult],
    "layers_per_block": module.num_res_blocks,
    "down_block_types": down_types,
    "up_block_types": up_types,
    "downsample_type": downsample,
    "upsample_type": upsample,
    "dropout": module.dropout,
    "act_fn": "silu",
    "norm_num_groups": module.groups,
    "attn_norm_num_groups": mid_groups if scale_shift else None,
    "add_attention": getattr(module, "mid_attention", True),
    "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
    "attention_head_dim": _head_channels(module, name),
    "class_embed_type": "timestep" if sinusoids else None,
    "num_class_embeds": None if sinusoids else classes,
    **_conventions(module, name),
  }


def _resampling(module: Any, field: str) -> list[str]:
  """How the network resamples between its levels: "conv" or "resnet", from the finest level on."""
  own = "resnet" if getattr(module, "resblock_updown", False) else "conv"
  return list(getattr(module, field, ())) or [own] * (len(module.channel_mult) - 1)


def _blocks(side: str, attends: list[bool], resampling: list[str]) -> tuple[list[str], str]:
  """(block types, downsample_type or upsample_type) in the order in which they run; blocks that attend share one type."""
  of_attending = {kind for attending, kind in zip(attends, resampling, strict=False) if attending} or {"conv"}
  if len(of_attending) > 1:
    _refuse(f"network.{side.lower()}_types", tuple(resampling), "one kind for all levels with attention")
  plain = {"conv": f"{side}Block2D", "resnet": f"Resnet{side}sampleBlock2D"}
  kinds = [*resampling, "conv"]
  types = [f"Attn{side}Block2D" if attending else plain[kind] for attending, kind in zip(attends, kinds, strict=True)]
  return types, of_attending.pop()


def scheduler_config(config: ConfigDict) -> dict[str, Any]:
  """scheduler_config.json: DDIMScheduler where sampling.eta is 0, else DDPMScheduler.

  Raises:
    UserError: for a prediction or a time that diffusers does not have.
  """
  if config.prediction.mean not in _MEANS:
    _refuse("prediction.mean", config.prediction.mean, " or ".join(_MEANS))
  for field, only in (("time_scale", 1.0), ("time_shift", 1)):
    if config.prediction[field] != only:
      _refuse(f"prediction.{field}", config.prediction[field], str(only))
  second = config.prediction.second
  if second not in (None, "range", "log_var"):
    _refuse("prediction.second", second, "range, log_var or None")
  sampling = config.sampling
  ddim = sampling.solver == "gaussian" and sampling.eta == 0
  found = {
    "_class_name": "DDIMScheduler" if ddim else "DDPMScheduler",
    "_diffusers_version": _VERSION,
    "prediction_type": _MEANS[config.prediction.mean],
    "clip_sample": sampling.clip == "x0",
    "clip_sample_range": sampling.clip_range,
    "thresholding": sampling.clip == "dynamic",
    "dynamic_thresholding_ratio": sampling.clip_quantile,
    "sample_max_value": 1000.0 if sampling.clip_max is None else sampling.clip_max,
    **_levels(config),
  }
  if ddim:
    spacing, offset = _SPACINGS.get(sampling.grid, ("leading", 0))
    return found | {"timestep_spacing": spacing, "steps_offset": offset, "set_alpha_to_one": True}
  learned = {"range": "learned_range", "log_var": "learned"}.get(second)
  return found | {"variance_type": learned or _VARIANCES.get(sampling.covariance, "fixed_small")}


def _levels(config: ConfigDict) -> dict[str, Any]:
  """The fields of a schedule; the betas themselves where diffusers has no name for it."""
  section = config.schedule.to_dict()
  name = section["name"]
  levels = build.schedule(config)
  base = section.get("base", "linear") if name == "zero_snr" else name
  found: dict[str, Any] = {
    "num_train_timesteps": levels.T,
    "rescale_betas_zero_snr": name == "zero_snr",
    "trained_betas": None,
  }
  if base in _BETAS and "max_beta" not in section:
    scale = 1000 / levels.T if base == "linear" else 1.0
    start = section.get("start")
    end = section.get("end")
    ends = {"beta_start": scale * 1e-4 if start is None else start, "beta_end": scale * 0.02 if end is None else end}
    return found | ends | {"beta_schedule": _BETAS[base]}
  return found | {"beta_schedule": "linear", "trained_betas": list(section.get("betas", levels.betas.tolist()))}


def _head_channels(module: Any, name: str) -> int | None:
  """attention_head_dim, which is the same on every level; None for one head."""
  if name == "unet_ddpm" or (module.head_channels is None and module.num_heads == 1):
    return None
  if module.head_channels is None or (module.num_heads_upsample or module.num_heads) != module.num_heads:
    _refuse("network.num_heads", module.num_heads, "1 or head_channels")
  return module.head_channels


def _conventions(module: Any, name: str) -> Mapping[str, Any]:
  match name:
    case "unet_ddpm":
      return {"norm_eps": 1e-6, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1}
    case "unet_adm":
      return {"norm_eps": 1e-5, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0}
  shift = int(module.freq_shift) if module.freq_shift == int(module.freq_shift) else module.freq_shift
  return {
    "norm_eps": module.norm_eps,
    "downsample_padding": module.padding,
    "flip_sin_to_cos": not module.sin_first,
    "freq_shift": shift,
  }


def _refuse(field: str, value: Any, only: str) -> None:
  raise UserError(
    f"diffusers does not support {field} = {value!r}, only {only}: export to a file instead, such as model.safetensors."
  )
