"""Second heads (NPR-DPM, SN-DPM, OCM-DPM) on finished networks."""

from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.build.covariances import OPTIMAL_HEADS
from ddpm_jax.config import default
from ddpm_jax.errors import UserError


def on_backbone(config: ConfigDict, of: ConfigDict) -> ConfigDict:
  """The config of a second head on a network that was trained with the config `of`.

  The head takes data, levels, network and prediction from its backbone. Its config may change details of the data.

  Raises:
    UserError: if the config has no second head for the variance of eps, or a loss other than the head's.
  """
  if config.prediction.second not in OPTIMAL_HEADS or config.loss.name != "second_head":
    raise UserError(
      f"train.backbone is for a second head: set prediction.second to {' or '.join(map(repr, OPTIMAL_HEADS))} "
      'and loss.name to "second_head", as the configs npr, sn and ocm do.'
    )
  second = config.prediction.second
  changed = config.data.to_dict()
  usual = default().data
  backbone = of.network.to_dict()
  heads = 2 if of.prediction.second else 1
  backbone["out_channels"] = of.data.channels * heads * backbone.get("block_size", 1) ** 2
  head = (
    dict(name="two_headed", initialization=HEAD_INITIALIZATIONS.get(backbone["name"], "torch")) | config.network.to_dict()
  )
  with config.unlocked(), config.ignore_type():
    config.data = {k: v if v != usual[k] else of.data[k] for k, v in changed.items()}
    config.schedule = of.schedule.to_dict()
    config.network = head | {"backbone": backbone}
    config.prediction = of.prediction.to_dict() | {"second": second}
    config.train.class_conditional = of.train.class_conditional
    config.train.label_dropout = of.train.label_dropout
  return config


HEAD_INITIALIZATIONS = {"unet_ddpm": "torch", "unet_adm": "openai", "ncsnpp": "ho"}  # as Extended-Analytic-DPM's heads


def put_on(backbone: Any, params: Any) -> Any:
  """The parameters of a two-headed network, with the weights of this backbone (both inside blocks of pixels, or neither)."""
  if "backbone" not in params:
    return {"network": put_on(backbone["network"], params["network"])}
  return params | {"backbone": backbone}


def is_of_head(path: str) -> bool:
  """Whether a parameter belongs to the second head, and so learns on a frozen backbone."""
  return path.removeprefix("network/").startswith("head/")
