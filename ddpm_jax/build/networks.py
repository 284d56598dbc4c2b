"""The network of a config, its weights, and the meaning of its output."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ddpm_jax import models
from ddpm_jax.build.process import chain, schedule
from ddpm_jax.config import nearest
from ddpm_jax.diffusion import guidance, preconditioning, prediction, second_heads
from ddpm_jax.diffusion import steps as tables
from ddpm_jax.errors import UserError
from ddpm_jax.models.patches import Patches
from ddpm_jax.models.unet import compute_weights
from ddpm_jax.sizes import ImageSize, pair


def model(config: ConfigDict, channels: int, num_classes: int | None) -> nn.Module:
  """The Flax module for images of `channels` channels: the network section plus what data and prediction imply."""
  fields = config.network.to_dict()
  unet = fields.get("backbone", fields)
  block_size = unet.pop("block_size", 1)
  if not isinstance(block_size, int) or block_size < 1:
    raise UserError(f"network.block_size = {block_size!r} should be at least 1, and 1 means no blocks.")
  if not 0 <= (dropout := unet.get("dropout", 0)) < 1:
    raise UserError(f"network.dropout = {dropout:g} is the share of activations that is dropped: at least 0, below 1.")
  if "backbone" not in unet and unet["name"] == "two_headed":
    raise UserError("A second head needs a finished network: set train.backbone to its run.")
  if is_classifier(config) != (unet["name"] == "classifier") or (is_classifier(config) and config.train.class_conditional):
    raise UserError(
      'A noisy classifier has network.name = "classifier" and loss.name = "classifier", and is not class-conditional: it '
      "would be told what it has to find out."
    )
  if num_classes is None and "label" in conditions(config):
    raise UserError(f"This network needs labels, but data set {config.data.name!r} has none.")
  heads = 2 if config.prediction.second else 1
  out = num_classes if is_classifier(config) else channels * heads * block_size**2
  if unet is fields and fields.setdefault("out_channels", out) != out:
    raise UserError(
      f"network.out_channels is {fields['out_channels']}, but {channels} image channels with "
      f"prediction.second = {config.prediction.second!r} need {out}. Leave the field out."
    )
  if config.data.low_res_size is not None:
    if unet["name"] != "unet_adm":
      raise UserError('data.low_res_size is for super-resolution, which only network.name = "unet_adm" supports.')
    unet["low_res"] = True
  if config.train.class_conditional:
    unet.update(num_classes=num_classes, null_label=config.train.label_dropout > 0)
  network = models.make(fields.pop("name"), **fields)
  return network if block_size == 1 else Patches(network, block_size)


def is_classifier(config: ConfigDict) -> bool:
  """Whether the config trains a noisy classifier, for guidance."""
  return config.loss.name == "classifier"


def check_draws(config: ConfigDict) -> None:
  """Raises UserError for a noisy classifier, which is not a denoiser."""
  if is_classifier(config):
    raise UserError("This is a noisy classifier: it guides other networks (sampling.guidance.model) and draws nothing.")


def conditions(config: ConfigDict) -> tuple[str, ...]:
  """The names of the arrays that a batch must contain besides its images."""
  labels = config.train.class_conditional or is_classifier(config)
  return ("label",) * labels + ("low_res",) * (config.data.low_res_size is not None)


@dataclasses.dataclass(frozen=True)
class Apply:
  """A Flax module as `apply(params, x, time, cond)`; equal modules compare equal, so that nothing is traced twice."""

  module: nn.Module

  def __call__(self, params: Any, x: jax.Array, time: jax.Array, cond: Any = None) -> jax.Array:
    return self.module.apply({"params": params}, x, time, cond)

  def prepare(self, params: Any) -> Any:
    """`params` converted to the network's dtype, once, for a loop that calls this."""
    module = getattr(self.module, "network", self.module)  # of Patches
    module = getattr(module, "backbone", module)
    return compute_weights(params, module.dtype) if hasattr(module, "dtype") else params


def initial_params(module: nn.Module, key: jax.Array, image_size: ImageSize, channels: int) -> Any:
  """Random weights, with one compilation."""
  x = jnp.zeros((1, *pair(image_size), channels))
  return jax.jit(module.init)(key, x, jnp.zeros(1), {"label": jnp.zeros(1, jnp.int32), "low_res": x})["params"]


def check_weights(config: ConfigDict, module: nn.Module, params: Any) -> None:
  """Raises UserError, naming the first difference, unless `params` are weights of this network."""
  data = config.data
  wanted = jax.eval_shape(lambda: initial_params(module, jax.random.key(0), data.image_size, data.channels))
  name_of = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
  wanted, found = ({name_of(path): x.shape for path, x in jax.tree.leaves_with_path(tree)} for tree in (wanted, params))
  for name in [*wanted, *found]:
    if wanted.get(name) != found.get(name):
      raise UserError(
        f"The weights are of another network: {name} is {found.get(name, 'missing')} there and "
        f"{wanted.get(name, 'unknown')} in network {config.network.name!r}. Leave the network as the checkpoint has it."
      )


def network(config: ConfigDict, module: nn.Module, params: Any) -> prediction.Network | guidance.Classifier:
  """The network with its weights: a denoiser, or a noisy classifier."""
  return _network(config)(params, Apply(module))


def training_network(config: ConfigDict, module: nn.Module) -> Callable[[Any, jax.Array], Any]:
  """(params, dropout key) -> the network in training mode. Raises UserError for a network that only samples here."""
  if config.prediction.mean == "consistency":
    raise UserError('Consistency models are sampled here, not trained: train with prediction.mean="edm" or "v".')
  make = _network(config)

  def network_of(params: Any, key: jax.Array) -> Any:
    def apply(params: Any, x: jax.Array, time: jax.Array, cond: Any = None) -> jax.Array:
      return module.apply({"params": params}, x, time, cond, train=True, rngs={"dropout": key})

    return make(params, apply)

  return network_of


def _network(config: ConfigDict) -> Callable[[Any, Callable], Any]:
  """(params, apply) -> the network."""
  if is_classifier(config):
    return functools.partial(guidance.Classifier, time=time_scale(config))
  return functools.partial(prediction.Network, parameterization=parameterization(config), time=time_scale(config))


def time_scale(config: ConfigDict) -> Any:
  """The time input of the network, by level."""
  if config.prediction.mean in preconditioning.PRECONDITIONINGS:
    return _preconditioned(config)[1]
  return prediction.TimeScale(config.prediction.time_scale, config.prediction.time_shift)


def parameterization(config: ConfigDict, steps: tables.GaussianSteps | None = None) -> Any:
  """The meaning of the network's output. x_prev belongs to the chain `steps` (default: the full one)."""
  mean = config.prediction.mean
  second = config.prediction.second
  if mean == "x_prev":
    heads = prediction.x_prev(chain(config) if steps is None else steps)
  elif mean in prediction.MEANS:
    heads = prediction.MEANS[mean]()
  elif mean in preconditioning.PRECONDITIONINGS:
    heads = _preconditioned(config)[0]
  else:
    known = [*prediction.MEANS, *preconditioning.PRECONDITIONINGS, "x_prev"]
    raise UserError(f"prediction.mean {mean!r} is unknown; {nearest(mean, known)}")
  if second is None:
    return heads
  if second not in second_heads.SECOND_HEADS:
    raise UserError(f"prediction.second {second!r} is unknown; {nearest(second, second_heads.SECOND_HEADS)}")
  return second_heads.TwoHeads.named(heads, second)


def _preconditioned(config: ConfigDict) -> tuple[preconditioning.Preconditioned, preconditioning.NoiseTime]:
  section = config.prediction
  return preconditioning.preconditioned(section.mean, schedule(config), section.sigma_data, section.time_scale)
