"""Images, the way to them, and the numbers that go with them.

trained = ddpm_jax.load("runs/digits")
drawn = drawing.draw(trained, Settings("ddim", 20, eta=0.5), seeds=[0, 1, 2, 3])
print(drawn.evaluations, drawn.seconds)
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import build
from ddpm_jax.config import ANCESTRAL
from ddpm_jax.data import images as pixels
from ddpm_jax.diffusion.noise import PerImage, image_keys
from ddpm_jax.diffusion.prediction import Prediction
from ddpm_jax.explore.settings import Say, Settings, silent, whole
from ddpm_jax.jobs import analytic
from ddpm_jax.jobs.trained import Trained, checked_seeds

TWICE = ("classifier_free", "autoguidance", "perturbed_attention")  # guidance that evaluates a network twice per step
CURVES = ("posterior", "marginal", "learned_range", "learned_diagonal", "optimal")
LARGE = 3_000_000  # parameters of a network that is slow enough for its steps to be counted


@dataclasses.dataclass(frozen=True)
class Drawn:
  """Samples, and what there is to know about them. K is the number of steps.

  Attributes:
    images: uint8 [N,H,W,C].
    x_t: uint8 [K,H,W,C], where each step of the first image begins.
    x0: uint8 [K,H,W,C], what the network believes about x_0 there.
    levels: int [K], the level that each step leaves.
    alpha_bar: [T+1], the schedule.
    variances: [K - 1] by the name of a covariance: its variance of each step but the last, which adds no noise, averaged
      over pixels. Empty for solvers whose steps have none.
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


def draw(trained: Trained, settings: Settings, seeds: Sequence[int], label: int | None = None, say: Say = silent) -> Drawn:
  """Draws images of these seeds, all of the class `label`, as `Trained.sample` does. None: all classes in turn.

  Raises:
    UserError: as `ddpm-jax sample` with the same flags.
  """
  run = settings.of(trained, say)
  seeds = [whole(seed, "Seed") for seed in seeds]
  labels = run.labels(seeds, None if label is None else [whole(label, "Class")] * len(seeds))
  checked_seeds(seeds)
  steps = build.sampler(run.config, run.guide).steps
  METER.say = say
  with compiling(("draw", program(run, len(seeds))), f"{len(steps.left)} steps", say) as compiled:
    began = time.monotonic()
    images, (x_s, x0, believed) = run.sample(seeds, labels, save=_way, progress=METER if _is_large(run) else False)
    seconds = time.monotonic() - began
  x_T = PerImage(image_keys(checked_seeds(seeds[:1]))).initial(run.image_shape)
  return Drawn(
    images,
    np.concatenate([pixels.to_uint8(np.asarray(x_T)), x_s[:-1, 0]]),
    x0[:, 0],
    np.asarray(steps.t.n),
    build.schedule(run.config).alpha_bar,
    _variances(run, believed),
    len(steps.left) * (2 if run.config.sampling.guidance.kind in TWICE else 1),
    seconds,
    compiled,
  )


# ---------------------------------------------------------------- what is compiled, and how far a program is


_COMPILED: set[Hashable] = set()
_ONE_AT_A_TIME = threading.Lock()  # two threads that need the same new program would both compile it


@contextlib.contextmanager
def compiling(key: Hashable, what: str, say: Say) -> Iterator[bool]:
  """Says that a program is compiled for `what` unless one with this key has run before. Gives whether it is compiled."""
  with _ONE_AT_A_TIME:
    new = key not in _COMPILED
    say(f"Compiling a program for {what}. Other values of the settings will use it too." if new else "Drawing")
    yield new
    _COMPILED.add(key)


def program(trained: Trained, count: int) -> Hashable:
  """What decides which compiled program draws: the structure and shapes of denoiser and sampler, and not their values."""
  parts = build.sampling(trained.config, trained.network, trained.guide)
  leaves, structure = jax.tree.flatten(parts)
  return (
    count,
    trained.image_shape,
    structure,
    tuple((np.shape(leaf), str(getattr(leaf, "dtype", type(leaf)))) for leaf in leaves),
  )


class Meter:
  """Says how many steps of a running program are done. Compiled programs hold it, so there is one, `METER`."""

  def __init__(self):
    self.say: Say = silent

  def __call__(self, total: int, left: jax.Array) -> None:
    done = total - int(left)
    self.say(f"Step {done} of {total}", done / total)


METER = Meter()


def _is_large(trained: Trained) -> bool:
  """Whether steps are worth counting.

  JAX does not keep a program that counts on disk, so that a small network would start later.
  """
  return sum(leaf.size for leaf in jax.tree.leaves(trained.network.params)) > LARGE


# ---------------------------------------------------------------- what is kept of each step


def _way(x: jax.Array, pred: Prediction) -> Any:
  """What is kept of each step: pixels of the first image, and for each image the mean of what is believed of variances."""
  mean = lambda field: None if field is None else jnp.broadcast_to(field, x.shape).mean((1, 2, 3))
  believed = {name: mean(getattr(pred, name)) for name in ("eps_var", "var_frac", "log_var")}
  return pixels.to_uint8(x[:1]), pixels.to_uint8(pred.x0[:1]), believed


def _variances(trained: Trained, believed: dict[str, np.ndarray | None]) -> dict[str, np.ndarray]:
  """Variances of all steps but the last, [K - 1], of the first image, under each covariance that network and eta allow."""
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
      found[name] = np.exp(np.asarray(build.covariance_of(trained.config, name, section.eta)(pred, rows)))[:-1]
  return found
