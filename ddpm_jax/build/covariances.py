"""Covariances by name, and the bound on bits/dim that one gives."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax import named
from ddpm_jax.build.process import grid, schedule
from ddpm_jax.diffusion import covariance
from ddpm_jax.diffusion import steps as tables
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.errors import UserError
from ddpm_jax.named import Entry


def bound(config: ConfigDict) -> tuple[tables.GaussianSteps, ReverseKernel]:
  """(rows, kernel) of the bits/dim that `config.evaluation` asks for."""
  levels, section = schedule(config), config.evaluation
  which = covariance_of(config, bound_covariance(config), eta=1.0)
  if section.last_row == "full_chain":
    which = covariance.fix_last_to_full_chain(which, levels)
  elif section.last_row != "chain":
    raise UserError(f'evaluation.last_row must be "chain" or "full_chain", not {section.last_row!r}.')
  return tables.gaussian(levels, grid(config, "evaluation")), ReverseKernel(which)


def bound_covariance(config: ConfigDict) -> str:
  """The name of the covariance whose bits/dim `config.evaluation` asks for."""
  return config.evaluation.covariance or config.sampling.covariance or _OF_SECOND_HEAD[config.prediction.second]


def covariances(config: ConfigDict) -> list[str]:
  """Names of all that a network of this config can tell."""
  second = config.prediction.second
  names = {"posterior", "marginal", _OF_SECOND_HEAD[second]}
  if second in OPTIMAL_HEADS:
    names.add("optimal_average")
  elif config.sampling.moments is not None:
    names.add("optimal")
  return [name for name in COVARIANCES if name in names]


# (prediction, row) -> log-variance, broadcastable to the image
COVARIANCES: dict[str, Callable | Entry] = {
  "posterior": Entry(covariance.posterior, "DDPM's fixed small one, and DDIM's"),
  "marginal": Entry(covariance.marginal, "DDPM's fixed large one, beta"),
  "learned_range": Entry(covariance.learned_range, "learned between the two (Improved DDPM, ADM)"),
  "learned_diagonal": Entry(covariance.learned_diagonal, "learned as it is (DDPM's ablation)"),
  "optimal": Entry(covariance.Optimal(), "by moments or an NPR or SN head (Analytic-DPM and its extension)"),
  "optimal_average": Entry(covariance.Optimal(average=True), "the mean of optimal over the pixels of an image"),
}

OPTIMAL_HEADS = ("residual", "second_moment")  # NPR-DPM, SN-DPM

_OF_SECOND_HEAD = {
  None: "posterior",
  "range": "learned_range",
  "log_var": "learned_diagonal",
  "residual": "optimal",
  "second_moment": "optimal",
}


def covariance_of(config: ConfigDict, name: str | None, eta: float) -> Any:
  """The covariance `name`; None: what the network's second head is for, or the posterior's."""
  if name is None:
    name = _OF_SECOND_HEAD[config.prediction.second]
    if name.startswith("learned") and eta != 1:
      name = "posterior"  # a learned variance is of the ancestral chain; OpenAI's DDIM ignores it too
  which = named.find(COVARIANCES, name, "Covariance")
  if name.startswith("optimal") and config.sampling.moments is None and config.prediction.second not in OPTIMAL_HEADS:
    raise UserError(
      f'covariance = "{name}" needs to know how wrong the network is: measure it with ddpm-jax moments and set '
      "sampling.moments to the file, or train a head with --config npr or sn."
    )
  if name in ("marginal", "learned_range", "learned_diagonal") and eta != 1:
    raise UserError(
      f'covariance = "{name}" is of the ancestral chain, eta = 1, and means nothing at eta = {eta}. '
      'Use covariance = "posterior" or "optimal" there.'
    )
  return which() if isinstance(which, type) else which
