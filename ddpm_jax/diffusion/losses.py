"""Training losses: (keys [B], network, x_0 [B,H,W,C], n [B], cond) -> (loss [B], parts).

A loss draws one noise image per key, diffuses x_0 to level n, evaluates the network once and compares. `given` is the same
loss with given noise. `parts` are the terms of the sum, [B] each, for logging. `steps` is the chain: its row for level n
says which level follows.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ddpm_jax.diffusion import jacobian
from ddpm_jax.diffusion.covariance import learned_range
from ddpm_jax.diffusion.guidance import Classifier
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.likelihood import vlb_term
from ddpm_jax.diffusion.noise import normal, signs
from ddpm_jax.diffusion.prediction import Network
from ddpm_jax.diffusion.schedule import like
from ddpm_jax.diffusion.second_heads import TwoHeads
from ddpm_jax.diffusion.steps import GaussianSteps
from ddpm_jax.errors import UserError

Parts = dict[str, jax.Array]


class _Loss:
  """A loss that draws one noise image per key."""

  def __call__(
    self, keys: jax.Array, network: Any, x_0: jax.Array, n: jax.Array, cond: Any = None
  ) -> tuple[jax.Array, Parts]:
    return self.given(normal(keys, x_0.shape[1:]), network, x_0, n, cond)

  def given(self, eps: jax.Array, network: Any, x_0: jax.Array, n: jax.Array, cond: Any = None) -> tuple[jax.Array, Parts]:
    """The loss with the noise eps [B,H,W,C]."""
    raise NotImplementedError


@struct.dataclass
class Simple(_Loss):
  """|target - output|^2 with the first head (L_simple, DDPM eq. 14).

  Attributes:
    reduce: "mean" over the image (Ho, OpenAI) or "sum" (DDIM, Analytic-DPM). The minimum is the same, but gradient
      clipping acts differently.
    weight: [T+1] factors by level (loss_weights.py). None: 1.
  """

  steps: GaussianSteps
  reduce: str = struct.field(pytree_node=False, default="mean")
  weight: jax.Array | None = None

  def given(
    self, eps: jax.Array, network: Network, x_0: jax.Array, n: jax.Array, cond: Any = None
  ) -> tuple[jax.Array, Parts]:
    level = self.steps.leaving(n).t
    out, _ = network.parameterization.split(network.output(level.diffuse(x_0, eps), level, cond))
    mse = _reduce(self.reduce, (network.parameterization.target(x_0, eps, level) - out) ** 2)
    loss = mse if self.weight is None else jnp.asarray(self.weight)[n] * mse
    return loss, {"mse": mse}


@struct.dataclass
class Vlb(_Loss):
  """scale * one term of the variational bound, in bits/dim, at the sampled level.

  x0 is not clipped in training.

  Attributes:
    scale: 1 is Ho's `kl`. T gives an estimate of the whole bound, IDDPM's L_vlb.
  """

  steps: GaussianSteps
  kernel: Any = ReverseKernel(learned_range)
  scale: float = struct.field(pytree_node=False, default=1.0)

  def given(
    self, eps: jax.Array, network: Network, x_0: jax.Array, n: jax.Array, cond: Any = None
  ) -> tuple[jax.Array, Parts]:
    row = self.steps.leaving(n)
    x_t = row.t.diffuse(x_0, eps)
    vlb = self.scale * vlb_term(self.kernel, x_0, x_t, row, network(x_t, row.t, cond), cond)
    return vlb, {"vlb": vlb}


@struct.dataclass
class Hybrid(_Loss):
  """L_simple + weight * one term of the bound, where the bound trains the variance only (L_hybrid, IDDPM eq. 16).

  Attributes:
    weight: T / 1000 in IDDPM, 1 in ADM. The two agree at T = 1000. In IDDPM, T turns one term into an estimate of the
      sum, and 0.001 keeps L_vlb smaller than L_simple. The bound is in bits/dim, the square is not.
    mse_weight: [T+1] factors of the square by level (loss_weights.py). None: 1. P2's code leaves the bound as it is.
  """

  steps: GaussianSteps
  weight: float = struct.field(pytree_node=False)
  kernel: Any = ReverseKernel(learned_range)
  mse_weight: jax.Array | None = None

  def given(
    self, eps: jax.Array, network: Network, x_0: jax.Array, n: jax.Array, cond: Any = None
  ) -> tuple[jax.Array, Parts]:
    row = self.steps.leaving(n)
    heads = network.parameterization
    x_t = row.t.diffuse(x_0, eps)
    mean, second = heads.split(network.output(x_t, row.t, cond))
    mse = _reduce("mean", (heads.target(x_0, eps, row.t) - mean) ** 2)
    frozen = heads.decode(jnp.concatenate([jax.lax.stop_gradient(mean), second], -1), x_t, row.t)
    vlb = self.weight * vlb_term(self.kernel, x_0, x_t, row, frozen, cond)
    weighted = mse if self.mse_weight is None else jnp.asarray(self.mse_weight)[n] * mse
    return weighted + vlb, {"mse": mse, "vlb": vlb}


@struct.dataclass
class SecondHead(_Loss):
  """Regression of a second head beside the first (second_heads.py; Extended-Analytic-DPM section 4).

      NPR "residual"          |(eps - eps_hat)^2 - g|^2
      SN  "second_moment"     |eps^2 - h|^2
      OCM "hessian"           |-sigma v (J^T v) - g|^2,   J = d eps_hat / d x_t,   v = +-1 at random

  The same regressions serve networks of x_0 or v. As in the authors' code, the reported loss includes the error
  |eps - eps_hat|^2 of the first head.

  Attributes:
    reduce: "sum" or "mean" over the image.
    train_mean: False stops the gradient of the first head's error, for a frozen backbone. True trains both heads
      jointly: L_simple plus the second regression.
    weight: factor of the second regression. None balances the two errors of each batch, mean(mse) / mean(head), as
      OCM's code does.
  """

  steps: GaussianSteps
  reduce: str = struct.field(pytree_node=False, default="sum")
  train_mean: bool = struct.field(pytree_node=False, default=False)
  weight: float | None = struct.field(pytree_node=False, default=1.0)

  def __call__(
    self, keys: jax.Array, network: Network, x_0: jax.Array, n: jax.Array, cond: Any = None
  ) -> tuple[jax.Array, Parts]:
    shape = x_0.shape[1:]
    probe = signs(keys, shape, 2) if network.parameterization.second.needs_probe else None  # streams 0 and 1 are taken
    return self.given(normal(keys, shape), network, x_0, n, cond, probe)

  def given(
    self, eps: jax.Array, network: Network, x_0: jax.Array, n: jax.Array, cond: Any = None, probe: jax.Array | None = None
  ) -> tuple[jax.Array, Parts]:
    level = self.steps.leaving(n).t
    x_t = level.diffuse(x_0, eps)
    heads: TwoHeads = network.parameterization
    mean, second = heads.split(network.output(x_t, level, cond))
    target = heads.target(x_0, eps, level)
    frozen = jax.lax.stop_gradient(mean)
    mse = _reduce(self.reduce, (target - (mean if self.train_mean else frozen)) ** 2)

    def curvature() -> jax.Array:
      fixed = jax.lax.stop_gradient(network)
      moved = jacobian.reverse(lambda x: fixed(x, level, cond).eps, x_t, probe)
      return jax.lax.stop_gradient(-like(level, x_t).sigma * probe * moved)

    head = _reduce(self.reduce, heads.second.loss(second, target, frozen, curvature))
    weight = jax.lax.stop_gradient(mse.mean() / head.mean()) if self.weight is None else self.weight
    return mse + weight * head, {"mse": mse, "head": head}


@struct.dataclass
class NoisyClassifier(_Loss):
  """Cross-entropy, in nats, of cond["label"] at noisy images (ADM section 4.1); the network is a guidance.Classifier.

  The parts are cross_entropy, top1 and top5 (1 where the label is among the most probable classes). Each also occurs
  per quarter of the levels, from ..._q0, the least noisy quarter, to ..._q3. The quarters are scaled so that a mean over a
  batch of all levels is the mean over the images of that quarter.
  """

  steps: GaussianSteps

  def given(
    self, eps: jax.Array, network: Classifier, x_0: jax.Array, n: jax.Array, cond: Any = None
  ) -> tuple[jax.Array, Parts]:
    level = self.steps.leaving(n).t
    log_p = network.log_probs(level.diffuse(x_0, eps), level)
    label = jnp.take_along_axis(log_p, cond["label"][:, None], axis=1)
    rank = (log_p > label).sum(1)
    parts = {"cross_entropy": -label[:, 0], "top1": (rank < 1).astype(jnp.float32), "top5": (rank < 5).astype(jnp.float32)}
    return parts["cross_entropy"], parts | self._by_quarter(n, parts)

  def _by_quarter(self, n: jax.Array, parts: Parts) -> Parts:
    T = jnp.asarray(self.steps.t.n)[0]
    size = jnp.diff(-(-jnp.arange(5) * T // 4))  # levels in each quarter
    here = [jnp.where(4 * (n - 1) // T == q, T / size[q], 0.0) for q in range(4)]
    return {f"{name}_q{q}": part * here[q] for name, part in parts.items() for q in range(4)}


@struct.dataclass
class NoisyLowRes:
  """`inner` with Gaussian noise of standard deviation `std` on cond["low_res"], drawn per image.

  It makes an upsampler robust to errors of the previous stage (Ho et al. 2021, "conditioning augmentation").
  """

  inner: _Loss
  std: jax.Array

  def __call__(
    self, keys: jax.Array, network: Any, x_0: jax.Array, n: jax.Array, cond: Any = None
  ) -> tuple[jax.Array, Parts]:
    low_res = cond["low_res"]
    noisy = low_res + self.std * normal(keys, low_res.shape[1:], 1)  # stream 0 is x_t's
    return self.inner(keys, network, x_0, n, cond | {"low_res": noisy})


def _reduce(how: str, x: jax.Array) -> jax.Array:
  if how not in ("mean", "sum"):
    raise UserError(f'reduce = {how!r} is unknown; choose "mean" or "sum".')
  axes = tuple(range(1, x.ndim))
  return x.sum(axes) if how == "sum" else x.mean(axes)
