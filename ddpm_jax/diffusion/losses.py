"""Training losses: (keys [B], network, x_0 [B,H,W,C], n [B], cond) -> (loss [B], parts).

Each draws one noise image per key, diffuses x_0 to level n, asks the network once, and compares. `given` is the same
with the noise in hand. `parts` are the summands, [B] each, for logging. The rows of `steps` say where level n leads.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ddpm_jax.diffusion.covariance import learned_range
from ddpm_jax.diffusion.kernel import ReverseKernel
from ddpm_jax.diffusion.likelihood import vlb_term
from ddpm_jax.diffusion.noise import normal
from ddpm_jax.diffusion.prediction import Network, TwoHeads
from ddpm_jax.diffusion.steps import GaussianSteps
from ddpm_jax.errors import UserError

Parts = dict[str, jax.Array]


class _Loss:
  def __call__(
    self, keys: jax.Array, network: Network, x_0: jax.Array, n: jax.Array, cond: Any = None
  ) -> tuple[jax.Array, Parts]:
    return self.given(normal(keys, x_0.shape[1:]), network, x_0, n, cond)


@struct.dataclass
class Simple(_Loss):
  """|target - output|^2 with the first head (L_simple, DDPM eq. 14).

  reduce: "mean" over the image (Ho, OpenAI), or "sum" (DDIM, Analytic-DPM): the same minimum, but another meaning of
    gradient clipping.
  """

  steps: GaussianSteps
  reduce: str = struct.field(pytree_node=False, default="mean")

  def given(self, eps, network, x_0, n, cond=None):
    level = self.steps.leaving(n).t
    out, _ = network.parameterization.split(network.output(level.diffuse(x_0, eps), level, cond))
    mse = _reduce(self.reduce, (network.parameterization.target(x_0, eps, level) - out) ** 2)
    return mse, {"mse": mse}


@struct.dataclass
class Vlb(_Loss):
  """scale * one term of the variational bound, in bits/dim, at the sampled level.

  scale: 1 is Ho's `kl`; T makes it an estimate of the whole bound, IDDPM's L_vlb. x0 is not clipped in training.
  """

  steps: GaussianSteps
  kernel: Any = ReverseKernel(learned_range)
  scale: float = struct.field(pytree_node=False, default=1.0)

  def given(self, eps, network, x_0, n, cond=None):
    row = self.steps.leaving(n)
    x_t = row.t.diffuse(x_0, eps)
    vlb = self.scale * vlb_term(self.kernel, x_0, x_t, row, network(x_t, row.t, cond), cond)
    return vlb, {"vlb": vlb}


@struct.dataclass
class Hybrid(_Loss):
  """L_simple + weight * one term of the bound, where the bound trains the variance only (L_hybrid, IDDPM eq. 16).

  weight: T / 1000 in IDDPM ("rescaled": 0.001 keeps L_vlb from drowning L_simple, and T makes a term an estimate of
    the sum), 1 in ADM; the two agree at T = 1000. The bound is in bits/dim, the square is not.
  """

  steps: GaussianSteps
  weight: float = struct.field(pytree_node=False)
  kernel: Any = ReverseKernel(learned_range)

  def given(self, eps, network, x_0, n, cond=None):
    row, heads = self.steps.leaving(n), network.parameterization
    x_t = row.t.diffuse(x_0, eps)
    mean, second = heads.split(network.output(x_t, row.t, cond))
    mse = _reduce("mean", (heads.target(x_0, eps, row.t) - mean) ** 2)
    frozen = heads.decode(jnp.concatenate([jax.lax.stop_gradient(mean), second], -1), x_t, row.t)
    vlb = self.weight * vlb_term(self.kernel, x_0, x_t, row, frozen, cond)
    return mse + vlb, {"mse": mse, "vlb": vlb}


@struct.dataclass
class SecondHead(_Loss):
  """Regression of a second head on the errors of a finished network (Extended-Analytic-DPM section 4).

      NPR ("residual"):       |(eps - eps_hat)^2 - g|^2          SN ("second_moment"):      |eps^2 - h|^2

  and the same for networks of x_0 or v. The error |eps - eps_hat|^2 of the first head is part of the reported loss, as in
  the authors' code.

  train_mean: False leaves the first head alone: its error has no gradient, and the optimizer should hold the backbone
    fixed. True trains a network of two heads from scratch, L_simple beside the second regression.
  """

  steps: GaussianSteps
  reduce: str = struct.field(pytree_node=False, default="sum")
  train_mean: bool = struct.field(pytree_node=False, default=False)

  def given(self, eps, network, x_0, n, cond=None):
    level = self.steps.leaving(n).t
    heads: TwoHeads = network.parameterization
    mean, second = heads.split(network.output(level.diffuse(x_0, eps), level, cond))
    target = heads.target(x_0, eps, level)
    error = (target - (mean if self.train_mean else jax.lax.stop_gradient(mean))) ** 2
    moment = jax.lax.stop_gradient(error) if heads.kind == "residual" else target**2
    mse, head = _reduce(self.reduce, error), _reduce(self.reduce, (moment - second) ** 2)
    return mse + head, {"mse": mse, "head": head}


@struct.dataclass
class NoisyClassifier(_Loss):
  """Cross-entropy, in nats, of cond["label"] at noisy images (ADM section 4.1); the network is a guidance.Classifier.

  Parts: cross_entropy, top1 and top5 (1 where the label is among the most probable), and each of them as ..._q0, the
  least noisy quarter of levels, to ..._q3. Those are scaled so that means over batches of all levels are means over
  the quarter's images.
  """

  steps: GaussianSteps

  def given(self, eps, network, x_0, n, cond=None):
    level = self.steps.leaving(n).t
    log_p = network.log_probs(level.diffuse(x_0, eps), level)
    label = jnp.take_along_axis(log_p, cond["label"][:, None], axis=1)
    rank = (log_p > label).sum(1)
    parts = {"cross_entropy": -label[:, 0], "top1": (rank < 1).astype(jnp.float32), "top5": (rank < 5).astype(jnp.float32)}
    return parts["cross_entropy"], parts | self._by_quarter(n, parts)

  def _by_quarter(self, n, parts):
    T = jnp.asarray(self.steps.t.n)[0]
    size = jnp.diff(-(-jnp.arange(5) * T // 4))  # levels in each quarter
    here = [jnp.where(4 * (n - 1) // T == q, T / size[q], 0.0) for q in range(4)]
    return {f"{name}_q{q}": part * here[q] for name, part in parts.items() for q in range(4)}


@struct.dataclass
class NoisyLowRes:
  """`inner` with noise of deviation `std` on cond["low_res"], fresh for each image, as cascades need: an upsampler
  should forgive what the stage before gets wrong (Ho et al. 2021, "conditioning augmentation")."""

  inner: _Loss
  std: jax.Array

  def __call__(self, keys, network, x_0, n, cond=None):
    low_res = cond["low_res"]
    noisy = low_res + self.std * normal(keys, low_res.shape[1:], 1)  # stream 0 is x_t's
    return self.inner(keys, network, x_0, n, cond | {"low_res": noisy})


def _reduce(how: str, x: jax.Array) -> jax.Array:
  if how not in ("mean", "sum"):
    raise UserError(f'reduce = {how!r} is unknown; choose "mean" or "sum".')
  axes = tuple(range(1, x.ndim))
  return x.sum(axes) if how == "sum" else x.mean(axes)
