"""Second heads: the second half of a network's output, which estimates the uncertainty of the first.

A head is a type with two methods:

    decode(pred, mean, second, scale)    the Prediction, with the field that this head fills
    loss(second, y, mean, probe)         what a regression of this head minimizes, elementwise

Here y is what the first head regresses (eps, x_0 or v), `mean` is the first head's output, `scale` converts standard
deviations of y to those of eps, and `probe()` is the estimate of -sigma diag(d eps_hat / d x_t) that OCM regresses.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ddpm_jax.diffusion.prediction import Prediction
from ddpm_jax.diffusion.schedule import Level, like
from ddpm_jax.errors import UserError

Probe = Callable[[], jax.Array]


class SecondHead:
  """A head that the variational bound trains. It has no regression of its own."""

  optimal = False  # whether the head fills eps_var
  needs_probe = False

  def target(self, y: jax.Array, mean: jax.Array, probe: Probe) -> jax.Array:
    """What the head regresses, shaped as y."""
    raise UserError(
      f'The second head {type(self).__name__} has no regression: train it with loss.name = "hybrid" or "vlb" instead of '
      '"second_head".'
    )

  def loss(self, second: jax.Array, y: jax.Array, mean: jax.Array, probe: Probe) -> jax.Array:
    """The elementwise loss of the head's output `second`, shaped as y."""
    return (self.target(y, mean, probe) - second) ** 2


@struct.dataclass
class Range(SecondHead):
  """A position between the two log-variances of a step, -1 at the posterior and 1 at the marginal (IDDPM eq. 15)."""

  def decode(self, pred: Prediction, mean: jax.Array, second: jax.Array, scale: jax.Array) -> Prediction:
    return pred.replace(var_frac=(second + 1) / 2)


@struct.dataclass
class LogVar(SecondHead):
  """The log-variance of the step itself (the learned diagonal of DDPM's ablation)."""

  def decode(self, pred: Prediction, mean: jax.Array, second: jax.Array, scale: jax.Array) -> Prediction:
    return pred.replace(log_var=second)


@struct.dataclass
class Residual(SecondHead):
  """NPR-DPM: E[(y - mean)^2 | x_t], the variance around the imperfect mean (Bao et al. 2022, section 4.1)."""

  optimal = True

  def target(self, y: jax.Array, mean: jax.Array, probe: Probe) -> jax.Array:
    return (y - mean) ** 2

  def decode(self, pred: Prediction, mean: jax.Array, second: jax.Array, scale: jax.Array) -> Prediction:
    return pred.replace(eps_var=second * scale**2)


@struct.dataclass
class SecondMoment(SecondHead):
  """SN-DPM: E[y^2 | x_t], from which the square of the mean is subtracted (Bao et al. 2022, section 3)."""

  optimal = True

  def target(self, y: jax.Array, mean: jax.Array, probe: Probe) -> jax.Array:
    return y**2

  def decode(self, pred: Prediction, mean: jax.Array, second: jax.Array, scale: jax.Array) -> Prediction:
    return pred.replace(eps_var=(second - mean**2) * scale**2)


@struct.dataclass
class LogResidual(SecondHead):
  """log E[(y - mean)^2 | x_t], fitted by maximum likelihood instead of least squares.

  The loss is the negative log-likelihood of y under N(mean, exp(second)), up to a constant. Its minimum is the same
  variance as NPR's. It weighs errors relative to the variance, so that small variances count as much as large ones.
  """

  optimal = True

  def target(self, y: jax.Array, mean: jax.Array, probe: Probe) -> jax.Array:
    return (y - mean) ** 2

  def loss(self, second: jax.Array, y: jax.Array, mean: jax.Array, probe: Probe) -> jax.Array:
    return 0.5 * (second + self.target(y, mean, probe) * jnp.exp(-second))

  def decode(self, pred: Prediction, mean: jax.Array, second: jax.Array, scale: jax.Array) -> Prediction:
    return pred.replace(eps_var=jnp.exp(second) * scale**2)


@struct.dataclass
class Hessian(SecondHead):
  """OCM-DPM: -sigma diag(d eps_hat / d x_t), so that Var[eps | x_t] = 1 + head (Ou et al. 2025).

  It is sigma^2 times the diagonal of the Hessian of log p(x_t), hence the name. The head regresses the unbiased estimate
  -sigma v (J^T v), with one random sign per pixel. It is in units of eps, whatever the first head predicts.
  """

  optimal = True
  needs_probe = True

  def target(self, y: jax.Array, mean: jax.Array, probe: Probe) -> jax.Array:
    return probe()

  def decode(self, pred: Prediction, mean: jax.Array, second: jax.Array, scale: jax.Array) -> Prediction:
    return pred.replace(eps_var=1 + second)


@struct.dataclass
class TwoHeads:
  """The parameterization of a network with twice the channels: the mean, then a second head."""

  mean: Any
  second: SecondHead

  channels = 2  # output channels per image channel

  @classmethod
  def named(cls, mean: Any, name: str) -> "TwoHeads":
    """`mean` with the second head `name`, as configs name it.

    Raises:
      UserError: for an unknown name.
    """
    if name not in SECOND_HEADS:
      raise UserError(f"The second head {name!r} is unknown; choose one of {', '.join(SECOND_HEADS)}.")
    return cls(mean, SECOND_HEADS[name]())

  def input(self, x_t: jax.Array, level: Level) -> jax.Array:
    return self.mean.input(x_t, level)

  def target(self, x_0: jax.Array, eps: jax.Array, level: Level) -> jax.Array:
    return self.mean.target(x_0, eps, level)

  def split(self, out: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean, second = jnp.split(out, 2, axis=-1)
    return mean, second

  def decode(self, out: jax.Array, x_t: jax.Array, level: Level) -> Prediction:
    mean, second = self.split(out)
    scale = like(self.mean.eps_per_output(level), x_t)
    return self.second.decode(self.mean.decode(mean, x_t, level), mean, second, scale)


SECOND_HEADS: dict[str, type[SecondHead]] = {
  "range": Range,
  "log_var": LogVar,
  "residual": Residual,
  "second_moment": SecondMoment,
  "log_residual": LogResidual,
  "hessian": Hessian,
}
