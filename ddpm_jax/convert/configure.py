"""The config of a converted network, from its tensors, metadata, a similar model and the user's answers.

Nothing that affects the network's output is assumed. Whatever is neither found nor given by the user is asked for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax import config as configs
from ddpm_jax.convert import diffusers, diffusers_scheduler, edm, lucidrains
from ddpm_jax.convert.architecture import Architecture
from ddpm_jax.convert.registry import Published
from ddpm_jax.convert.weight_files import Contents
from ddpm_jax.errors import UserError


def structure(like: ConfigDict | None, overrides: Sequence[str]) -> dict[str, Any]:
  """num_res_blocks and the number of levels as given by the user, for tensors that do not determine them."""
  stated = configs.default() if like is None else like.copy_and_resolve_references()
  configs.override(
    stated, [each for each in overrides if each.startswith(("network.num_res_blocks=", "network.channel_mult="))]
  )
  network = stated.network.get("backbone", stated.network)
  return {
    "num_res_blocks": network.get("num_res_blocks"),
    "levels": len(network.channel_mult) if "channel_mult" in network else None,
  }


def configure(
  contents: Contents, found: Architecture, published: Published | None, like: str | None, overrides: Sequence[str]
) -> tuple[ConfigDict, list[str]]:
  """(config, notes): the config of the network, and what was assumed, in sentences.

  Raises:
    UserError: if something is unknown, with the answers that are needed, or if the tensors contradict the config.
  """
  notes = []
  if published is not None:
    config = published.config()
    notes.append(f"Taken for {published.name}: {published.data}, config {published.config_name}.")
  elif like is not None:
    config = configs.load(like)
  elif contents.network is not None:
    answers = configs.override(configs.default(), [each for each in overrides if each.startswith("data.image_size=")])
    config = diffusers.config(contents.network, contents.scheduler, answers.data.image_size)
    notes += _check_scheduler(contents.scheduler, overrides)
  else:
    return _answered(found, list(overrides), contents.beside), notes
  configs.override(config, list(overrides))
  _check(found, config)
  _fill_in(config, found)
  return config, notes


def _check_scheduler(scheduler: Mapping[str, Any] | None, overrides: Sequence[str]) -> list[str]:
  """Notes on a scheduler. Raises UserError if there is none, and the overrides state no schedule."""
  if scheduler is not None:
    return diffusers_scheduler.notes(scheduler)
  if not any(each.startswith("schedule.") for each in overrides):
    raise UserError(
      "There is no scheduler_config.json, so the noise levels are unknown. Convert the whole pipeline, or set them: "
      "--config.schedule.name=linear --config.schedule.T=1000 --config.prediction.mean=eps."
    )
  if any(each.startswith("prediction.mean=") for each in overrides):
    return []
  return ["The network is assumed to predict eps: set --config.prediction.mean=v or x0 if it does not."]


def _answered(found: Architecture, overrides: list[str], beside: Mapping[str, Any]) -> ConfigDict:
  """The default config with what was found and given. Raises UserError if something is still unknown."""
  answered = [assignment.partition("=")[0] for assignment in overrides]
  told = lucidrains.process(beside) if found.dialect == "lucidrains" and "schedule.name" not in answered else None
  answered += list(told or ())
  asked = list(found.unknown)
  if found.dialect == "openai" and any(a.startswith("schedule.T=") and a != "schedule.T=1000" for a in overrides):
    asked.append("prediction.time_scale")  # improved-diffusion scales by 1000 / T, guided-diffusion does not
  either = lambda field: (field, field.replace("num_heads", "head_channels"))
  unknown = [field for field in asked if not any(f"{a}.".startswith(f"{f}.") for a in answered for f in either(field))]
  if unknown:
    raise UserError(
      f"The tensors are a {found.network['name']} as stored by {found.dialect}, but do not determine {', '.join(unknown)}. "
      f"Name a similar published model (--like, see --list), or set: "
      + " ".join(f"--config.{_EXAMPLES[field]}" for field in unknown)
    )
  config = configs.default()
  if found.network["name"] == "classifier":
    config.loss.name = "classifier"
  schedule = [assignment for assignment in overrides if assignment.startswith("schedule.")]
  data = [assignment for assignment in overrides if assignment.startswith("data.")]
  for section, fields in (told or {}).items():
    config[section] = fields if section in configs.OPEN_SECTIONS else {**config[section], **fields}
  if found.dialect in ("edm_adm", "edm_song", "consistency"):
    configs.override(config, [assignment for assignment in overrides if assignment.startswith("prediction.mean=")])
    edm.set_process(config, consistency=found.dialect == "consistency")
  configs.override(config, data + schedule)
  if found.dialect == "ncsnpp":
    config.prediction.update(time_scale=999 / config.schedule.get("T", 1000), time_shift=0)  # 999 t of the time t = n / T
  if found.image_size:
    config.data.image_size = found.image_size
  config.network = found.at(config.data.image_size)
  configs.override(config, [assignment for assignment in overrides if assignment not in data + schedule])
  if found.network.get("low_res") and config.data.low_res_size is None:
    raise UserError("The size of the small images that the network enlarges is unknown: set --config.data.low_res_size.")
  _fill_in(config, found)
  return config


_EXAMPLES = {
  "data.image_size": "data.image_size=64",
  "network.name": "network.name=unet_ddpm (google's ddpm-*) or unet_adm (diffusers' training script)",
  "network.num_heads": "network.num_heads=4 (or head_channels=64)",
  "network.backbone.num_heads": "network.backbone.num_heads=4 (or head_channels=64)",
  "schedule": "schedule.name=cosine --config.schedule.T=4000",
  "prediction.time_scale": "prediction.time_scale=1.0 (or 1000 / T: --rescale_timesteps True)",
  "prediction.mean": "prediction.mean=edm (or ve, vp, eps for iDDPM; consistency for CD and CT)",
  "prediction.second": "prediction.second=residual (NPR-DPM), second_moment (SN-DPM) or hessian (OCM-DPM)",
}


def _fill_in(config: ConfigDict, found: Architecture) -> None:
  """Sets the fields about data that a training run would have stored."""
  with config.unlocked(), config.ignore_type():
    config.data.channels = found.image_channels
    if found.num_classes is not None:
      labels = found.num_classes - (config.train.label_dropout > 0)  # without the null label
      config.data.num_classes = labels
      config.train.class_conditional = True
    if found.network["name"] == "classifier":
      config.data.num_classes = found.network["out_channels"]
    if found.network.get("out_channels") == 2 * found.image_channels and config.prediction.second is None:
      config.prediction.second = "range"
    if config.data.image_size is None:
      config.data.image_size = found.image_size
  if config.data.image_size is None:
    raise UserError("The size of the images is unknown: set --config.data.image_size.")
  if config.train.class_conditional and config.data.num_classes is None:
    raise UserError("The network takes labels, but the number of classes is unknown: set --config.data.num_classes.")


def _check(found: Architecture, config: ConfigDict) -> None:
  """Raises UserError if the tensors contradict the config, naming the first field."""
  stated = config.network.to_dict()
  here = [(found.network, stated)]
  if "backbone" in found.network and "backbone" in stated:
    here = [(found.network["backbone"], stated["backbone"])] + here
  for told, said in here:
    for field, value in told.items():
      known = field != "backbone" and field in said and (field != "name" or found.dialect != "diffusers")
      if known and _plain(said[field]) != _plain(value):
        raise UserError(
          f"The tensors have {field}={value}, but the config has {field}={said[field]}: this is another model."
        )
  takes_labels = found.num_classes is not None or stated.get("label_sinusoids")
  if config.train.class_conditional and not takes_labels:
    raise UserError("The config is class-conditional, but the tensors have no labels: this is another model.")


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple | list) else value
