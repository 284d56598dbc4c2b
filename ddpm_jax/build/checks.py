"""Checks of a config, before anything is traced or downloaded."""

from ml_collections import ConfigDict

from ddpm_jax import fields, importable
from ddpm_jax.build.covariances import (
  FROM_MOMENTS,
  OPTIMAL_HEADS,
  bound,
  bound_covariance,
  covariance_name,
  of_second_head,
)
from ddpm_jax.build.denoisers import guided
from ddpm_jax.build.networks import is_classifier, network, parameterization
from ddpm_jax.build.process import grid
from ddpm_jax.build.samplers import sampler
from ddpm_jax.errors import UserError


def check(config: ConfigDict) -> None:
  """Raises UserError for anything in a complete config that cannot work, or that would have no effect.

  It builds the process, the sampler and the bound, without a network. Moments that are still to be measured may be absent.
  Data and network are checked where they are opened and built.
  """
  fields.check(config)
  if is_classifier(config):
    return
  parameterization(config)
  check_second_head(config)
  _check_sampling(config)
  _check_bound(config)


def check_second_head(config: ConfigDict) -> None:
  """Raises UserError unless the loss trains the network's second head, if it has one."""
  second = config.prediction.second
  loss = config.loss.name
  if importable.is_code(loss):
    return
  if second is None:
    if loss == "second_head":
      raise UserError(
        f'loss.name = "second_head" trains a second head: set prediction.second to {" or ".join(OPTIMAL_HEADS)}.'
      )
    return
  own = of_second_head(config)
  if loss in ("vlb", "hybrid"):
    named = config.loss.get("covariance") or own
    if named == own or named.startswith(own):
      return
    raise UserError(
      f'prediction.second = "{second}" is not trained by loss.covariance = "{named}": leave loss.covariance out, which '
      f'means "{own}".'
    )
  if loss == "second_head" and second in OPTIMAL_HEADS:
    return
  remedy = "second_head" if second in OPTIMAL_HEADS else "hybrid (or vlb)"
  raise UserError(
    f'loss.name = "{loss}" does not train the head prediction.second = "{second}", whose random variance samples would use: '
    f"set loss.name={remedy}."
  )


def lacks_moments(config: ConfigDict) -> bool:
  """Whether the covariance or grid that samples needs moments of the network, and sampling.moments names no file of them."""
  sampling = config.sampling
  if sampling.moments is not None:
    return False
  if sampling.grid == "dp_seg":
    return True
  return sampling.solver == "gaussian" and _needs_moments(config, covariance_name(config, "sampling"))


def _needs_moments(config: ConfigDict, covariance: str) -> bool:
  if covariance in FROM_MOMENTS:
    return True
  return covariance.startswith("optimal") and config.prediction.second not in OPTIMAL_HEADS


def _check_sampling(config: ConfigDict) -> None:
  guidance = config.sampling.guidance
  if guidance.kind in ("classifier", "autoguidance") and guidance.model is None:
    raise UserError(f"Guidance of the kind {guidance.kind!r} needs sampling.guidance.model, the run of the guide.")
  moments_to_come = lacks_moments(config)
  config = config.copy_and_resolve_references()
  with config.ignore_type():
    config.data.num_classes = config.data.num_classes or 1  # not known before the data are opened
    if moments_to_come:
      config.sampling.covariance = "posterior"
    if moments_to_come and config.sampling.grid == "dp_seg":
      config.sampling.grid = "uniform"
  guided(config, network(config, None, None))
  sampler(config)


def _check_bound(config: ConfigDict) -> None:
  named = bound_covariance(config)
  if config.sampling.moments is None and _needs_moments(config, named):
    grid(config, "evaluation")  # the rest is checked once its moments are measured
    return
  bound(config)
