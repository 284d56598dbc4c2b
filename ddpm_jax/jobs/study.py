"""Methods by numbers of steps for one checkpoint: the tables of Analytic-DPM and Extended-Analytic-DPM.

A cell is a method, a trajectory and a number of steps K; its results are a small JSON file of its own, so that a study can
be stopped, continued, and extended by more methods, more K, or another measure. What is measured, and how, is the caller's.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ddpm_jax.errors import UserError
from ddpm_jax.files.atomic import writing


@dataclasses.dataclass(frozen=True)
class Method:
  """A row of the papers' tables.

  Attributes:
    name: for files; in the papers' words, with "small" for the posterior variance and "large" for beta.
    network: which network draws: the one of the checkpoint ("plain"), or one with a head ("npr", "sn").
    sampling: fields of the config's sampling section.
    grid: of the optimal trajectory: "dp_seg", "dp_vb", or None where the papers have none.
  """

  name: str
  network: str
  sampling: Mapping[str, Any]
  grid: str | None = None

  @property
  def has_bound(self) -> bool:
    """Whether bits/dim are finite: not for DDIM."""
    return self.sampling["eta"] == 1


def methods(ddpm_cap: float = 2.0, ddim_cap: float = 1.0) -> list[Method]:
  """All methods of both papers.

  Args:
    ddpm_cap: most grey levels of noise in the last but one step, for DDPM with an optimal covariance: 2 on linear schedules
      and CelebA, 1 on cosine schedules and ImageNet (Analytic-DPM section 5).
    ddim_cap: the same for DDIM.

  Raises:
    UserError: for a cap that is not above 0.
  """
  if min(ddpm_cap, ddim_cap) <= 0:
    raise UserError(f"A cap of {min(ddpm_cap, ddim_cap):g} grey levels leaves no noise: give more than 0.")
  ddpm = dict(eta=1.0, keep_eps=False, residual=False)
  ddim = dict(eta=0.0, keep_eps=True, residual=False, covariance="optimal", cap_pixels=ddim_cap)
  best = dict(ddpm, covariance="optimal", cap_pixels=ddpm_cap)
  return [
    Method("DDPM-small", "plain", dict(ddpm, covariance="posterior", cap_pixels=None)),
    Method("DDPM-large", "plain", dict(ddpm, covariance="marginal", cap_pixels=1.0), "dp_vb"),
    Method("Analytic-DDPM", "plain", best, "dp_seg"),
    Method("Residual-DDPM", "plain", dict(best, residual=True), "dp_seg"),
    Method("NPR-DDPM", "npr", best),
    Method("SN-DDPM", "sn", best),
    Method("DDIM", "plain", dict(ddim, covariance="posterior", cap_pixels=None)),
    Method("Analytic-DDIM", "plain", ddim),
    Method("Residual-DDIM", "plain", dict(ddim, residual=True)),
    Method("NPR-DDIM", "npr", ddim),
    Method("SN-DDIM", "sn", ddim),
  ]


@dataclasses.dataclass(frozen=True)
class Cell:
  """One entry of the tables."""

  method: Method
  trajectory: str  # "even" or "optimal"
  K: int

  @property
  def grid(self) -> str:
    """The name of its grid in a config."""
    return "uniform" if self.trajectory == "even" else self.method.grid


def cells(methods: Iterable[Method], Ks: Sequence[int], trajectories: Sequence[str] = ("even",)) -> list[Cell]:
  """All cells in the order of Ks, without the optimal trajectories that a method does not have.

  Raises:
    UserError: for another trajectory than "even" and "optimal".
  """
  methods = list(methods)
  for trajectory in trajectories:
    if trajectory not in ("even", "optimal"):
      raise UserError(f'A trajectory is "even" or "optimal", not {trajectory!r}.')
  every = [Cell(method, trajectory, K) for K in Ks for trajectory in trajectories for method in methods]
  return [cell for cell in every if cell.trajectory == "even" or cell.method.grid]


Measure = Callable[[Cell], Mapping[str, Any] | None]  # JSON-able results; None where the measure does not apply


def run(
  cells: Sequence[Cell],
  measures: Mapping[str, Measure],
  folder: str | os.PathLike,
  identity: Mapping[str, Any],
  *,
  report: Callable[[str], None] = lambda line: None,
) -> list[dict]:
  """Measures what `folder` does not hold yet, and returns every cell's results.

  Args:
    cells: what to measure.
    measures: by name; each result is kept under it.
    folder: one JSON file per cell.
    identity: whose results these are (weights, numbers of images, seeds); kept in every file.
    report: told of each cell as it is done.

  Returns:
    For each cell a dict with "method", "trajectory", "K", and the results by name of the measure.

  Raises:
    UserError: if the folder holds results of something else.
  """
  folder, results = pathlib.Path(folder), []
  identity = json.loads(json.dumps(identity))
  for cell in cells:
    path = folder / f"{cell.method.name}_{cell.trajectory}_{cell.K}.json"
    result = {"method": cell.method.name, "trajectory": cell.trajectory, "K": cell.K, "identity": identity}
    if path.exists():
      kept = json.loads(path.read_text())
      if kept["identity"] != identity:
        raise UserError(
          f"{folder} holds a study of something else: {_difference(kept['identity'], identity)}; choose another --out."
        )
      result = kept
    for name, measure in measures.items():
      if name not in result:
        result[name] = measure(cell)
        with writing(path) as temporary:
          temporary.write_text(json.dumps(result, indent=1))
        report(f"{cell.method.name}, {cell.trajectory}, K = {cell.K}: {name} {json.dumps(result[name])}")
    results.append(result)
  return results


def table(results: Sequence[Mapping], measure: str, value: str) -> str:
  """A Markdown table of `value` of `measure`: a row per method and trajectory, a column per K."""
  Ks = sorted({result["K"] for result in results})
  lines = ["| K | " + " | ".join(map(str, Ks)) + " |", "|---" * (len(Ks) + 1) + "|"]
  for (method, trajectory), row in rows(results, measure, value).items():
    name = method if trajectory == "even" else f"{method}, {trajectory} trajectory"
    lines.append(f"| {name} | " + " | ".join(f"{row[K]:.2f}" if K in row else "" for K in Ks) + " |")
  return "\n".join(lines)


def plot(
  results: Sequence[Mapping], panels: Mapping[str, tuple[str, str]], path: str | os.PathLike, title: str = ""
) -> None:
  """A PNG with a panel per measure, curves over K.

  Args:
    panels: {measure: (value, what the axis says)}.
  """
  import matplotlib.figure

  figure = matplotlib.figure.Figure(figsize=(5.2 * len(panels), 4), layout="constrained")
  Ks = sorted({result["K"] for result in results})
  colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(result["method"] for result in results))}
  axes_of = figure.subplots(1, len(panels), squeeze=False)[0]
  for axes, (measure, (value, label)) in zip(axes_of, panels.items(), strict=True):
    for (method, trajectory), row in rows(results, measure, value).items():
      even = trajectory == "even"
      name = method if even else f"{method}, {trajectory}"
      axes.loglog(list(row), list(row.values()), "-o" if even else "--s", ms=3, lw=1.2, color=colors[method], label=name)
    axes.set(xlabel="steps K", ylabel=label)
    axes.set_xticks(Ks, map(str, Ks))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
  figure.suptitle(title)
  with writing(path) as temporary:
    figure.savefig(temporary, dpi=110)


def rows(results: Sequence[Mapping], measure: str, value: str) -> dict[tuple[str, str], dict[int, float]]:
  """{(method, trajectory): {K: value of measure}}, K rising, where it was measured."""
  found: dict = {}
  for result in sorted(results, key=lambda result: result["K"]):
    if result.get(measure):
      found.setdefault((result["method"], result["trajectory"]), {})[result["K"]] = result[measure][value]
  return found


def _difference(old: Mapping, new: Mapping) -> str:
  key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
  return f"{key} is {old.get(key)} there and {new.get(key)} here"
