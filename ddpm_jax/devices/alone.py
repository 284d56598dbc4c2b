"""Programs for one device alone, such as one image's: several would only repeat it."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from ddpm_jax.devices import compiler


def jitted(function: Callable, static_argnames: tuple[str, ...] = ()) -> Callable:
  """`function`, jitted for the first device, where its positional arguments, trees of arrays, are taken from any others."""

  @functools.cache
  def compiled() -> Callable:  # asks for the backend, which importing must not start
    return jax.jit(function, static_argnames=static_argnames, compiler_options=compiler.all_cores())

  def call(*args, **options):
    return compiled()(*jax.tree.map(_of_first, args), **options)

  return functools.wraps(function)(call)


def _of_first(x: Any) -> Any:
  """A replicated array as the first device has it, which costs nothing; any other array is brought there."""
  if not isinstance(x, jax.Array) or len(x.sharding.device_set) == 1:
    return x
  return x.addressable_data(0) if x.is_fully_replicated else jax.device_put(x, jax.devices()[0])
