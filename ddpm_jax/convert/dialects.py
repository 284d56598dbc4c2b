"""How each codebase names the layers of the walk, and how it stores them.

A dialect is a short rule from the position of a layer in the walk (walk.py) to its name in another codebase.
"""

import dataclasses
import re

from ddpm_jax.convert.dialect import Dialect, Layer
from ddpm_jax.convert.lucidrains import LUCIDRAINS
from ddpm_jax.convert.walk import place_of


def _pesser_place(plan, module):
  side, level, what, i = place_of(module)
  if side == "mid":
    return f"mid.{what}_{i + 1}"
  return f"{side}.{level}.{what}" + ("" if what.endswith("sample") else f".{i}")


_PESSER = Dialect(
  around=lambda plan: {
    "time_embed/dense_0": Layer("temb.dense.0"),
    "time_embed/dense_1": Layer("temb.dense.1"),
    "conv_in": Layer("conv_in"),
    "out/norm": Layer("norm_out"),
    "out/conv": Layer("conv_out"),
    "head/block": Layer("before_out"),
    "head/norm": Layer("norm_out2"),
    "head/conv": Layer("conv_out2"),
  },
  layers={
    "norm1": Layer("norm1"),
    "conv1": Layer("conv1"),
    "emb": Layer("temb_proj"),
    "norm2": Layer("norm2"),
    "conv2": Layer("conv2"),
    "shortcut": Layer("nin_shortcut", rank=4),
    "norm": Layer("norm"),
    "qkv": Layer("q", "k", "v", rank=4),
    "out": Layer("proj_out", rank=4),
    "conv": Layer("conv"),
  },
  place=_pesser_place,
)

_HO_TF = dataclasses.replace(
  _PESSER,
  # "down.0.block.1.conv1" -> "down_0/block_1/conv1", and "temb.dense.0" -> "temb/dense0"
  spell=lambda name: re.sub(r"\.(\d+)", r"_\1", name).replace("dense_", "dense").replace(".", "/"),
  tensorflow=True,
)


def _openai_place(plan, module):
  side, level, what, i = place_of(module)
  if side == "mid":
    return f"middle_block.{1 if what == 'attn' else 2 * i}"
  per_level = plan.blocks + 1  # entries of input_blocks (after the first) and of output_blocks
  if side == "down":
    entry = 1 + level * per_level + (plan.blocks if what == "downsample" else i)
    return f"input_blocks.{entry}.{int(what == 'attn')}"
  entry = (plan.levels - 1 - level) * per_level
  if what == "upsample":
    return f"output_blocks.{entry + plan.blocks}.{1 + (level in plan.attending)}"
  return f"output_blocks.{entry + i}.{int(what == 'attn')}"


def _openai_around(plan):
  first = int(plan.complex_head)  # of the norm in `out2`, after the residual block
  return {
    "time_embed/dense_0": Layer("time_embed.0"),
    "time_embed/dense_1": Layer("time_embed.2"),
    "label_embed": Layer("label_emb"),
    "conv_in": Layer("input_blocks.0.0"),
    "out/norm": Layer("out.0"),
    "out/conv": Layer("out.2"),
    "head/block": Layer("out2.0"),
    "head/norm": Layer(f"out2.{first}"),
    "head/conv": Layer(f"out2.{first + 2}"),
    "pool_attention/norm": Layer("out.0"),
    "pool_attention": Layer("out.2"),
    "pool_attention/qkv": Layer("out.2.qkv_proj", rank=3),
    "pool_attention/out": Layer("out.2.c_proj", rank=3),
    "pool_adaptive/norm": Layer("out.0"),
    "pool_adaptive/out": Layer("out.3", rank=4),
    "pool_spatial/hidden": Layer("out.0"),
    "pool_spatial/out": Layer("out.2"),
    "pool_spatial_v2/hidden": Layer("out.0"),
    "pool_spatial_v2/norm": Layer("out.1"),
    "pool_spatial_v2/out": Layer("out.3"),
  }


_OPENAI = Dialect(
  around=_openai_around,
  layers={
    "norm1": Layer("in_layers.0"),
    "conv1": Layer("in_layers.2"),
    "emb": Layer("emb_layers.1"),
    "norm2": Layer("out_layers.0"),
    "conv2": Layer("out_layers.3"),
    "shortcut": Layer("skip_connection", rank=4),
    "norm": Layer("norm"),
    "qkv": Layer("qkv", rank=3),
    "out": Layer("proj_out", rank=3),
    "downsample/conv": Layer("op"),
    "conv": Layer("conv"),
  },
  place=_openai_place,
  qkv="legacy",
)

# openai/consistency_models: guided-diffusion's UNet with 1x1 convolutions of two dimensions, and q, k, v split before heads
_CONSISTENCY = dataclasses.replace(
  _OPENAI, layers={**_OPENAI.layers, "qkv": Layer("qkv", rank=4), "out": Layer("proj_out", rank=4)}, qkv="q k v"
)


def _ncsnpp_around(plan):
  last = 3 + len(plan.order)
  return {
    "time_embed/dense_0": Layer("all_modules.0"),
    "time_embed/dense_1": Layer("all_modules.1"),
    "conv_in": Layer("all_modules.2"),
    "out/norm": Layer(f"all_modules.{last}"),
    "out/conv": Layer(f"all_modules.{last + 1}"),
    "head/norm": Layer("gn_out2"),
    "head/conv": Layer("conv_out2"),
  }


_NCSNPP = Dialect(
  around=_ncsnpp_around,
  layers={
    "norm1": Layer("GroupNorm_0"),
    "conv1": Layer("Conv_0"),
    "emb": Layer("Dense_0"),
    "norm2": Layer("GroupNorm_1"),
    "conv2": Layer("Conv_1"),
    "shortcut": Layer("Conv_2", rank=4),
    "norm": Layer("GroupNorm_0"),
    "qkv": Layer("NIN_0", "NIN_1", "NIN_2", rank=0),
    "out": Layer("NIN_3", rank=0),
  },
  place=lambda plan, module: f"all_modules.{3 + plan.order[module]}",
)


def _diffusers_place(plan, module):
  side, level, what, i = place_of(module)
  kind = {"block": "resnets", "attn": "attentions", "downsample": "downsamplers", "upsample": "upsamplers"}[what]
  if side == "mid":
    return f"mid_block.{kind}.{i}"
  return f"{side}_blocks.{level if side == 'down' else plan.levels - 1 - level}.{kind}.{i}"


_DIFFUSERS = Dialect(
  around=lambda plan: {
    "time_embed/dense_0": Layer("time_embedding.linear_1"),
    "time_embed/dense_1": Layer("time_embedding.linear_2"),
    "label_embed": Layer("class_embedding"),
    "label_time/dense_0": Layer("class_embedding.linear_1"),
    "label_time/dense_1": Layer("class_embedding.linear_2"),
    "conv_in": Layer("conv_in"),
    "out/norm": Layer("conv_norm_out"),
    "out/conv": Layer("conv_out"),
  },
  layers={
    "norm1": Layer("norm1"),
    "conv1": Layer("conv1"),
    "emb": Layer("time_emb_proj"),
    "norm2": Layer("norm2"),
    "conv2": Layer("conv2"),
    "shortcut": Layer("conv_shortcut", rank=4),
    "norm": Layer("group_norm"),
    "qkv": Layer("to_q", "to_k", "to_v"),
    "out": Layer("to_out.0"),
    "conv": Layer("conv"),
  },
  place=_diffusers_place,
)


def _edm_place(plan, module):
  """Names contain the resolution, and attention is part of its block."""
  side, level, what, i = place_of(module)
  size = lambda level: f"{plan.image_size >> level}x{plan.image_size >> level}"
  if side == "mid":
    return f"dec.{size(plan.levels - 1)}_in{0 if what == 'attn' else i}"
  if what == "downsample":
    return f"enc.{size(level + 1)}_down"
  if what == "upsample":
    return f"dec.{size(level - 1)}_up"
  return f"{'enc' if side == 'down' else 'dec'}.{size(level)}_block{i}"


def _edm_around(plan):
  size = f"{plan.image_size}x{plan.image_size}"
  images = {
    f"down_{level}_image": Layer(f"enc.{plan.image_size >> level + 1}x{plan.image_size >> level + 1}_aux_residual")
    for level in range(plan.levels - 1)
  }
  return images | {
    "time_embed/dense_0": Layer("map_layer0"),
    "time_embed/dense_1": Layer("map_layer1"),
    "time_waves": Layer("map_noise"),
    "label_embed": Layer("map_label"),
    "augment_embed": Layer("map_augment"),
    "conv_in": Layer(f"enc.{size}_conv"),
    "out/norm": Layer("out_norm"),
    "out/conv": Layer("out_conv"),
  }


def _song_around(plan):
  last = f"dec.{plan.image_size}x{plan.image_size}_aux"
  return _edm_around(plan) | {"out/norm": Layer(f"{last}_norm"), "out/conv": Layer(f"{last}_conv")}


_EDM_ADM = Dialect(
  around=_edm_around,
  layers={
    "norm1": Layer("norm0"),
    "conv1": Layer("conv0"),
    "emb": Layer("affine"),
    "norm2": Layer("norm1"),
    "conv2": Layer("conv1"),
    "shortcut": Layer("skip", rank=4),
    "norm": Layer("norm2"),
    "qkv": Layer("qkv", rank=4),
    "out": Layer("proj", rank=4),
  },
  place=_edm_place,
  qkv="channels",
)
_EDM_SONG = dataclasses.replace(_EDM_ADM, around=_song_around)


DIALECTS: dict[str, Dialect] = {
  "pesser": _PESSER,
  "ho_tf": _HO_TF,
  "openai": _OPENAI,
  "consistency": _CONSISTENCY,
  "ncsnpp": _NCSNPP,
  "diffusers": _DIFFUSERS,
  "edm_adm": _EDM_ADM,
  "edm_song": _EDM_SONG,
  "lucidrains": LUCIDRAINS,
}
