"""How images are drawn, as a page asks for it, and the same as a command line and as Python."""

import dataclasses
import math
import shlex
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ddpm_jax import build
from ddpm_jax.config import nearest
from ddpm_jax.errors import UserError
from ddpm_jax.jobs.trained import Trained, load

Say = Callable[..., None]  # (text, share of the work that is done or None): tells the reader what is going on


def silent(text: str, share: float | None = None) -> None:
  """Says nothing."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """How images are drawn: flags of `ddpm-jax sample`, with the same limits. None: as the sampler or the run says.

  The values may come from anyone. Names are looked up in tables, and never imported.

  Raises:
    UserError: for a name that is not in its table, or a value that is not a finite number.
  """

  sampler: str
  steps: int | None = None
  eta: float | None = None
  guidance: float | None = None
  covariance: str | None = None

  def __post_init__(self):
    one_of(self.sampler, build.presets(), "Sampler")
    if self.steps is not None:
      object.__setattr__(self, "steps", whole(self.steps, "--steps"))
    for name in ("eta", "guidance"):
      if getattr(self, name) is not None:
        object.__setattr__(self, name, number(getattr(self, name), f"--{name}"))
    if self.covariance is not None:
      one_of(self.covariance, build.COVARIANCES, "Covariance")

  @property
  def short(self) -> dict[str, Any]:
    """The short flags, as keyword arguments of `ddpm_jax.load`."""
    values = {name: getattr(self, name) for name in ("sampler", "steps", "eta", "guidance")}
    return {name: value for name, value in values.items() if value is not None}

  @property
  def overrides(self) -> list[str]:
    """Assignments to fields of the config."""
    return [] if self.covariance is None else [f"sampling.covariance={self.covariance}"]

  def of(self, trained: Trained, say: Say = silent) -> Trained:
    """`trained`, drawing in this way. Moments that it needs are measured first."""
    run = trained.using(*self.overrides, **self.short)
    if build.lacks_moments(run.config):
      say("Measuring the moments of this network. They are kept beside its checkpoints.")
    return run.with_moments()


def is_gaussian(sampler: str) -> bool:
  """Whether the steps of a sampler have an eta and a covariance."""
  return build.presets()[sampler].sampling.get("solver", "gaussian") == "gaussian"


def samplers(trained: Trained) -> list[str]:
  """The samplers that this network can use."""
  found = []
  for name in build.presets():
    try:
      run = trained.using(sampler=name)
      if not build.lacks_moments(run.config):
        build.sampling(run.config, run.network, run.guide)
    except UserError:
      continue
    found.append(name)
  return found


def whole(value: Any, name: str) -> int:
  """`value` as an integer."""
  if number(value, name) != int(value) or abs(value) > 2**53:
    raise UserError(f"{name} {value:.16g} must be a whole number of at most 2^53.")
  return int(value)


def number(value: Any, name: str) -> float:
  """`value` as a float."""
  if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
    raise UserError(f"{name} {str(value)[:40]!r} must be a number.")
  return float(value)


def one_of(value: Any, table: Iterable[str], what: str) -> str:
  """`value`, which is a name in `table`."""
  if not isinstance(value, str) or value not in table:
    raise UserError(f"{what} {str(value)[:40]!r} is unknown; {nearest(str(value)[:40], list(table))}")
  return value


# ---------------------------------------------------------------- the same on the command line and in Python


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where a network comes from: arguments of `ddpm_jax.load`, and flags of the commands."""

  workdir: str
  ema: str | None = None
  step: int | None = None
  overrides: tuple[str, ...] = ()
  trust: bool = False

  def load(self) -> Trained:
    """The network."""
    return load(self.workdir, ema=self.ema, step=self.step, overrides=self.overrides, trust=self.trust)

  def shell(self, settings: Settings, command: str, *flags: str) -> str:
    """A command line, such as origin.shell(settings, "sample", "--seeds 0-3")."""
    words = [f"ddpm-jax {command} --workdir {shlex.quote(self.workdir)}"]
    words += [f"--{name} {shlex.quote(str(value))}" for name, value in self._other.items() if name != "trust"]
    words += ["--trust"] * self.trust
    for name, value in settings.short.items():
      words.append(f"--{name} {np.format_float_positional(value, trim='-') if isinstance(value, float) else value}")
    words += flags
    words += [shlex.quote(f"--config.{assignment}") for assignment in [*self.overrides, *settings.overrides]]
    return " ".join(words)

  def python(self, settings: Settings, call: str) -> str:
    """A program, such as origin.python(settings, "run.sample(range(4))")."""
    arguments = [repr(self.workdir), *(f"{name}={value!r}" for name, value in (self._other | settings.short).items())]
    if overrides := [*self.overrides, *settings.overrides]:
      arguments.append(f"overrides={overrides!r}")
    load = f"run = ddpm_jax.load({', '.join(arguments)})"
    if not call.startswith("edit."):
      return f"import ddpm_jax\n\n{load}\nimages = {call}"
    return f"import ddpm_jax\nfrom ddpm_jax.jobs import edit\n\n{load}.with_moments()\nimages = {call}"

  @property
  def _other(self) -> dict[str, Any]:
    values = {"ema": self.ema, "step": self.step, "trust": self.trust or None}
    return {name: value for name, value in values.items() if value is not None}
