"""Everything a run needs to continue as if it had never stopped (with the position in the data, which is `step`)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from ddpm_jax.devices import mesh as layout
from ddpm_jax.training import ema, trainable


@struct.dataclass
class TrainState:
  """One pytree: it is what the compiled step maps to itself, what is sharded, and what a checkpoint holds."""

  step: jax.Array  # i32 [], batches seen
  params: Any
  opt_state: Any  # of the trainable parameters
  ema: dict[str, Any]  # str(rate) -> averaged parameters
  time_sampler: Any  # state of the time sampler
  key: jax.Array  # the run's root key, never changed; step i draws from fold_in(key, i)
  skipped: jax.Array  # i32 [], updates skipped because something was not finite
  skipped_in_row: jax.Array  # i32 [], of those, the ones since the last good update

  @property
  def updates(self) -> jax.Array:
    """i32 [], how often the parameters were updated."""
    return self.step - self.skipped


def create(
  key: jax.Array,
  params: Any,
  optimizer: optax.GradientTransformation,
  *,
  ema_rates: tuple[float, ...] = (0.9999,),
  time_sampler: Any = None,
  learns: trainable.Predicate | None = None,
) -> TrainState:
  """The state before the first step. `time_sampler` is a state, not the sampler: sampler.init()."""
  learning, _ = trainable.split(params, learns)
  return TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(learning),
    ema=ema.init(params, ema_rates),
    time_sampler=time_sampler,
    key=key,
    skipped=jnp.int32(0),
    skipped_in_row=jnp.int32(0),
  )


def place(init: Callable[[], TrainState], mesh: Mesh) -> TrainState:
  """init(), compiled so that each device makes only its own part; a large state never stands on one device."""
  # A program that runs once is not worth optimizing: compiled this way in a third of the time, where it was measured.
  once = {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else None
  return jax.jit(init, out_shardings=layout.of_state(jax.eval_shape(init), mesh), compiler_options=once)()
