"""The optimizer: gradient clipping, Adam, and the learning-rate schedule.

Two deliberate differences from Ho's TensorFlow code:

* His code clips the gradient of each TPU core's share of the batch before averaging. Here the gradient of the whole batch
  is clipped, so the result does not depend on the number of devices.
* TensorFlow adds eps to sqrt(v); optax and PyTorch add it to sqrt(v / (1 - b2^t)). The effective eps differs by the factor
  1 / sqrt(1 - b2^t): 31.6 at the first update and 1.26 at the 1000th, while the warm-up keeps the learning rate small.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.errors import UserError

DECAYS = {
  "constant": lambda u: jnp.ones_like(u),
  "linear": lambda u: 1 - u,  # ADM's classifiers
  "cosine": lambda u: 0.5 * (1 + jnp.cos(jnp.pi * u)),
}


def schedule(learning_rate: float, total_steps: int, *, warmup_steps: int = 0, decay: str = "constant") -> optax.Schedule:
  """The learning rate as a function of the number of updates done.

      learning_rate * min(updates / warmup_steps, 1) * decay(u),   u from 0 after the warm-up to 1 at total_steps

  The first update of a warm-up has rate 0, as in Ho's code.

  Raises:
    UserError: if the decay is unknown, the rate is not above 0, or the warm-up does not end before total_steps.
  """
  if not learning_rate > 0:
    raise UserError(f"optimizer.learning_rate = {learning_rate:g} must be greater than 0.")
  if decay not in DECAYS:
    raise UserError(f"Learning-rate decay {decay!r} is unknown; choose one of {', '.join(DECAYS)}.")
  if not 0 <= warmup_steps < total_steps:
    raise UserError(f"A warm-up of {warmup_steps} steps must be shorter than the run's total_steps = {total_steps}.")

  def rate(updates: jax.Array) -> jax.Array:
    updates = jnp.asarray(updates, jnp.float32)
    warm = jnp.minimum(updates / warmup_steps, 1) if warmup_steps else 1.0
    u = jnp.clip((updates - warmup_steps) / (total_steps - warmup_steps), 0, 1)
    return learning_rate * warm * DECAYS[decay](u)

  return rate


def make_optimizer(
  learning_rate: float | optax.Schedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  clip_norm: float | None = None,
) -> "Guarded":
  """Adam, or AdamW when weight_decay > 0, after clipping the gradient's global norm.

  Args:
    learning_rate: a number or a schedule().
    weight_decay: decoupled (Loshchilov & Hutter 2019): each update subtracts learning_rate * weight_decay * params.
    clip_norm: the largest global l2 norm of a gradient; None does not clip. Losses here are means over pixels: the DDIM
      code's clip_norm = 1.0 for a sum over a 3x32x32 image is 1 / 3072 for a mean.

  Raises:
    UserError: for values outside Adam's domain.
  """
  if not (0 <= b1 < 1 and 0 <= b2 < 1 and eps > 0 and weight_decay >= 0 and (clip_norm is None or clip_norm > 0)):
    raise UserError(
      f"optimizer.b1 = {b1:g} and b2 = {b2:g} must be at least 0 and below 1, eps = {eps:g} above 0, weight_decay = "
      f"{weight_decay:g} at least 0, and clip_norm = {clip_norm} above 0 or None."
    )
  clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  decay = optax.add_decayed_weights(weight_decay)
  rate = guarded(optax.scale_by_learning_rate(learning_rate))
  return Guarded(*optax.chain(*clip, optax.chain(_adam(b1, b2, eps), decay, rate)))


# ---------------------------------------------------------------- skipped steps


class Guarded(optax.GradientTransformationExtraArgs):
  """A transformation whose update(grads, state, params, good=...) returns `state`, bitwise, when `good` [] is False."""


def guarded(optimizer: optax.GradientTransformation) -> Guarded:
  """Wraps any optax transformation as a Guarded one."""
  if isinstance(optimizer, Guarded):
    return optimizer
  of_optax = optax.with_extra_args_support(optimizer)

  def update(grads, state, params=None, *, good=True, **extra):
    updates, new = of_optax.update(grads, state, params, **extra)
    return updates, kept_unless(good, new, state)

  return Guarded(of_optax.init, update)


def kept_unless(good: jax.Array, new: Any, old: Any) -> Any:
  """`new` if `good` [] is True, else `old`."""
  return jax.tree.map(lambda a, b: a if a is b else jnp.where(good, a, b), new, old)


def _adam(b1: float, b2: float, eps: float) -> Guarded:
  """optax.scale_by_adam, guarded: the update is computed from the moments that are stored.

  With guarded(optax.scale_by_adam(...)), XLA computes each new moment twice, for the update and for the guard, and copies
  the old moments. On a CPU this takes a tenth of a training step of the CIFAR-10 UNet.
  """

  def update(grads, state, params=None, *, good=True, **_):
    count = kept_unless(good, state.count + 1, state.count)
    m = kept_unless(good, optax.tree.update_moment(grads, state.mu, b1, 1), state.mu)
    v = kept_unless(good, optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2), state.nu)
    unbiased_m = optax.tree.bias_correction(m, b1, count)
    unbiased_v = optax.tree.bias_correction(v, b2, count)
    updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), unbiased_m, unbiased_v)
    return updates, state._replace(count=count, mu=m, nu=v)

  return Guarded(optax.scale_by_adam(b1, b2, eps).init, update)
