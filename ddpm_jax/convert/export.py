"""From a checkpoint back to a file of another codebase, or to a folder of diffusers."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax import config as configs
from ddpm_jax.convert import diffusers_export, edm, names, weight_files
from ddpm_jax.convert.convert import RECORD
from ddpm_jax.errors import UserError
from ddpm_jax.files import tables
from ddpm_jax.files.atomic import writing
from ddpm_jax.sizes import pair
from ddpm_jax.training import checkpoints


def export(
  workdir: str | pathlib.Path,
  target: str | pathlib.Path,
  *,
  family: str | None = None,
  attention_order: str | None = None,
  ema: str | None = None,
):
  """Writes the weights of a checkpoint under the names of another codebase; bitwise what was converted.

  Args:
    target: a .safetensors, .pt, .pth or .ckpt file; a name without such an ending is a folder for diffusers.
    family: the dialect; None: that of the file it was converted from, else the one of its network.
    attention_order: likewise.
    ema: which average; None: the slowest.

  Raises:
    UserError: if there is no such checkpoint, or the codebase has no words for its network.
  """
  workdir = pathlib.Path(workdir)
  record = _record(workdir)
  directory = workdir / "checkpoints" if (workdir / "checkpoints").is_dir() else workdir
  stored = checkpoints.load_weights(str(directory), ema=ema)
  config = configs.from_dict(stored.config)
  module = build.model(config, config.data.channels, config.data.num_classes)
  unet = config.network.get("backbone", config.network)
  if unet.get("block_size", 1) != 1:
    raise UserError(f"{workdir} works on blocks of pixels (network.block_size): no other codebase reads its weights.")
  if not pathlib.Path(target).suffix:
    if family not in (None, "diffusers"):
      raise UserError(f"{target} is a folder, which only diffusers reads: leave --family out, or name a .safetensors file.")
    _folder(pathlib.Path(target), config, module, stored.params)
    return
  family = family or record.get("dialect") or next(name for name, kinds in _NETWORKS_OF.items() if unet.name in kinds)
  if unet.name not in _NETWORKS_OF.get(family, (unet.name,)):
    known = " or ".join(name for name, kinds in _NETWORKS_OF.items() if unet.name in kinds)
    raise UserError(f"The codebases of {family} have no network like this one, a {unet.name}: take --family {known}.")
  order = attention_order or record.get("attention_order") or "legacy"
  table = names.entries(module, stored.params, family, attention_order=order, image_size=pair(config.data.image_size)[0])
  tensors = names.to_tensors(table, stored.params)
  if family in ("edm_adm", "edm_song"):
    tensors |= edm.buffers(list(tensors), smooth=bool(config.network.get("smooth")))
  weight_files.write(target, tensors)


def _record(workdir: pathlib.Path) -> dict[str, Any]:
  """What the conversion wrote about its source, as far as it is text; empty for a run that was trained here."""
  found = tables.read_json(workdir / RECORD) if (workdir / RECORD).is_file() else {}
  return {key: value for key, value in found.items() if isinstance(value, str)}


def _folder(target: pathlib.Path, config: ConfigDict, module: Any, params: Mapping[str, Any]) -> None:
  """Writes a pipeline of diffusers into `target`, a new or empty folder."""
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise UserError(f"{target} already exists: choose another name, or remove it.")
  described = diffusers_export.files(config)
  tensors = names.to_tensors(names.entries(module, params, "diffusers"), params)
  for name, content in described.items():
    with writing(target / name) as temporary:
      temporary.write_text(json.dumps(content, indent=2) + "\n")
  weight_files.write(target / "unet/diffusion_pytorch_model.safetensors", tensors)


_NETWORKS_OF = {  # the networks that each dialect's codebases have, the usual one of a network first
  "pesser": ("unet_ddpm",),
  "ho_tf": ("unet_ddpm",),
  "openai": ("unet_adm", "classifier"),
  "consistency": ("unet_adm",),
  "ncsnpp": ("ncsnpp",),
  "diffusers": ("unet_2d", "unet_ddpm", "unet_adm"),
  "edm_adm": ("unet_edm",),
  "edm_song": ("song_unet",),
  "lucidrains": ("unet_lucidrains",),
}
