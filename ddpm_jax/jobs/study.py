"""A study: methods by numbers of steps and by any other setting, for one or several networks.

Every cell keeps its results in a small JSON file of its own. A study can therefore be stopped, continued, and extended by
methods, steps, axes, or measures; only what is missing is measured. The tables are written after every cell.

    run = ddpm_jax.load("runs/mnist")
    spec = study.Study({"plain": run}, folder="runs/mnist/study", Ks=(10, 25), likelihood=128)
    results = study.run(spec)
"""

import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax import build
from ddpm_jax.diffusion import grid as grids
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import quality
from ddpm_jax.evaluation import study_tables as tables
from ddpm_jax.files import measurements, npz
from ddpm_jax.jobs import results
from ddpm_jax.jobs.methods import EVEN, Cell, Method, cells, known, papers_methods
from ddpm_jax.jobs.trained import Trained
from ddpm_jax.metrics import precision_recall
from ddpm_jax.metrics.inception_score import inception_score

HEADS = {"npr": "residual", "sn": "second_moment"}


@dataclasses.dataclass(frozen=True)
class Study:
  """What to measure.

  Attributes:
    networks: by label; "plain" is the first one, "npr" and "sn" are heads on its backbone.
    folder: of the results.
    Ks: numbers of steps.
    names: of the methods; None: all that the networks and moments allow.
    extra: methods of the user, measured besides `names`.
    trajectories: of "even" and "optimal" (Analytic-DPM section 5).
    axes: values by the name of an axis: eta, grid, skip, guidance.
    measures: names of evaluation.study_tables.PANELS; None: bits/dim if `likelihood` is positive, and the distance if
      `samples` is.
    moments: files of `ddpm-jax moments` by the label of a network; a method that needs absent moments is left out.
    costs: the file of `ddpm-jax moments --costs`, for the optimal trajectory of DDPM-large.
    samples: images per cell, of seeds 0, 1, ...; every cell starts from the same noise.
    repeats: how often samples are drawn, with new seeds each time, for the spread.
    likelihood: test images of bits/dim.
    ddpm_cap: see `papers_methods`.
  """

  networks: Mapping[str, Trained]
  folder: str | os.PathLike
  Ks: Sequence[int]
  names: Sequence[str] | None = None
  extra: Sequence[Method] = ()
  trajectories: Sequence[str] = ("even",)
  axes: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
  measures: Sequence[str] | None = None
  moments: Mapping[str, str | os.PathLike] = dataclasses.field(default_factory=dict)
  costs: str | os.PathLike | None = None
  samples: int = 0
  repeats: int = 1
  likelihood: int = 0
  ddpm_cap: float = 2.0

  @property
  def plain(self) -> Trained:
    """The first network."""
    return next(iter(self.networks.values()))

  @functools.cached_property
  def cells(self) -> list[Cell]:
    """Everything that will be measured.

    Raises:
      UserError: for K beyond the chain, unknown names, or networks of different schedules.
    """
    self._check_networks()
    for K in self.Ks:
      grids.check_steps(build.schedule(self.plain.config).T, K)
    seconds = {label: trained.config.prediction.second for label, trained in self.networks.items()}
    methods = known(self.names, papers_methods(self.ddpm_cap))
    head = next((m for m in methods if self.names and m.second is not None and m.second not in seconds.values()), None)
    if head:
      flag = {second: f"--{name}" for name, second in HEADS.items()}.get(head.second, "--networks")
      raise UserError(f"{head.name} needs a network with the second head {head.second!r}: give its run as {flag}.")
    found = cells([*methods, *self.extra], self.Ks, networks=seconds, trajectories=self.trajectories, axes=self.axes)
    found = [cell for cell in found if not cell.method.needs_moments or cell.network in self.moments]
    return [cell for cell in found if cell.sampling["grid"] != "dp_vb" or self.costs is not None]

  def check(self) -> None:
    """Builds the sampler of every cell whose moments are there.

    Raises:
      UserError: for the first cell that cannot be drawn, before anything is measured.
    """
    for cell in self.cells:
      using = self.using(cell)
      moments = self.moments.get(cell.network)
      if moments and not pathlib.Path(moments).exists():  # they are still to be measured
        if cell.method.needs_moments:
          continue
        using = using.changed(sampling={"moments": None})
      build.sampling(using.config, using.network)

  def using(self, cell: Cell) -> Trained:
    """The network of a cell with the cell's settings."""
    trained = self.networks[cell.network]
    moments = self.moments.get(cell.network)
    costs = self.costs
    files = {"moments": moments and str(moments), "costs": costs and str(costs)}
    sampling = {"solver": "gaussian", "clip": "x0"} | files | cell.sampling
    if "guidance" in sampling:
      sampling["guidance"] = trained.config.sampling.guidance.to_dict() | sampling["guidance"]
    evaluation = {
      "covariance": sampling.get("covariance"),
      "last_row": "full_chain",
      "grid": sampling["grid"],
      "steps": sampling["steps"],
    }
    return trained.changed(sampling=sampling, evaluation=evaluation)

  def _check_networks(self) -> None:
    for name, second in HEADS.items():
      if name not in self.networks:
        continue
      config = self.networks[name].config
      if not np.array_equal(build.schedule(config).alpha_bar, build.schedule(self.plain.config).alpha_bar):
        raise UserError(f"The {name} head was trained on another schedule than the network: train it on this backbone.")
      if config.prediction.second != second:
        raise UserError(
          f"--{name} expects a run of --config {name}, whose second head is {second!r}, not {config.prediction.second!r}."
        )

  @property
  def panels(self) -> list[tables.Panel]:
    """The measures, as tables show them."""
    names = self.measures
    if names is None:
      names = [name for name, count in (("distance", self.samples), ("bits_per_dim", self.likelihood)) if count]
    return [tables.PANELS[name] for name in names]

  def identity(self) -> dict[str, Any]:
    """Whose results these are; results of anything else in the folder are refused."""
    gamma = {
      label: npz.digest({"gamma": measurements.gamma(path, build.schedule(self.networks[label].config))})[:16]
      for label, path in self.moments.items()
    }
    identity = {
      "weights": {name: [trained.step, trained.weights] for name, trained in self.networks.items()},
      "moments": gamma.get("plain") if set(gamma) <= {"plain"} else gamma,
      "samples": self.samples,
      "likelihood": self.likelihood,
      "ddpm_cap": self.ddpm_cap,
    }
    return identity | ({"repeats": self.repeats} if self.repeats > 1 else {})


def run(
  study: Study,
  judge: quality.Yardstick | None = None,
  *,
  report: Callable[[str], None] = print,
) -> list[dict]:
  """Measures what the study's folder does not hold yet, and returns every cell's results.

  Args:
    study: what to measure.
    judge: measures samples against real images; needed unless only bits/dim are measured.
    report: called with one line per result.

  Raises:
    UserError: if the folder holds results of something else, or the study measures nothing.
  """
  if not study.cells:
    raise UserError("No method fits these networks, moments, and settings: leave out --methods, or measure moments first.")
  of = _Measures(study, judge)
  measures = {panel.measure: getattr(of, panel.measure) for panel in study.panels}
  after = lambda found: results.write_tables(found, study.panels, study.folder)
  return results.measure_all(study.cells, measures, study.folder, study.identity(), report=report, after=after)


class _Measures:
  """The measures of a study's cells; one drawing serves all that need samples."""

  def __init__(self, study: Study, judge: quality.Yardstick | None):
    self.study = study
    self._judge = judge
    self._last: tuple[Cell, list[np.ndarray]] | None = None

  @property
  def judge(self) -> quality.Yardstick:
    if self._judge is None:
      raise UserError("Samples are measured against real images: give the study a judge, or measure bits/dim alone.")
    return self._judge

  def bits_per_dim(self, cell: Cell) -> dict | None:
    """The bound on held-out images, where it is finite."""
    if not cell.has_bound:
      return None
    began = time.monotonic()
    source = self.study.plain.dataset(self.study.plain.config.data.test_split)
    total = self.study.using(cell).bits_per_dim(source, self.study.likelihood).total
    error = float(total.std(ddof=1) / len(total) ** 0.5) if len(total) > 1 else None
    return {"mean": float(total.mean()), "standard_error": error, "seconds": _since(began)}

  def distance(self, cell: Cell) -> dict | None:
    """The Fréchet distance of samples. Optimal trajectories are for bits/dim, as in the papers."""
    if cell.trajectory != EVEN:
      return None
    began = time.monotonic()
    found = [self.judge(images) for images in self._drawn(cell)]
    samples = [one.samples for one in found]
    return {
      "samples": float(np.mean(samples)),
      "spread": float(np.std(samples, ddof=1)) if len(samples) > 1 else None,
      "real": found[0].real,
      "count": found[0].count,
      "features": found[0].classifier["sha256"],
      "seconds": _since(began),
    }

  def quality(self, cell: Cell) -> dict | None:
    """Inception score, precision, and recall of samples, in the same features as the distance."""
    if cell.trajectory != EVEN:
      return None
    began = time.monotonic()
    found = [self._qualities(images) for images in self._drawn(cell)]
    means = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    return means | self._qualities_of_real | {"seconds": _since(began)}

  def _drawn(self, cell: Cell) -> list[np.ndarray]:
    """Samples uint8 [N,H,W,C] of each repeat."""
    if self._last is None or self._last[0] != cell:
      using = self.study.using(cell)
      count = self.study.samples
      images = [using.sample(range(i * count, (i + 1) * count)) for i in range(self.study.repeats)]
      self._last = (cell, images)
    return self._last[1]

  def _qualities(self, images: np.ndarray) -> dict[str, float]:
    net = self.judge.net
    found = precision_recall.precision_recall(self._reference, quality.in_parts(net.features, images))
    score = inception_score(quality.in_parts(net.logits, images), None)
    return {"inception_score": score.mean, "precision": found.precision, "recall": found.recall}

  @functools.cached_property
  def _reference(self) -> np.ndarray:
    """Features of the half of the real images that samples are compared with."""
    return quality.in_parts(self.judge.net.features, self.judge.real[: len(self.judge.real) // 2])

  @functools.cached_property
  def _qualities_of_real(self) -> dict[str, float]:
    half = len(self.judge.real) // 2
    found = self._qualities(self.judge.real[half : half + self.study.samples])
    return {f"real_{name}": value for name, value in found.items()}


def _since(began: float) -> float:
  return round(time.monotonic() - began, 1)
