"""Rows and columns of a study: methods of the papers, axes that vary one setting, and the cells that they span."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ddpm_jax import build
from ddpm_jax.config import nearest
from ddpm_jax.errors import UserError

EVEN = "even"
OPTIMAL = "optimal"


@dataclasses.dataclass(frozen=True)
class Method:
  """A row of the papers' tables.

  Attributes:
    name: used in tables and file names. "small" is the posterior variance, "large" is beta.
    sampling: fields of the config's sampling section.
    second: the second head that the network must have, or None for any network.
    best_grid: the grid of its optimal trajectory, "dp_seg" or "dp_vb", or None where the papers have none.
  """

  name: str
  sampling: Mapping[str, Any]
  second: str | None = None
  best_grid: str | None = None

  @property
  def needs_moments(self) -> bool:
    """Whether its covariance comes from measured moments instead of a second head."""
    return self.second is None and str(self.sampling.get("covariance")).startswith("optimal")


def papers_methods(ddpm_cap: float = 2.0, ddim_cap: float = 1.0) -> list[Method]:
  """The methods of Improved DDPM, Analytic-DPM, and Extended-Analytic-DPM.

  Args:
    ddpm_cap: the noise, in grey levels, that DDPM with an optimal covariance may add in the last but one step: 2 on linear
      schedules and CelebA, 1 on cosine schedules and ImageNet (Analytic-DPM section 5).
    ddim_cap: the same for DDIM.

  Raises:
    UserError: for a cap that is not positive.
  """
  if min(ddpm_cap, ddim_cap) <= 0:
    raise UserError(f"A cap of {min(ddpm_cap, ddim_cap):g} grey levels leaves no noise: use a positive number.")
  ddpm = dict(eta=1.0, keep_eps=False, residual=False)
  ddim = dict(eta=0.0, keep_eps=True, residual=False, covariance="optimal", cap_pixels=ddim_cap)
  best = dict(ddpm, covariance="optimal", cap_pixels=ddpm_cap)
  return [
    Method("DDPM-small", dict(ddpm, covariance="posterior", cap_pixels=None)),
    Method("DDPM-large", dict(ddpm, covariance="marginal", cap_pixels=1.0), best_grid="dp_vb"),
    Method("Learned-DDPM", dict(ddpm, covariance="learned_range", cap_pixels=None), "range"),
    Method("Analytic-DDPM", best, best_grid="dp_seg"),
    Method("Residual-DDPM", dict(best, residual=True), best_grid="dp_seg"),
    Method("NPR-DDPM", best, "residual"),
    Method("SN-DDPM", best, "second_moment"),
    Method("DDIM", dict(ddim, covariance="posterior", cap_pixels=None)),
    Method("Analytic-DDIM", ddim),
    Method("Residual-DDIM", dict(ddim, residual=True)),
    Method("NPR-DDIM", ddim, "residual"),
    Method("SN-DDIM", ddim, "second_moment"),
  ]


def of_preset(name: str) -> Method:
  """The method of a sampler that `ddpm-jax samplers` lists."""
  preset = build.presets()[name]
  grid = "uniform" if preset.grid == "sections" else preset.grid
  return Method(name, {**build.METHOD, **preset.sampling, "grid": grid}, preset.second)


@dataclasses.dataclass(frozen=True)
class Axis:
  """A setting that a study varies.

  Attributes:
    name: of the axis, on the command line and in tables.
    field: of the config's sampling section, such as "eta" or "guidance.scale".
    parse: text of the command line to a value.
    label: the text of a figure's axis.
  """

  name: str
  field: str
  parse: Callable[[str], Any]
  label: str


AXES = {
  axis.name: axis
  for axis in (
    Axis("eta", "eta", float, "eta"),
    Axis("grid", "grid", str, "grid"),
    Axis("skip", "skip", float, "skipped share of the chain"),
    Axis("guidance", "guidance.scale", float, "guidance scale"),
  )
}


@dataclasses.dataclass(frozen=True)
class Cell:
  """One entry of the tables: a method of one network, K steps, and a value for each axis.

  Attributes:
    network: the label of the network.
    trajectory: "even", or "optimal" for the method's best grid.
    settings: (axis, value) pairs.
  """

  method: Method
  K: int
  network: str = "plain"
  trajectory: str = EVEN
  settings: tuple[tuple[str, Any], ...] = ()

  @property
  def row(self) -> str:
    """The row of a table."""
    words = [self.method.name]
    if self.network not in ("plain", "npr", "sn"):
      words.append(self.network)
    if self.trajectory != EVEN:
      words.append(f"{self.trajectory} trajectory")
    return ", ".join(words)

  @property
  def file(self) -> str:
    """The name of the file of its results, without spaces."""
    parts = [self.method.name, self.trajectory, str(self.K), *(f"{name}{value}" for name, value in self.settings)]
    if self.network not in ("plain", "npr", "sn"):
      parts.insert(0, self.network)
    return re.sub(r"[^\w.+=-]", "-", "_".join(parts)) + ".json"

  @property
  def sampling(self) -> dict[str, Any]:
    """Fields of the config's sampling section."""
    grid = self.method.best_grid if self.trajectory == OPTIMAL else self.method.sampling.get("grid", "uniform")
    fields = dict(self.method.sampling, grid=grid, steps=self.K)
    for name, value in self.settings:
      section, _, field = AXES[name].field.rpartition(".")
      if section:
        fields[section] = fields.get(section, {}) | {field: value}
      else:
        fields[field] = value
    return fields

  @property
  def has_bound(self) -> bool:
    """Whether it has finite bits/dim: the ancestral chain does, without guidance and over all levels."""
    sampling = self.sampling
    plain = sampling.get("solver", "gaussian") == "gaussian" and "guidance" not in sampling and not sampling.get("skip")
    return plain and sampling.get("eta") == 1

  @property
  def is_defined(self) -> bool:
    """Whether the method allows these settings: beta and learned variances belong to the ancestral chain."""
    sampling = self.sampling
    return sampling.get("covariance") not in ("marginal", "learned_range") or sampling.get("eta") == 1


def cells(
  methods: Iterable[Method],
  Ks: Sequence[int],
  *,
  networks: Mapping[str, str | None] | None = None,
  trajectories: Sequence[str] = (EVEN,),
  axes: Mapping[str, Sequence[Any]] | None = None,
) -> list[Cell]:
  """Every combination that is defined, in the order of Ks.

  Args:
    methods: rows of the tables.
    Ks: numbers of steps.
    networks: second head by label; None: one network without a second head, "plain".
    trajectories: of "even" and "optimal".
    axes: values by the name of an axis.

  Raises:
    UserError: for an unknown trajectory or axis.
  """
  for trajectory in trajectories:
    if trajectory not in (EVEN, OPTIMAL):
      raise UserError(f'Trajectory {trajectory!r} is unknown; choose from "even" and "optimal".')
  axes = axes or {}
  for name in axes:
    if name not in AXES:
      raise UserError(f"Axis {name!r} is unknown; {nearest(name, AXES)}")
  networks = {"plain": None} if networks is None else networks
  settings = [tuple(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
  found = []
  for K, trajectory, method, (label, second), setting in itertools.product(
    Ks, trajectories, list(methods), networks.items(), settings
  ):
    cell = Cell(method, K, label, trajectory, setting)
    if trajectory == OPTIMAL and not (method.best_grid and not dict(setting).get("grid")):
      continue
    if fits(method, second) and cell.is_defined:
      found.append(cell)
  return found


def fits(method: Method, second: str | None) -> bool:
  """Whether a network with that second head serves the method.

  A network with an NPR or SN head has the backbone of the plain one, which represents it for the other methods.
  """
  return method.second == second or (method.second is None and second in ("range", "log_var"))


def known(names: Sequence[str] | None, methods: Sequence[Method]) -> list[Method]:
  """The methods of these names, from `methods` and from the samplers that `ddpm-jax samplers` lists; None: `methods`.

  Raises:
    UserError: for an unknown name.
  """
  if names is None:
    return list(methods)
  by_name = {method.name: method for method in methods}
  presets = build.presets()
  for name in names:
    if name not in by_name and name not in presets:
      raise UserError(f"Method {name!r} is unknown; {nearest(name, [*by_name, *presets])}")
  return [by_name[name] if name in by_name else of_preset(name) for name in names]
