"""Guidance: denoisers and kernels that steer samples towards a condition.

By Bayes' rule the score of p(x_t | y) is that of p(x_t) plus grad log p(y | x_t); with eps = -sigma_t * score and Tweedie's
x0 = (x_t + sigma_t^2 score) / alpha_t, a scale s on that gradient g changes the prediction to

    eps' = eps - s sigma_t g,            x0' = x0 + s sigma_t^2 / alpha_t g                   (ADM algorithm 2)          (1)

and, to first order in its variance, the mean of an ancestral step to mean + s Sigma g       (ADM algorithm 1)          (2)

Without a classifier, the difference of two predictions takes the place of the gradient, in both eps and x0:

    p' = weaker + s (stronger - weaker)                                                                                (3)

The two are with and without the label (classifier-free), or of a good and a bad network (autoguidance).

| s | classifier (1), (2)    | difference (3)                                        |
|---|------------------------|-------------------------------------------------------|
| 0 | none                   | the weaker: unconditional, or the bad network         |
| 1 | exactly p(x given y)   | the stronger: conditional, or the good network        |

The s of (3) is the weight of Imagen and EDM2. Ho & Salimans' w is s - 1.

`scale` and `interval` are leaves of the pytree, so changing them does not recompile. An interval (low, high) restricts
guidance to levels low <= n <= high (Kynkaanniemi et al. 2024). Outside it a classifier has no effect and a difference
has s = 1. The work is still done there, since all steps share one compiled program.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ddpm_jax.diffusion.gaussian import Gaussian
from ddpm_jax.diffusion.prediction import Prediction, TimeScale, finite_or
from ddpm_jax.diffusion.schedule import Level, Schedule, like
from ddpm_jax.diffusion.steps import GaussianSteps
from ddpm_jax.errors import UserError

EVERYWHERE = (0, 2**31 - 1)


def levels_between(schedule: Schedule, low: float, high: float) -> tuple[np.int32, np.int32]:
  """The interval of levels whose sigma / alpha lies between `low` and `high`, as EDM's papers quote them.

  Raises:
    UserError: if no level does.
  """
  with np.errstate(divide="ignore"):
    sigma = np.sqrt((1 - schedule.alpha_bar) / schedule.alpha_bar)
  inside = np.flatnonzero((low <= sigma) & (sigma <= high))
  if not len(inside):
    raise UserError(
      f"No level has sigma / alpha between {low:g} and {high:g}: give a wider sampling.guidance.sigma_interval."
    )
  return np.int32(inside[0]), np.int32(inside[-1])


@struct.dataclass
class ClassifierFree:
  """(3) between `inner` with the condition and with the null condition, as one batch of 2 B (Ho & Salimans 2022).

  null: the fields of the condition that are replaced, with their null values, such as {"label": num_classes}. Other fields,
    such as a low-resolution image, stay. The second head (variance) is that of the conditional half, as in GLIDE.
  """

  inner: Any
  scale: jax.Array  # [] or [B]
  null: dict[str, jax.Array]
  interval: tuple[jax.Array, jax.Array] = EVERYWHERE
  rule: Any = None  # None: (3); or a rule of guidance_rules.py

  def __call__(self, x_t: jax.Array, level: Level, cond: Any = None) -> Prediction:
    missing = [name for name in self.null if name not in (cond or {})]
    if missing:
      raise UserError(f"Classifier-free guidance replaces cond[{missing[0]!r}], which is missing. Give every image one.")
    without = {**cond, **{name: jnp.full_like(cond[name], value) for name, value in self.null.items()}}
    twice = [_pairs(x_t, x_t), jax.tree.map(lambda n: _pairs(n, n) if jnp.ndim(n) else n, level)]
    both = self.inner(*twice, jax.tree.map(_pairs, cond, without))
    strong, weak = (jax.tree.map(lambda a, i=i: a[i::2] if jnp.ndim(a) else a, both) for i in range(2))
    scale = _scale_at(level, self.scale, self.interval, 1.0)
    return (self.rule or between)(weak, strong, scale, x_t, level)


@struct.dataclass
class Autoguidance:
  """(3) between a network and a smaller or less trained one, with the same condition (Karras et al. 2024)."""

  inner: Any
  weak: Any
  scale: jax.Array  # [] or [B]
  interval: tuple[jax.Array, jax.Array] = EVERYWHERE
  rule: Any = None  # None: (3); or a rule of guidance_rules.py

  def __call__(self, x_t: jax.Array, level: Level, cond: Any = None) -> Prediction:
    scale = _scale_at(level, self.scale, self.interval, 1.0)
    return (self.rule or between)(self.weak(x_t, level, cond), self.inner(x_t, level, cond), scale, x_t, level)


@struct.dataclass
class Perturbed:
  """Perturbed-attention guidance beside another (Ahn et al. 2024, arXiv 2403.17377): inner + s_n (strong - weak).

  weak: `strong` with identity attention in some blocks.
  fade: s_n = max(0, scale - fade (1000 - 1000 (n - 1) / T)), as in diffusers, where fade is called the adaptive scale.
  """

  inner: Any  # such as ClassifierFree
  strong: Any
  weak: Any
  scale: jax.Array  # [] or [B]
  fade: jax.Array = 0.0
  T: int = struct.field(pytree_node=False, default=1000)

  def __call__(self, x_t: jax.Array, level: Level, cond: Any = None) -> Prediction:
    scale = jnp.maximum(0, self.scale - self.fade * 1000 * (1 - (level.n - 1) / self.T))
    scale = like(scale, x_t)
    pred = self.inner(x_t, level, cond)
    strong = self.strong(x_t, level, cond)
    weak = self.weak(x_t, level, cond)
    x0 = pred.x0 + scale * (strong.x0 - weak.x0)
    return pred.replace(x0=finite_or(x0, pred.x0), eps=pred.eps + scale * (strong.eps - weak.eps))


@struct.dataclass
class ClassifierScore:
  """(1), ADM's algorithm 2, for DDIM and every solver.

  It shifts the prediction of `inner` without clipping afterwards. ADM's DDIM is ClassifierScore(ClipX0(network), ...).

  grad_log_prob: (x_t, level, cond) -> the gradient of log p(y | x_t) with respect to x_t, such as a `Classifier`.
  """

  inner: Any
  grad_log_prob: Callable
  scale: jax.Array  # [] or [B]
  interval: tuple[jax.Array, jax.Array] = EVERYWHERE

  def __call__(self, x_t: jax.Array, level: Level, cond: Any = None) -> Prediction:
    pred = self.inner(x_t, level, cond)
    wide = like(level, x_t)
    shift = like(_scale_at(level, self.scale, self.interval, 0.0), x_t) * self.grad_log_prob(x_t, level, cond)
    to_x0 = jnp.where(wide.alpha > 0, wide.sigma**2 / wide.alpha, 0.0)  # pure noise holds no information about the class
    return pred.replace(x0=pred.x0 + to_x0 * shift, eps=pred.eps - wide.sigma * shift)


@struct.dataclass
class ShiftMean:
  """(2), ADM's algorithm 1, a kernel around a kernel. It uses the variance of the inner kernel, learned or fixed.

  As in ADM's code, the gradient is taken at x_t. Their derivation takes it at the mean. Steps without variance do not shift.
  """

  inner: Any
  grad_log_prob: Callable
  scale: jax.Array  # [] or [B]
  interval: tuple[jax.Array, jax.Array] = EVERYWHERE

  def __call__(self, x_t: jax.Array, row: GaussianSteps, pred: Prediction, cond: Any = None) -> Gaussian:
    p = self.inner(x_t, row, pred, cond)
    scale = like(_scale_at(row.t, self.scale, self.interval, 0.0), x_t)
    return p.replace(mean=p.mean + scale * jnp.exp(p.log_var) * self.grad_log_prob(x_t, row.t, cond))


@struct.dataclass
class Classifier:
  """A classifier of noisy images with its weights. Calling it returns the gradient of log p(cond["label"] | x_t).

  apply(params, x [B,H,W,C], time [B]) -> logits [B, classes]. It computes in its own dtype. Probabilities are float32.
  """

  params: Any
  apply: Callable = struct.field(pytree_node=False)
  time: TimeScale = TimeScale()

  def log_probs(self, x_t: jax.Array, level: Level) -> jax.Array:
    """log p(y | x_t) of every class, float32 [B, classes]."""
    logits = self.apply(self.params, x_t, jnp.broadcast_to(self.time(level.n), x_t.shape[:1]))
    return jax.nn.log_softmax(logits.astype(jnp.float32))

  def __call__(self, x_t: jax.Array, level: Level, cond: Any) -> jax.Array:
    if "label" not in (cond or {}):
      raise UserError('Classifier guidance needs cond["label"], the wanted class of each image, which is missing.')

    def of_labels(x: jax.Array) -> jax.Array:
      return jnp.take_along_axis(self.log_probs(x, level), cond["label"][:, None], axis=1).sum()

    return jax.grad(of_labels)(x_t)


def _pairs(a: jax.Array, b: jax.Array) -> jax.Array:
  """[a_0, b_0, a_1, b_1, ...], so that the images of a sharded batch stay on their devices."""
  return jnp.stack([a, b], axis=1).reshape(-1, *jnp.shape(a)[1:])


def between(weak: Prediction, strong: Prediction, scale: jax.Array, x_t: jax.Array, level: Level) -> Prediction:
  """(3), in x0 and eps alike."""
  scale = like(scale, x_t)
  x0, eps = (w + scale * (s - w) for w, s in ((weak.x0, strong.x0), (weak.eps, strong.eps)))
  return strong.replace(x0=finite_or(x0, strong.x0), eps=eps)


def _scale_at(level: Level, scale: Any, interval: Any, outside: float) -> jax.Array:
  """`scale` inside the interval and `outside` elsewhere, [] or [B]."""
  low, high = interval
  return jnp.where((low <= level.n) & (level.n <= high), scale, outside)
