"""Covariances by name, and the bound on bits/dim with one of them."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax import named
from ddpm_jax.build.process import grid, schedule
from ddpm_jax.diffusion import covariance
from ddpm_jax.diffusion import steps as tables
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.lanczos import Full
from ddpm_jax.diffusion.second_heads import SECOND_HEADS
from ddpm_jax.errors import UserError
from ddpm_jax.files import measurements
from ddpm_jax.named import Entry


def bound(config: ConfigDict) -> tuple[tables.GaussianSteps, ReverseKernel]:
  """(rows, kernel) of the bound on bits/dim that `config.evaluation` describes."""
  levels = schedule(config)
  section = config.evaluation
  which = covariance_of(config, bound_covariance(config), eta=1.0)
  if isinstance(which, Full):
    raise UserError(
      'covariance = "full" has no bits/dim here: the probability of 8-bit pixels is only defined for independent pixels. '
      'Set evaluation.covariance="jacobian" for its diagonal.'
    )
  if section.last_row == "full_chain":
    which = covariance.fix_last_to_full_chain(which, levels)
  elif section.last_row != "chain":
    raise UserError(f'evaluation.last_row must be "chain" or "full_chain", not {section.last_row!r}.')
  return tables.gaussian(levels, grid(config, "evaluation")), ReverseKernel(which)


def bound_covariance(config: ConfigDict) -> str:
  """The name of the covariance of the bound on bits/dim."""
  return covariance_name(config, "evaluation")


def covariance_name(config: ConfigDict, which: str) -> str:
  """The name of the covariance of the section `which`, "sampling" or "evaluation"."""
  name = config.evaluation.covariance if which == "evaluation" else None
  return name or config.sampling.covariance or of_second_head(config)


def covariances(config: ConfigDict) -> list[str]:
  """The names of all covariances for which a network of this config has bits/dim."""
  names = {"posterior", "marginal", of_second_head(config)}
  if config.prediction.second in OPTIMAL_HEADS:
    names.add("optimal_average")
  if config.sampling.moments is not None:
    names |= {"optimal", "jacobian"}
    if measurements.has_pixels(config.sampling.moments):
      names.add("optimal_diagonal")
  return [name for name in COVARIANCES if name in names]


# (prediction, row) -> log-variance, broadcastable to the image
COVARIANCES: dict[str, Callable | Entry] = {
  "posterior": Entry(covariance.posterior, "DDPM's fixed small one, and DDIM's"),
  "marginal": Entry(covariance.marginal, "DDPM's fixed large one, beta"),
  "learned_range": Entry(covariance.learned_range, "learned between the two (Improved DDPM, ADM)"),
  "learned_diagonal": Entry(covariance.learned_diagonal, "learned as it is (DDPM's ablation)"),
  "optimal": Entry(covariance.Optimal(), "by moments or an NPR, SN or OCM head (Analytic-DPM and what followed)"),
  "optimal_average": Entry(covariance.Optimal(average=True), "the mean of optimal over the pixels of an image"),
  "optimal_diagonal": Entry(covariance.Optimal(), "by moments of each pixel (ddpm-jax moments --per_pixel)"),
  "jacobian": Entry(covariance.Optimal(), "by the network's Jacobian, above a share of the moments"),
  "full": Entry(None, "between all pixels, by products with the Jacobian (for samples, not bits/dim)"),
}

OPTIMAL_HEADS = tuple(name for name, head in SECOND_HEADS.items() if head.optimal)  # NPR-DPM, SN-DPM, OCM-DPM ...
FROM_MOMENTS = ("optimal_diagonal", "jacobian", "full")  # they need moments, whatever the second head


def of_second_head(config: ConfigDict) -> str:
  """The covariance that the network's second head is for."""
  second = config.prediction.second
  if second in OPTIMAL_HEADS:
    return "optimal"
  return {None: "posterior", "range": "learned_range", "log_var": "learned_diagonal"}[second]


def covariance_of(config: ConfigDict, name: str | None, eta: float) -> Any:
  """The covariance `name`. None is that of the network's second head, or the posterior."""
  if name is None:
    name = of_second_head(config)
    if name.startswith("learned") and eta != 1:
      name = "posterior"  # a learned variance belongs to the ancestral chain; OpenAI's DDIM ignores it too
  which = named.find(COVARIANCES, name, "Covariance")
  if config.sampling.moments is None and name in FROM_MOMENTS:
    per_pixel = " --per_pixel" if name == "optimal_diagonal" else ""
    raise UserError(
      f'covariance = "{name}" needs measured moments: run ddpm-jax moments{per_pixel} and set sampling.moments to its file.'
    )
  if name.startswith("optimal") and config.sampling.moments is None and config.prediction.second not in OPTIMAL_HEADS:
    raise UserError(
      f'covariance = "{name}" needs the error of the network: measure it with ddpm-jax moments and set '
      "sampling.moments to the file, or train a head with --config npr, sn or ocm."
    )
  if name in ("marginal", "learned_range", "learned_diagonal") and eta != 1:
    raise UserError(
      f'covariance = "{name}" belongs to the ancestral chain, eta = 1, and is not defined at eta = {eta}. '
      'Set covariance to "posterior" or "optimal".'
    )
  if name.startswith("learned") and name != of_second_head(config):
    second = {"learned_range": "range", "learned_diagonal": "log_var"}[name]
    raise UserError(
      f'covariance = "{name}" needs a network with the second head "{second}", and this one has '
      f"{config.prediction.second or 'none'}: leave it out, or train with prediction.second={second}."
    )
  if name == "full":
    if config.sampling.jacobian.products < 1:
      raise UserError(f"sampling.jacobian.products = {config.sampling.jacobian.products} must be at least 1.")
    return Full(config.sampling.jacobian.products)
  return which() if isinstance(which, type) else which
