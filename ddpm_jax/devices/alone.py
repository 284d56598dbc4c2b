"""Programs that run on one device, such as the sampler of a single image. On several devices each would repeat the work."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from ddpm_jax.devices import compiler


def jitted(function: Callable, static_argnames: tuple[str, ...] = ()) -> Callable:
  """Jits `function` for the first device. Positional arguments (trees of arrays) on other devices are moved to it."""

  @functools.cache
  def compiled() -> Callable:  # lazy: the options depend on the backend, which must not start at import time
    return jax.jit(function, static_argnames=static_argnames, compiler_options=compiler.all_cores())

  def call(*args: Any, **options: Any) -> Any:
    return compiled()(*jax.tree.map(_of_first, args), **options)

  return functools.wraps(function)(call)


def _of_first(x: Any) -> Any:
  """The first device's copy of a replicated array, at no cost; any other array is transferred to the first device."""
  if not isinstance(x, jax.Array) or len(x.sharding.device_set) == 1:
    return x
  return x.addressable_data(0) if x.is_fully_replicated else jax.device_put(x, jax.devices()[0])
