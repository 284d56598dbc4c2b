"""The training state: everything needed to resume a run exactly. `step` is also the position in the data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from ddpm_jax.devices import mesh as layout
from ddpm_jax.training import ema, trainable
from ddpm_jax.training.flat import flatten


@struct.dataclass
class TrainState:
  """The pytree that the training step updates and that checkpoints store."""

  step: jax.Array  # i32 [], batches seen
  params: Any
  opt_state: Any  # optimizer state of the trainable parameters
  ema: dict[str, Any]  # str(rate) or "power_WIDTH" -> averaged parameters
  time_sampler: Any  # state of the time sampler
  key: jax.Array  # the run's root key, never changed; step i draws from fold_in(key, i)
  skipped: jax.Array  # i32 [], updates skipped because the loss or the gradient was not finite
  skipped_in_row: jax.Array  # i32 [], skipped updates since the last good one

  @property
  def updates(self) -> jax.Array:
    """i32 [], the number of updates of the parameters."""
    return self.step - self.skipped


def create(
  key: jax.Array,
  params: Any,
  optimizer: optax.GradientTransformation,
  *,
  ema_rates: tuple[float, ...] = (0.9999,),
  ema_widths: tuple[float, ...] = (),
  time_sampler: Any = None,
  learns: trainable.Predicate | None = None,
  flat: bool = False,
) -> TrainState:
  """The state before the first step.

  Args:
    key: the run's root key.
    params: the initial parameters.
    optimizer: the optimizer, whose state is initialized.
    ema_rates: rates of the averages.
    time_sampler: the state of a time sampler, sampler.init().
    learns: which parameters train, by path; None: all.
    flat: keep parameters, moments and averages as one vector each (flat.py). Then all parameters must train.
  """
  params = flatten(params) if flat else params
  learning, _ = trainable.split(params, learns)
  return TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(learning),
    ema=ema.init(params, ema_rates, ema_widths),
    time_sampler=time_sampler,
    key=key,
    skipped=jnp.int32(0),
    skipped_in_row=jnp.int32(0),
  )


def place(init: Callable[[], TrainState], mesh: Mesh) -> TrainState:
  """Runs init() compiled, so that each device creates only its own shard and a large state never resides on one device."""
  # A program that runs once is not worth optimizing: without, it compiles in a third of the time.
  once = {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else None
  return jax.jit(init, out_shardings=layout.of_state(jax.eval_shape(init), mesh), compiler_options=once)()
