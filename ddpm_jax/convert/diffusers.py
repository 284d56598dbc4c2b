"""diffusers' `UNet2DModel` and its schedulers: their JSON as a config of ours.

In the configurations of the DDPM and DDIM pipelines it is Ho's UNet under other names (google/ddpm-cifar10-32 and the
others), or, as its own training script makes it, OpenAI's with conditioning by addition. Whatever else it can be is
refused: with scale and shift, for one, its middle attention has no norm, and is nobody else's network.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.config import default
from ddpm_jax.errors import UserError

_HO = {"norm_eps": 1e-6, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1}
_OPENAI = {"norm_eps": 1e-5, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0}
_USUAL = {
  **_OPENAI,
  "act_fn": "silu",
  "mid_block_scale_factor": 1,
  "center_input_sample": False,
  "add_attention": True,
  "time_embedding_type": "positional",
  "norm_num_groups": 32,
  "resnet_time_scale_shift": "default",
  "downsample_type": "conv",
  "upsample_type": "conv",
  "class_embed_type": None,
  "attn_norm_num_groups": None,
  "layers_per_block": 2,
  "attention_head_dim": 8,
  "dropout": 0.0,
}
_FIXED = (
  "act_fn",
  "mid_block_scale_factor",
  "center_input_sample",
  "add_attention",
  "time_embedding_type",
  "downsample_type",
  "upsample_type",
  "class_embed_type",
  "attn_norm_num_groups",
  "resnet_time_scale_shift",
)
_BLOCKS = {"DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"}
_SCHEDULES = {"linear": "linear", "scaled_linear": "quad", "squaredcos_cap_v2": "cosine"}
_MEANS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_COVARIANCES = {
  "fixed_small": "posterior",
  "fixed_small_log": "posterior",
  "fixed_large": "marginal",
  "fixed_large_log": "marginal",
}


def config(network: Mapping[str, Any], scheduler: Mapping[str, Any]) -> ConfigDict:
  """A config from config.json and scheduler_config.json; a scheduler that is absent is DDPM's.

  Raises:
    UserError: for an option that the networks and schedules here do not have, by name.
  """
  given = {**_USUAL, **network}
  for field in _FIXED:
    if given[field] != _USUAL[field]:
      raise UserError(f"This UNet2DModel has {field}={given[field]!r}; only {_USUAL[field]!r} is supported.")
  blocks = [*given["down_block_types"], *given["up_block_types"]]
  if not _BLOCKS.issuperset(blocks):
    unknown, known = min(set(blocks) - _BLOCKS), ", ".join(sorted(_BLOCKS))
    raise UserError(f"This UNet2DModel has a {unknown}; only {known} are supported.")
  attends = [kind.startswith("Attn") for kind in given["down_block_types"]]
  if attends[::-1] != [kind.startswith("Attn") for kind in given["up_block_types"]]:
    raise UserError("This UNet2DModel attends at other sizes on the way up than on the way down, which is not supported.")

  out = default()
  size, widths = given["sample_size"], given["block_out_channels"]
  if not isinstance(size, int):
    raise UserError(f"This UNet2DModel has sample_size={size!r}; square images are supported.")
  shared = dict(
    channels=widths[0],
    channel_mult=tuple(int(w / widths[0]) if w % widths[0] == 0 else w / widths[0] for w in widths),
    num_res_blocks=given["layers_per_block"],
    attention_resolutions=tuple(size >> level for level, attending in enumerate(attends) if attending),
    groups=given["norm_num_groups"],
    dropout=given["dropout"],
  )
  conventions = {field: given[field] for field in _HO}
  head_channels = given["attention_head_dim"]
  if conventions == _HO and head_channels is None:
    out.network = dict(name="unet_ddpm", **shared)
  elif conventions == _OPENAI:
    heads = dict(num_heads=1) if head_channels is None else dict(head_channels=head_channels)
    out.network = dict(name="unet_adm", scale_shift=False, **heads, **shared)
  else:
    raise UserError(
      f"This UNet2DModel mixes conventions ({', '.join(f'{k}={v}' for k, v in conventions.items())}, "
      f"attention_head_dim={head_channels}); Ho's are {_HO}, OpenAI's {_OPENAI}."
    )
  out.data.image_size = size
  _schedule(out, scheduler)
  return out


def _schedule(out, scheduler):
  name, mean = scheduler.get("beta_schedule", "linear"), scheduler.get("prediction_type", "epsilon")
  if name not in _SCHEDULES or scheduler.get("trained_betas") is not None or mean not in _MEANS:
    raise UserError(f"The scheduler's beta_schedule={name!r}, prediction_type={mean!r} is not supported.")
  out.schedule = dict(name=_SCHEDULES[name], T=scheduler.get("num_train_timesteps", 1000))
  if name != "squaredcos_cap_v2":
    out.schedule.update(start=scheduler.get("beta_start", 1e-4), end=scheduler.get("beta_end", 0.02))
  out.prediction.mean = _MEANS[mean]
  out.sampling.clip = "x0" if scheduler.get("clip_sample", True) else "none"
  variance = scheduler.get("variance_type", "fixed_small")
  if variance not in (*_COVARIANCES, "learned_range"):
    raise UserError(f"The scheduler's variance_type={variance!r} is not supported.")
  with out.ignore_type():
    out.sampling.covariance = _COVARIANCES.get(variance)
    out.prediction.second = "range" if variance == "learned_range" else None
  out.sampling.rounding = "round"  # pipelines end in (images * 255).round()
