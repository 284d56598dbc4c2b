"""diffusers' `UNet2DModel`: config.json as the network section of a config.

In the configurations of the DDPM and DDIM pipelines it is Ho's UNet under other names; as diffusers' own training script
makes it, OpenAI's; anything else that it can be is `unet_2d` (models/unet_2d.py). Fields are read by whitelist: a field is
understood, known to have no effect, or refused by name.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.errors import UserError
from ddpm_jax.sizes import ImageSize, pair, simplest

_HO = {"norm_eps": 1e-6, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1}
_OPENAI = {"norm_eps": 1e-5, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0}
_DEFAULTS: dict[str, Any] = {  # of UNet2DModel, for what config.json leaves out
  **_OPENAI,
  "sample_size": None,
  "in_channels": 3,
  "out_channels": 3,
  "center_input_sample": False,
  "time_embedding_type": "positional",
  "time_embedding_dim": None,
  "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
  "mid_block_type": "UNetMidBlock2D",
  "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
  "block_out_channels": [224, 448, 672, 896],
  "layers_per_block": 2,
  "mid_block_scale_factor": 1,
  "downsample_type": "conv",
  "upsample_type": "conv",
  "dropout": 0.0,
  "act_fn": "silu",
  "attention_head_dim": 8,
  "norm_num_groups": 32,
  "attn_norm_num_groups": None,
  "resnet_time_scale_shift": "default",
  "add_attention": True,
  "class_embed_type": None,
  "num_class_embeds": None,
}
# What changes nothing: EMAModel's fields, and a field that only learned time embeddings read.
_HARMLESS = {
  *("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"),
  "num_train_timesteps",
}
_ONLY = {
  "center_input_sample": (False,),
  "time_embedding_type": ("positional",),
  "time_embedding_dim": (None,),
  "mid_block_type": ("UNetMidBlock2D",),
  "mid_block_scale_factor": (1,),
  "act_fn": ("silu", "swish"),  # two names of one function
  "downsample_type": ("conv", "resnet"),
  "upsample_type": ("conv", "resnet"),
  "resnet_time_scale_shift": ("default", "scale_shift"),
  "class_embed_type": (None, "timestep"),
}
_RESAMPLING = {  # how the blocks between levels resample; None: as downsample_type or upsample_type says
  **dict.fromkeys(("DownBlock2D", "UpBlock2D"), "conv"),
  **dict.fromkeys(("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"), "resnet"),
  **dict.fromkeys(("AttnDownBlock2D", "AttnUpBlock2D"), None),
}


def apply(config: ConfigDict, network: Mapping[str, Any], image_size: ImageSize | None = None) -> None:
  """Writes what config.json says into `config`: the network, the size of images, and the number of classes.

  Args:
    image_size: the user's answer, in place of sample_size.

  Raises:
    UserError: for a field or value that the networks here do not have, by name.
  """
  _check(network)
  given = {**_DEFAULTS, **network}
  down = list(given["down_block_types"])
  up = list(given["up_block_types"])
  attends = [kind.startswith("Attn") for kind in down]
  if attends[::-1] != [kind.startswith("Attn") for kind in up]:
    raise UserError("This UNet2DModel attends at other sizes on the way up than on the way down, which is not supported.")
  size = image_size or _size(given["sample_size"])
  widths = given["block_out_channels"]
  shared = dict(
    channels=widths[0],
    channel_mult=tuple(int(w / widths[0]) if w % widths[0] == 0 else w / widths[0] for w in widths),
    num_res_blocks=given["layers_per_block"],
    attention_resolutions=tuple(pair(size)[0] >> level for level, attending in enumerate(attends) if attending),
    groups=given["norm_num_groups"],
    dropout=float(given["dropout"]),
  )
  config.network = _network(given, down, up, shared)
  with config.ignore_type():
    config.data.image_size = size
  classes = given["num_class_embeds"]
  if given["class_embed_type"] or classes is not None:
    with config.ignore_type():
      config.data.num_classes = classes
    config.train.class_conditional = True


def _check(network: Mapping[str, Any]) -> None:
  for field, value in network.items():
    if field not in _DEFAULTS and field not in _HARMLESS and not field.startswith("_"):
      raise UserError(f"This UNet2DModel has the field {field}={value!r}, which is not known here: update diffusers' model.")
    if field in _ONLY and value not in _ONLY[field]:
      known = " or ".join(map(repr, _ONLY[field]))
      raise UserError(f"This UNet2DModel has {field}={value!r}; only {known} is supported.")
  given = {**_DEFAULTS, **network}
  for field in ("block_out_channels", "down_block_types", "up_block_types"):
    kind = int if field == "block_out_channels" else str
    if (
      not isinstance(given[field], list | tuple) or not given[field] or not all(type(item) is kind for item in given[field])
    ):
      raise UserError(f"This UNet2DModel has {field}={given[field]!r}; it should be a list with one entry per level.")
    if len(given[field]) != len(given["block_out_channels"]):
      raise UserError(
        f"This UNet2DModel has {len(given['block_out_channels'])} block_out_channels, {len(given[field])} {field}."
      )
  for field in ("layers_per_block", "norm_num_groups", "in_channels", "out_channels"):
    if type(given[field]) is not int or given[field] < 1:
      raise UserError(f"This UNet2DModel has {field}={given[field]!r}; it should be an integer of at least 1.")
  for field in ("attention_head_dim", "attn_norm_num_groups", "num_class_embeds"):
    if given[field] is not None and (type(given[field]) is not int or given[field] < 1):
      raise UserError(f"This UNet2DModel has {field}={given[field]!r}; it should be an integer of at least 1, or null.")
  if unknown := sorted({*given["down_block_types"], *given["up_block_types"]} - _RESAMPLING.keys()):
    raise UserError(f"This UNet2DModel has a {unknown[0]}; only {', '.join(_RESAMPLING)} are supported.")


def _network(given: Mapping[str, Any], down: list[str], up: list[str], shared: dict[str, Any]) -> dict[str, Any]:
  """The network that these conventions are."""
  head_channels = given["attention_head_dim"]
  downs = tuple(_RESAMPLING[kind] or given["downsample_type"] for kind in down[:-1])
  ups = tuple(_RESAMPLING[kind] or given["upsample_type"] for kind in up[:-1])[::-1]
  scale_shift = given["resnet_time_scale_shift"] == "scale_shift"
  mid_groups = given["attn_norm_num_groups"] or (None if scale_shift else given["norm_num_groups"])
  heads = dict(num_heads=1) if head_channels is None else dict(head_channels=head_channels)
  plain = given["add_attention"] and mid_groups == given["norm_num_groups"] and not given["class_embed_type"]
  conventions = {field: given[field] for field in _HO}
  if plain and conventions == _HO and head_channels is None and not scale_shift and set(downs + ups) <= {"conv"}:
    return dict(name="unet_ddpm", **shared)
  if plain and conventions == _OPENAI and len(set(downs + ups)) <= 1:
    updown = "resnet" in downs
    return dict(name="unet_adm", scale_shift=scale_shift, resblock_updown=updown, **heads, **shared)
  return dict(
    name="unet_2d",
    scale_shift=scale_shift,
    norm_eps=float(given["norm_eps"]),
    padding=given["downsample_padding"],
    sin_first=not given["flip_sin_to_cos"],
    freq_shift=float(given["freq_shift"]),
    down_types=downs,
    up_types=ups,
    mid_attention=bool(given["add_attention"]),
    mid_groups=mid_groups,
    label_sinusoids=given["class_embed_type"] == "timestep",
    **heads,
    **shared,
  )


def _size(size: Any) -> ImageSize:
  """sample_size as data.image_size."""
  sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
  if len(sides) == 2 and all(type(side) is int and side > 0 for side in sides):
    return simplest(*sides)
  raise UserError(f"This UNet2DModel has sample_size={size!r}: say how large images are with --config.data.image_size=64.")
