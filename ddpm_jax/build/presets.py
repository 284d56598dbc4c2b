"""Samplers by one name: presets that set several fields of a config's sampling section at once.

    ddpm-jax sample --workdir runs/mnist --sampler ddim --steps 50

`ddpm-jax samplers` lists them. Every solver of `SOLVERS` is one of them.
"""

import dataclasses
import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax import config as configs
from ddpm_jax import importable, models, named
from ddpm_jax.build.covariances import OPTIMAL_HEADS, of_second_head
from ddpm_jax.build.samplers import SOLVERS
from ddpm_jax.config import nearest
from ddpm_jax.errors import UserError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Preset:
  """What a name of --sampler means.

  Attributes:
    about: one line for lists.
    sampling: fields of the sampling section. Those of `METHOD` that are not here go back to their defaults.
    grid: which levels are visited, given a number of steps. "sections" is OpenAI's even spacing.
    steps: the default number of steps. None: every level.
    second: the second head that the network must have. None allows any network.
  """

  about: str
  sampling: Mapping[str, Any]
  grid: str = "uniform"
  steps: int | None = None
  second: str | None = None


METHOD = dict(solver="gaussian", eta=1.0, covariance=None, residual=False, cap_pixels=None, cap_steps=1, churn=0.0)

_ANALYTIC = dict(covariance="optimal", keep_eps=False, cap_pixels=2.0)
_ANALYTIC_DDIM = dict(covariance="optimal", keep_eps=True, cap_pixels=1.0, eta=0.0)

_PRESETS = {
  "ddpm": Preset("ancestral sampling with the network's or the config's variance (Ho et al. 2020)", {}),
  "ddpm-small": Preset("DDPM with the posterior variance", dict(covariance="posterior")),
  "ddpm-large": Preset("DDPM with the variance beta", dict(covariance="marginal")),
  "iddpm": Preset(
    "DDPM with the learned variance (Improved DDPM, ADM)", dict(covariance="learned_range"), "sections", 250, "range"
  ),
  "ddim": Preset("DDIM; --eta 0 to 1 adds noise (Song et al. 2020)", dict(eta=0.0, covariance="posterior"), steps=50),
  "analytic": Preset("Analytic-DPM: the optimal variance, from moments (Bao et al. 2022)", _ANALYTIC, steps=50),
  "analytic-ddim": Preset("Analytic-DPM's DDIM", _ANALYTIC_DDIM, steps=50),
  "npr": Preset("NPR-DPM: the optimal variance, from a head of --config npr", _ANALYTIC, steps=50, second="residual"),
  "npr-ddim": Preset("NPR-DPM's DDIM", _ANALYTIC_DDIM, steps=50, second="residual"),
  "sn": Preset("SN-DPM: the optimal variance, from a head of --config sn", _ANALYTIC, steps=50, second="second_moment"),
  "sn-ddim": Preset("SN-DPM's DDIM", _ANALYTIC_DDIM, steps=50, second="second_moment"),
  "unipc": Preset("UniPC of order 3, as unipc3", dict(solver="unipc3", keep_eps=False), "log_snr", 10),
}
_GRIDS_OF_SOLVERS = {
  **dict.fromkeys(("heun", "midpoint"), ("karras", 10)),
  **dict.fromkeys(("euler_maruyama", "euler_ode"), ("uniform", None)),
}


def presets() -> dict[str, Preset]:
  """All presets, by the name that --sampler takes."""
  found = dict(_PRESETS)
  for name, entry in SOLVERS.items():
    if name == "gaussian" or name in found:
      continue
    about = entry.about if isinstance(entry, named.Entry) else "added at run time"
    grid, steps = _GRIDS_OF_SOLVERS.get(name, ("log_snr", 20))
    found[name] = Preset(about, dict(solver=name, keep_eps=False), grid, steps)
  return found


@dataclasses.dataclass(frozen=True)
class Request:
  """The short options of sampling, as a user gives them.

  Attributes:
    sampler: a name of `presets`, or a solver as "package.module:Object".
    steps: the number of steps.
    eta: the share of the ancestral step's noise: 0 is DDIM, 1 is DDPM.
    guidance: the guidance scale.
    classifier: the run of the noisy classifier that guides.
    weaker: the run of the weaker network that guides (autoguidance).
  """

  sampler: str | None = None
  steps: int | None = None
  eta: float | None = None
  guidance: float | None = None
  classifier: str | None = None
  weaker: str | None = None

  def __bool__(self) -> bool:
    return any(value is not None for value in vars(self).values())


def configure(config: ConfigDict, assignments: Sequence[str] = (), request: Request | None = None) -> ConfigDict:
  """Applies a `request` and then `assignments`, which take precedence, to `config` in place, and returns it.

  Arguments of a section that its new name does not take are dropped, and logged.

  Raises:
    UserError: for a request that cannot be met, and as `config.override`.
  """
  asked = request or Request()
  if asked.steps is not None and asked.steps < 1:
    raise UserError(f"--steps {asked.steps} is not a number of steps: give at least 1.")
  if asked.sampler is not None:
    _apply(config, asked)
  given = {assignment.partition("=")[0] for assignment in assignments}
  short = [f"{path}={value}" for path, value in _assignments(config, asked).items() if path not in given]
  former = config.network.name
  configs.override(config, [*short, *assignments], asked=() if asked.sampler is None else ("sampling.solver",))
  if config.network.name != former:
    _drop_unknown(config.network, former, {path.removeprefix("network.") for path in given})
  configs.check_effect(config, [*short, *assignments])
  return config


def _assignments(config: ConfigDict, asked: Request) -> dict[str, Any]:
  """The fields that a request sets beside its preset, by path."""
  wanted: dict[str, Any] = {}
  if asked.steps is not None and asked.sampler is None:
    match = re.fullmatch(r"(ddim)?\d+", config.sampling.grid)
    if match:
      wanted["sampling.grid"] = f"{match[1] or ''}{asked.steps}"
    else:
      wanted["sampling.steps"] = asked.steps
  if asked.eta is not None:
    wanted["sampling.eta"] = float(asked.eta)
  return wanted | _guidance(config, asked)


def _apply(config: ConfigDict, asked: Request) -> None:
  """Sets the fields of a preset, for samples, and for bits/dim where its chain has a bound."""
  fields = _of_preset(config, asked.sampler, asked.steps)
  with config.sampling.ignore_type(), config.evaluation.ignore_type():
    config.sampling.update(fields)
    if fields["solver"] == "gaussian" and fields["eta"] == 1:
      config.evaluation.update({field: fields[field] for field in ("grid", "steps", "covariance")})
      if fields["covariance"] == "optimal":
        config.evaluation.last_row = "full_chain"
    config.sampling.guidance.form = None


def _of_preset(config: ConfigDict, name: str, steps: int | None) -> dict[str, Any]:
  known = presets()
  if importable.is_code(name):
    preset = Preset("", dict(solver=name, keep_eps=False), "log_snr", 20)
  elif name in known:
    preset = known[name]
  else:
    raise UserError(f"Sampler {name!r} is unknown; {nearest(name, known)} ddpm-jax samplers lists them.")
  second = config.prediction.second
  if preset.second is not None and second != preset.second:
    raise UserError(
      f"--sampler {name} needs a network with the second head {preset.second!r}, and this one has {second or 'none'}: "
      f"{_REMEDY[preset.second]}"
    )
  if name.startswith("analytic") and second in OPTIMAL_HEADS:
    raise UserError(f"This network has a head for its variance: take --sampler {'npr' if second == 'residual' else 'sn'}.")
  fields = {**METHOD, **preset.sampling}
  if name == "ddpm":
    fields["covariance"] = _ancestral(config)
  if fields["cap_pixels"] == 2 and config.schedule.name == "cosine":
    fields["cap_pixels"] = 1.0  # Analytic-DPM section 5
  T = config.schedule.get("T", 1000)
  if steps is None:
    steps = preset.steps and min(preset.steps, T)
  if steps is None:
    return fields | {"grid": "full", "steps": None}
  if preset.grid == "sections":
    return fields | {"grid": str(steps), "steps": None}
  return fields | {"grid": preset.grid, "steps": steps}


_REMEDY = {
  "range": "train with --config.prediction.second=range --config.loss.name=hybrid, or take --sampler ddpm.",
  "residual": "train one with --config npr --config.train.backbone=RUN, or take --sampler analytic.",
  "second_moment": "train one with --config sn --config.train.backbone=RUN, or take --sampler analytic.",
}


def _ancestral(config: ConfigDict) -> str:
  """DDPM's covariance for this network: the config's if it belongs to the ancestral chain, else that of the head."""
  named_there = config.sampling.covariance
  if named_there == "posterior" or named_there in configs.ANCESTRAL:
    return named_there
  of_head = of_second_head(config)
  return of_head if of_head in configs.ANCESTRAL else "posterior"


def _guidance(config: ConfigDict, asked: Request) -> dict[str, Any]:
  if asked.classifier is not None and asked.weaker is not None:
    raise UserError("A classifier and a weaker network cannot both guide: leave out --classifier or --weaker.")
  section: dict[str, Any] = {}
  if asked.guidance is not None:
    section["scale"] = float(asked.guidance)
  if asked.classifier is not None:
    section |= {"kind": "classifier", "model": asked.classifier}
  elif asked.weaker is not None:
    section |= {"kind": "autoguidance", "model": asked.weaker}
  elif asked.guidance is not None and config.sampling.guidance.kind is None:
    if not (config.train.class_conditional and config.train.label_dropout):
      raise UserError(
        "--guidance needs something that guides: give --classifier RUN or --weaker RUN, or train a network with "
        "train.class_conditional=True and train.label_dropout=0.1, which guides itself."
      )
    section["kind"] = "classifier_free"
  return {f"sampling.guidance.{field}": value for field, value in section.items()}


def _drop_unknown(section: ConfigDict, former: str, given: set[str]) -> None:
  """Removes arguments of the former network that the new one does not take, unless the user gave them."""
  network = named.find(models.NETWORKS, section.name, "network.name")
  known = {"name", "block_size", *inspect.signature(network).parameters}
  dropped = [field for field in section if field not in known and field not in given]
  if dropped:
    log.info("network.name=%s: dropped %s, which belonged to %s.", section.name, ", ".join(sorted(dropped)), former)
    with section.unlocked():
      for field in dropped:
        del section[field]
