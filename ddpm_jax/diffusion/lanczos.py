"""Functions of a covariance between all pixels, by a few products with it.

A covariance operator is anything with `times(v)`, the product with images v [B,H,W,C], each image on its own. Its products
with one vector z span a small space, on which the operator is a small matrix. A function of the operator, such as the square
root that turns white noise into noise of that covariance, is nearly the function of the small matrix (Lanczos):

    f(A) z  ~  |z| V f(H) e_1,        V an orthonormal basis of z, A z, A^2 z, ...,        H = V^T A V             (1)

(1) is exact if there are as many products as distinct eigenvalues. The matrix H of a symmetric operator is tridiagonal. The
Jacobian of an imperfect network is not symmetric, so the basis is orthogonalized in full, and the symmetric part of H is
used.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ddpm_jax.diffusion.prediction import Prediction
from ddpm_jax.diffusion.steps import GaussianSteps
from ddpm_jax.errors import UserError


class Operator(Protocol):
  """A covariance between all pixels of an image."""

  def times(self, v: jax.Array) -> jax.Array:
    """The product with v [B,H,W,C]."""


@struct.dataclass
class Diagonal:
  """Independent pixels, as an operator."""

  var: jax.Array  # broadcasts against the images

  def times(self, v: jax.Array) -> jax.Array:
    return self.var * v


def apply(function: Callable[[jax.Array], jax.Array], operator: Operator, z: jax.Array, steps: int) -> jax.Array:
  """f(A) z by (1), shaped as z [B,H,W,C].

  Args:
    function: elementwise, of eigenvalues [B,steps].
    operator: A.
    z: [B,H,W,C].
    steps: number of products.
  """
  flat = z.reshape(len(z), -1)
  length = jnp.linalg.norm(flat, axis=1, keepdims=True)

  def extend(
    carry: tuple[jax.Array, jax.Array], j: jax.Array
  ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    basis, v = carry  # [steps,B,N], [B,N]
    basis = basis.at[j].set(v)
    product = operator.times(v.reshape(z.shape)).reshape(flat.shape)
    rest = product
    column = 0.0
    for _ in range(2):  # once more, against rounding
      part = jnp.einsum("kbn,bn->kb", basis, rest)
      rest = rest - jnp.einsum("kbn,kb->bn", basis, part)
      column = column + part
    size = jnp.linalg.norm(rest, axis=1, keepdims=True)
    found = size > 1e-5 * jnp.linalg.norm(product, axis=1, keepdims=True)  # else the space is complete
    below = jnp.where(found, size, 0.0)[:, 0]
    return (basis, jnp.where(found, rest / jnp.where(found, size, 1.0), 0.0)), (column, below)

  start = (jnp.zeros((steps, *flat.shape), flat.dtype), flat / jnp.where(length > 0, length, 1.0))
  (basis, _), (columns, below) = jax.lax.scan(extend, start, jnp.arange(steps))
  H = jnp.einsum("jkb->bkj", columns) + jnp.einsum("jb,kj->bkj", below, jnp.eye(steps, k=-1))
  values, vectors = jnp.linalg.eigh((H + H.swapaxes(1, 2)) / 2)
  weights = jnp.einsum("bij,bj,bj->bi", vectors, function(values), vectors[:, 0])
  return (length * jnp.einsum("kbn,bk->bn", basis, weights)).reshape(z.shape)


@struct.dataclass
class CorrelatedGaussian:
  """N(mean, shift I + scale max(A, floor)), with A an operator. It draws as gaussian.Gaussian does."""

  mean: jax.Array  # [B,H,W,C]
  operator: Operator
  shift: jax.Array  # [] or broadcasting against mean, as all below
  scale: jax.Array
  floor: jax.Array  # least eigenvalue of A
  largest: jax.Array  # largest variance in any direction
  steps: int = struct.field(pytree_node=False)

  def draw(self, z: jax.Array) -> jax.Array:
    """The sample for white noise z [B,H,W,C]."""
    shift, scale, floor, largest = (jnp.reshape(a, (-1, 1)) for a in (self.shift, self.scale, self.floor, self.largest))

    def deviation(values: jax.Array) -> jax.Array:
      return jnp.sqrt(jnp.minimum(shift + scale * jnp.maximum(values, floor), largest))

    return self.mean + apply(deviation, self.operator, z, self.steps)


@dataclasses.dataclass(frozen=True)
class Full:
  """The covariance of a step with all correlations between pixels (steps.py, eq. 4), for a denoiser that fills eps_cov.

  Attributes:
    steps: products with the Jacobian per draw.
    cap_level: the steps that reach this level or a lower one have their noise limited, as by covariance.CapLast.
    cap_pixels: the limit, in grey levels.
  """

  steps: int = 8
  cap_level: int = 0
  cap_pixels: float = float("inf")

  def around(self, mean: jax.Array, pred: Prediction, row: GaussianSteps) -> CorrelatedGaussian:
    """The transition with this mean."""
    if pred.eps_cov is None:
      raise UserError("Full() needs Prediction.eps_cov, but this denoiser has none. Wrap it in jacobian.JacobianOperator.")
    scale = row.c_cov * (row.t.sigma / row.t.alpha) ** 2
    cap = np.float32(self.cap_pixels * 2 / 255) ** 2 * np.float32(np.pi / 2)
    largest = jnp.where(row.s.n <= self.cap_level, cap, jnp.inf)
    operator = pred.eps_cov
    return CorrelatedGaussian(mean, operator, row.var, scale, operator.floor, largest, self.steps)
