"""The compiled training step: (state, batch) -> (next state, metrics).

The random numbers of step i derive from key = fold_in(state.key, i):

    levels n          one key for the whole batch (a stratified sampler needs all of it)
    noise of image b  fold_in(noise key, b), b its index in the global batch
    label dropout     one uniform number per image
    network dropout   one key per microbatch

Levels and noise, and therefore the loss curve, do not depend on the number of devices or microbatches. Network dropout is
the exception: it depends on the number of microbatches.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.data.images import to_float
from ddpm_jax.devices import mesh as layout
from ddpm_jax.errors import UserError
from ddpm_jax.training import ema, trainable
from ddpm_jax.training.flat import unflatten
from ddpm_jax.training.optimizer import guarded, kept_unless
from ddpm_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, dict], tuple[TrainState, Metrics]]


def make_train_step(
  loss: Callable,
  network_of: Callable[[Any, jax.Array], Any],
  optimizer: optax.GradientTransformation,
  time_sampler: Any,
  *,
  mesh: Mesh,
  accumulate: int = 1,
  ema_warmup: bool = True,
  label_dropout: float = 0.0,
  null_label: int | None = None,
  learns: trainable.Predicate | None = None,
) -> Step:
  """The jitted step. The state is donated and sharded by devices/mesh.py.

  A step whose loss or gradient is not finite leaves parameters, averages, optimizer and time sampler bitwise unchanged and
  only increments `state.skipped` and `state.skipped_in_row`.

  Args:
    loss: loss(keys [B], network, x_0, n, cond) -> (loss [B], parts: dict of [B]).
    network_of: network_of(params, dropout key) -> the network that `loss` takes, in training mode.
    time_sampler: .sample(state, key, B) -> (n [B], weight [B]); .update(state, n, unweighted loss [B]) -> state.
    accumulate: microbatches per step; the gradient is that of the mean over the whole batch.
    ema_warmup: see ema.py.
    label_dropout: probability that a label becomes `null_label` (classifier-free guidance, Ho & Salimans 2022).
    learns: which parameters train, by path; as in state.create.

  Returns:
    step(state, batch) -> (state, metrics). The batch is a dict. "image" is [B, H, W, C] in [-1, 1] or uint8, which is a
    quarter of the bytes to transfer. The other fields are the `cond` of the loss. Metrics are float32 [] means over the
    batch, weighted by the time sampler's weights.

  Raises:
    UserError: for label dropout without a null label; at the first call, for a batch size that is not a multiple of the
      devices times `accumulate`.
  """
  if label_dropout and null_label is None:
    raise UserError(f"label_dropout = {label_dropout} needs null_label, the label that means no label (num_classes).")
  optimizer = guarded(optimizer)
  images = layout.over_batch(mesh)
  microbatches = NamedSharding(mesh, PartitionSpec(None, *images.spec))
  # XLA's CPU backend runs gradients of lax's convolutions 20 times slower inside a loop, so the loop is unrolled there.
  # Gradients of our own convolution are fast in loops too, but a whole step in a loop has not been measured.
  loop = _unrolled if accumulate == 1 or mesh.devices.flat[0].platform == "cpu" else jax.lax.scan

  def weighted_loss(learning, frozen, dropout_key, micro):
    # With fsdp > 1 the compiler must be told to gather the weights here and to scatter the gradients afterwards.
    params = with_sharding_constraint(unflatten(trainable.merge(learning, frozen)), layout.replicated(mesh))
    losses, parts = loss(micro["key"], network_of(params, dropout_key), micro["x_0"], micro["n"], micro["cond"])
    return jnp.mean(micro["weight"] * losses), {"loss": losses, **parts}

  def gradient(params, dropout_key, batch):
    """(gradient of the mean loss, every term of the loss [B])."""
    grad = jax.grad(weighted_loss, has_aux=True)
    learning, frozen = trainable.split(params, learns)

    def add(total, numbered):
      number, micro = numbered
      grads, terms = grad(learning, frozen, jax.random.fold_in(dropout_key, number), micro)
      total = jax.tree.map(lambda t, g: t + g / accumulate, total, grads)
      return with_sharding_constraint(total, layout.of_state(total, mesh)), terms

    cut = with_sharding_constraint(jax.tree.map(lambda x: _cut(x, accumulate), batch), microbatches)
    zeros = jax.tree.map(jnp.zeros_like, learning)
    grads, terms = loop(add, zeros, (jnp.arange(accumulate), cut))
    return grads, jax.tree.map(_join, terms)

  def step(state: TrainState, batch: dict) -> tuple[TrainState, Metrics]:
    time_key, noise_key, label_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, state.step), 4)
    cond = {name: x for name, x in batch.items() if name != "image"}
    x_0 = batch["image"]
    if x_0.dtype == jnp.uint8:
      x_0 = to_float(x_0)
    if label_dropout:
      dropped = jax.random.bernoulli(label_key, label_dropout, cond["label"].shape)
      cond["label"] = jnp.where(dropped, null_label, cond["label"])
    size = len(x_0)
    if size % (accumulate * mesh.size):
      raise UserError(
        f"A batch of {size} images cannot be split into {accumulate} microbatches on {mesh.size} devices: choose a "
        f"multiple of {accumulate * mesh.size}."
      )
    n, weight = time_sampler.sample(state.time_sampler, time_key, size)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(noise_key, jnp.arange(size))
    whole = {"x_0": x_0, "n": n, "weight": weight, "key": keys, "cond": cond or None}

    grads, terms = gradient(state.params, dropout_key, whole)
    means = {name: jnp.mean(weight * term) for name, term in terms.items()}
    grad_norm = optax.tree.norm(grads)
    good = jnp.isfinite(grad_norm) & jnp.isfinite(means["loss"])

    learning, frozen = trainable.split(state.params, learns)
    updates, opt_state = optimizer.update(grads, state.opt_state, learning, good=good)
    params = kept_unless(good, trainable.merge(optax.apply_updates(learning, updates), frozen), state.params)
    averages = ema.update(state.ema, params, state.updates, warmup=ema_warmup)
    times = time_sampler.update(state.time_sampler, n, terms["loss"])
    new = state.replace(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      ema=kept_unless(good, averages, state.ema),
      time_sampler=kept_unless(good, times, state.time_sampler),
      skipped=state.skipped + ~good,
      skipped_in_row=jnp.where(good, 0, state.skipped_in_row + 1),
    )
    metrics = {**means, "grad_norm": grad_norm, "skipped": new.skipped, "skipped_in_row": new.skipped_in_row}
    return with_sharding_constraint(new, layout.of_state(new, mesh)), metrics

  return jax.jit(step, donate_argnums=0)


def _unrolled(body: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
  """jax.lax.scan without a loop in the compiled program (scan's own `unroll` keeps a loop of one iteration)."""
  ys = []
  for i in range(len(jax.tree.leaves(xs)[0])):
    carry, y = body(carry, jax.tree.map(lambda x, i=i: x[i], xs))
    ys.append(y)
  return carry, jax.tree.map(lambda *y: jnp.stack(y), *ys)


def _cut(x: jax.Array, parts: int) -> jax.Array:
  """[B, ...] -> [parts, B / parts, ...]. Part i has images i, i + parts, …, so each device splits what it already holds."""
  return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)


def _join(x: jax.Array) -> jax.Array:
  """The inverse of _cut."""
  return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])
