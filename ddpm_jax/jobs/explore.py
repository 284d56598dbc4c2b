"""One way of drawing, in numbers and pictures: what the page of `ddpm-jax explore` shows.

run = ddpm_jax.load("runs/digits")
drawn = explore.draw(run, explore.Settings("ddim", 20, eta=0.5), seeds=[0, 1, 2, 3])
print(drawn.evaluations, drawn.seconds, explore.shell(run, explore.Settings("ddim", 20, eta=0.5), [0, 1, 2, 3]))
"""

import dataclasses
import math
import shlex
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import build
from ddpm_jax.config import ANCESTRAL, nearest
from ddpm_jax.data import images as pixels
from ddpm_jax.diffusion.noise import PerImage, image_keys
from ddpm_jax.diffusion.prediction import Prediction
from ddpm_jax.errors import UserError
from ddpm_jax.jobs import analytic, edit
from ddpm_jax.jobs.trained import Trained, checked_seeds

TWICE = ("classifier_free", "autoguidance", "perturbed_attention")  # guidance that evaluates a network twice per step
CURVES = ("posterior", "marginal", "learned_range", "learned_diagonal", "optimal")


@dataclasses.dataclass(frozen=True)
class Settings:
  """How images are drawn: flags of `ddpm-jax sample`, with the same limits. None: as the sampler or the run says.

  The values may come from a stranger, so that names are looked up in tables and never imported.

  Raises:
    UserError: for a name that is not in its table, or a value that is not a finite number.
  """

  sampler: str
  steps: int | None = None
  eta: float | None = None
  guidance: float | None = None
  covariance: str | None = None

  def __post_init__(self):
    _known(self.sampler, build.presets(), "Sampler")
    if self.steps is not None:
      object.__setattr__(self, "steps", whole(self.steps, "--steps"))
    for name in ("eta", "guidance"):
      if getattr(self, name) is not None:
        object.__setattr__(self, name, number(getattr(self, name), f"--{name}"))
    if self.covariance is not None:
      _known(self.covariance, build.COVARIANCES, "Covariance")

  @property
  def short(self) -> dict[str, Any]:
    """The short flags, as keyword arguments of `ddpm_jax.load`."""
    values = {name: getattr(self, name) for name in ("sampler", "steps", "eta", "guidance")}
    return {name: value for name, value in values.items() if value is not None}

  @property
  def overrides(self) -> list[str]:
    """Assignments to fields of the config."""
    return [] if self.covariance is None else [f"sampling.covariance={self.covariance}"]

  def of(self, trained: Trained) -> Trained:
    """`trained`, drawing in this way. Moments that it needs are measured first."""
    return trained.using(*self.overrides, **self.short).with_moments()


def whole(value: Any, name: str) -> int:
  """`value` as an integer."""
  if number(value, name) != int(value):
    raise UserError(f"{name} {value} should be a whole number.")
  return int(value)


def number(value: Any, name: str) -> float:
  """`value` as a float."""
  if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
    raise UserError(f"{name} {value!r} should be a number.")
  return float(value)


def _known(name: Any, table: Any, what: str) -> None:
  if not isinstance(name, str) or name not in table:
    raise UserError(f"{what} {name!r} is unknown; {nearest(str(name), list(table))}")


# ---------------------------------------------------------------- samples


@dataclasses.dataclass(frozen=True)
class Drawn:
  """Samples, and what there is to know of them. K is the number of steps.

  Attributes:
    images: uint8 [N,H,W,C].
    x_t: uint8 [K,H,W,C], where each step of the first image begins.
    x0: uint8 [K,H,W,C], what the network believes of x_0 there.
    levels: int [K], the level that each step leaves.
    alpha_bar: [T+1], the schedule.
    variances: [K] by the name of a covariance: its variance of each step, averaged over pixels. Empty for solvers whose
      steps have none.
    evaluations: of a network, for each image.
    seconds: for all images, with the compilation if there was one.
    compiled: whether there was one.
  """

  images: np.ndarray
  x_t: np.ndarray
  x0: np.ndarray
  levels: np.ndarray
  alpha_bar: np.ndarray
  variances: dict[str, np.ndarray]
  evaluations: int
  seconds: float
  compiled: bool


def draw(
  trained: Trained,
  settings: Settings,
  seeds: Sequence[int],
  label: int | None = None,
  *,
  progress: Callable[[int, jax.Array], None] | bool = False,
) -> Drawn:
  """Draws images of these seeds, all of the class `label`, as `Trained.sample` does. None: all classes in turn.

  Args:
    progress: see Trained.sample.

  Raises:
    UserError: as `ddpm-jax sample` with the same flags.
  """
  run = settings.of(trained)
  labels = None if label is None else [whole(label, "Class")] * len(seeds)
  new = program(run, len(seeds)) not in _PROGRAMS
  began = time.monotonic()
  images, (x_s, x0, believed) = run.sample(seeds, labels, save=_way, progress=progress)
  seconds = time.monotonic() - began
  _PROGRAMS.add(program(run, len(seeds)))
  steps = build.sampler(run.config, run.guide).steps
  x_T = PerImage(image_keys(checked_seeds(seeds[:1]))).initial(run.image_shape)
  twice = run.config.sampling.guidance.kind in TWICE
  return Drawn(
    images,
    np.concatenate([pixels.to_uint8(np.asarray(x_T)), x_s[:-1, 0]]),
    x0[:, 0],
    np.asarray(steps.t.n),
    build.schedule(run.config).alpha_bar,
    _variances(run, believed),
    len(steps.left) * (2 if twice else 1),
    seconds,
    new,
  )


_PROGRAMS: set[Hashable] = set()


def compiles(trained: Trained, settings: Settings, count: int) -> bool:
  """Whether `draw` has to compile a program for this many images first."""
  return program(settings.of(trained), count) not in _PROGRAMS


def program(trained: Trained, count: int) -> Hashable:
  """What decides which compiled program draws: the structure and shapes of denoiser and sampler, and not their values."""
  parts = build.sampling(trained.config, trained.network, trained.guide)
  leaves, structure = jax.tree.flatten(parts)
  return count, trained.image_shape, structure, tuple((np.shape(leaf), np.result_type(leaf)) for leaf in leaves)


def _way(x: jax.Array, pred: Prediction) -> Any:
  """What is kept of each step: pixels of the first image, and for each image the mean of what is believed of variances."""
  mean = lambda field: None if field is None else jnp.broadcast_to(field, x.shape).mean((1, 2, 3))
  believed = {name: mean(getattr(pred, name)) for name in ("eps_var", "var_frac", "log_var")}
  return pixels.to_uint8(x[:1]), pixels.to_uint8(pred.x0[:1]), believed


def _variances(trained: Trained, believed: dict[str, np.ndarray | None]) -> dict[str, np.ndarray]:
  """The variance of each step of the first image, [K], under each covariance that this network and eta allow."""
  section = trained.config.sampling
  if section.solver != "gaussian":
    return {}
  if section.moments is None and trained.workdir is not None and (kept := analytic.kept_moments(trained)) is not None:
    trained = trained.changed(sampling=dict(moments=str(kept)))
  rows = build.sampler(trained.config, trained.guide).steps
  first = {name: value if value is None else value[:, 0] for name, value in believed.items()}
  gamma = build.moments(trained.config)
  if first["eps_var"] is None and gamma is not None:
    first["eps_var"] = 1 - gamma[rows.t.n].astype(np.float32)
  pred = Prediction(None, None, **first)
  found = {}
  for name in build.covariances(trained.config):
    if name in CURVES and (section.eta == 1 or name not in ANCESTRAL):
      found[name] = np.exp(np.asarray(build.covariance_of(trained.config, name, section.eta)(pred, rows)))
  return found


# ---------------------------------------------------------------- edits


def mix(trained: Trained, settings: Settings, first: int, last: int, weight: float, label: int | None = None) -> np.ndarray:
  """Images uint8 [10,H,W,C] between two seeds: at `weight`, and nine at even weights from 0 to 1 (DDIM section 5.3).

  Raises:
    UserError: for a weight that is not between 0 and 1, and as edit.mixed.
  """
  if not 0 <= number(weight, "Weight") <= 1:
    raise UserError(f"Weight {weight} must be between 0, the first seed, and 1, the last.")
  ends = [whole(seed, "Seed") for seed in (first, last)]
  label = 0 if label is None else whole(label, "Class")
  return edit.mixed(settings.of(trained), *ends, [weight, *np.linspace(0, 1, 9)], label)


def encode(trained: Trained, settings: Settings, index: int) -> tuple[np.ndarray, float]:
  """(uint8 [3,H,W,C]: a test image, its latent, its reconstruction; mean square error of pixels from 0 to 1)."""
  run = settings.of(trained)
  source, index = _test_image(run, index)
  latent, again, error = edit.there_and_back(run, source, [index], len(build.grid(run.config)) - 1)
  shown = pixels.to_uint8(latent / 3)  # three standard deviations, so that noise is not cut off
  return np.concatenate([source.gather(np.array([index]))[0], shown, again]), float(error[0])


def fill(trained: Trained, settings: Settings, index: int, seed: int, hidden: str, resamples: int) -> np.ndarray:
  """uint8 [3,H,W,C]: a test image, the same without a part, and with the part drawn anew by RePaint.

  Args:
    hidden: which part; see edit.known_pixels.
    resamples: passes over each stretch of up to 10 steps.
  """
  run = settings.of(trained)
  source, index = _test_image(run, index)
  _known(hidden, ("center", "left", "top"), "Part")
  known = edit.known_pixels(hidden, *run.image_shape[:2])
  resamples = whole(resamples, "--resamples")
  drawn = edit.inpaint(run, source, [index], [whole(seed, "Seed")], known, jump=jump(run), resamples=resamples)
  real = source.gather(np.array([index]))[0]
  return np.concatenate([real, np.where(known[:, :, None], real, 128).astype(np.uint8), drawn])


def jump(trained: Trained) -> int:
  """The length of RePaint's jumps: the paper's 10 steps, or all if there are fewer."""
  return min(10, len(build.grid(trained.config)) - 1)


def _test_image(trained: Trained, index: Any) -> tuple[Any, int]:
  source = trained.dataset(trained.config.data.test_split)
  index = whole(index, "Image")
  if not 0 <= index < len(source):
    raise UserError(f"There is no test image {index}: it must be between 0 and {len(source) - 1}.")
  return source, index


# ---------------------------------------------------------------- the same on the command line and in Python


def shell(trained: Trained, settings: Settings, command: str, *flags: str, config: Sequence[str] = ()) -> str:
  """A command line, such as shell(run, settings, "sample", "--seeds 0-3").

  Args:
    command: "sample", or a task of edit such as "edit inpaint".
    flags: beside those of the settings.
    config: assignments with which the run was loaded.
  """
  words = [f"ddpm-jax {command} --workdir {shlex.quote(str(trained.workdir))}"]
  for name, value in settings.short.items():
    words.append(f"--{name} {np.format_float_positional(value, trim='-') if isinstance(value, float) else value}")
  words += flags
  words += [shlex.quote(f"--config.{assignment}") for assignment in [*config, *settings.overrides]]
  return " ".join(words)


def python(trained: Trained, settings: Settings, call: str, *, config: Sequence[str] = ()) -> str:
  """A program, such as python(run, settings, "run.sample(range(4))")."""
  arguments = [repr(str(trained.workdir)), *(f"{name}={value!r}" for name, value in settings.short.items())]
  if overrides := [*config, *settings.overrides]:
    arguments.append(f"overrides={overrides!r}")
  modules = "import ddpm_jax\n" + ("from ddpm_jax.jobs import edit\n" if call.startswith("edit.") else "")
  return f"{modules}\nrun = ddpm_jax.load({', '.join(arguments)})\nimages = {call}"
