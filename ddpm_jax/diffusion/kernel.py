"""The reverse transition p(x_s | x_t), from a prediction and a row."""

from collections.abc import Callable
from typing import Any

import jax
from flax import struct

from ddpm_jax.diffusion.covariance import posterior
from ddpm_jax.diffusion.gaussian import Gaussian
from ddpm_jax.diffusion.lanczos import CorrelatedGaussian, Full
from ddpm_jax.diffusion.prediction import Prediction
from ddpm_jax.diffusion.schedule import like
from ddpm_jax.diffusion.steps import GaussianSteps


@struct.dataclass
class ReverseKernel:
  """N(c_x0 x0 + c_eps eps, covariance) (steps.py, eq. 3 and 4).

  Attributes:
    covariance: (prediction, row) -> log-variance, or lanczos.Full for a covariance between pixels. The transition then has
      a mean and `draw`, but no log-variance.
  """

  covariance: Callable | Full = struct.field(pytree_node=False, default=posterior)

  def __call__(
    self, x_t: jax.Array, row: GaussianSteps, pred: Prediction, cond: Any = None
  ) -> Gaussian | CorrelatedGaussian:
    row = like(row, x_t)
    mean = row.c_x0 * pred.x0 + row.c_eps * pred.eps
    if isinstance(self.covariance, Full):
      return self.covariance.around(mean, pred, row)
    return Gaussian(mean, self.covariance(pred, row))
