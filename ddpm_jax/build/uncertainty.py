"""The estimate of Var[eps | x_t] that the covariance of a config needs."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import sizes
from ddpm_jax.build.covariances import OPTIMAL_HEADS, covariance_name
from ddpm_jax.build.process import moments, schedule
from ddpm_jax.diffusion.jacobian import JacobianDiagonal, JacobianOperator
from ddpm_jax.diffusion.transforms import AnalyticMoments
from ddpm_jax.errors import UserError
from ddpm_jax.files import measurements


def uncertain(config: ConfigDict, net: Any, which: str = "sampling") -> Any:
  """`net` with the variance that the covariance of the section `which` uses, before any clipping.

  Args:
    net: the denoiser.
    which: "sampling" or "evaluation".

  Raises:
    UserError: if the covariance needs moments that sampling.moments does not have.
  """
  name = covariance_name(config, which)
  if name == "optimal_diagonal":
    pixels = measurements.gamma_of_pixels(config.sampling.moments, schedule(config), residual=config.sampling.residual)
    expected = sizes.image_shape(config.data)
    if pixels.shape[1:] != expected:
      raise UserError(
        f"The moments in {config.sampling.moments} are of images of shape {pixels.shape[1:]}, not {expected}; measure them "
        "for this network with ddpm-jax moments --per_pixel."
      )
    return AnalyticMoments(net, jnp.asarray(pixels))
  gamma = moments(config)
  by_jacobian = name in ("jacobian", "full")
  if gamma is None and by_jacobian:  # restoring needs no floor
    gamma = np.ones(schedule(config).T + 1)
  if gamma is None or (config.prediction.second in OPTIMAL_HEADS and not by_jacobian):
    return net
  gamma = jnp.asarray(gamma, jnp.float32)
  if not by_jacobian:
    return AnalyticMoments(net, gamma)
  section = config.sampling.jacobian
  if section.probes < 0 or not 0 <= section.floor <= 1:
    raise UserError(
      f"sampling.jacobian.probes = {section.probes} must be at least 0, and sampling.jacobian.floor = {section.floor:g} "
      "between 0 and 1."
    )
  floor = section.floor * (1 - gamma)
  return JacobianOperator(net, floor) if name == "full" else JacobianDiagonal(net, floor, section.probes)
