"""Programs for one device alone, such as one image's: several would only repeat it.

On a CPU, XLA's library of kernels (YNN) leaves a convolution on one core unless it is large; its older one (Eigen) shares
it among all. A device that has all cores for itself is therefore better off with the older one. Where every core is a
device of its own both are equal, and gradients by kernels are faster in the newer one.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

_ALL_CORES = {
  "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",  # sums are all that is left to YNN
  "xla_cpu_prefer_vector_width": 512,  # bits, where the processor has them
}


def jitted(function: Callable, static_argnames: tuple[str, ...] = ()) -> Callable:
  """`function`, jitted for the first device, where its positional arguments, trees of arrays, are taken from any others."""

  @functools.cache
  def compiled() -> Callable:  # asks for the backend, which importing must not start
    return jax.jit(function, static_argnames=static_argnames, compiler_options=_options())

  def call(*args, **options):
    return compiled()(*jax.tree.map(_of_first, args), **options)

  return functools.wraps(function)(call)


def _of_first(x: Any) -> Any:
  """A replicated array as the first device has it, which costs nothing; any other array is brought there."""
  if not isinstance(x, jax.Array) or len(x.sharding.device_set) == 1:
    return x
  return x.addressable_data(0) if x.is_fully_replicated else jax.device_put(x, jax.devices()[0])


@functools.cache
def _options() -> dict | None:
  """_ALL_CORES on a CPU whose compiler knows them: they are experimental, and another jaxlib may call them otherwise."""
  if jax.default_backend() != "cpu":
    return None
  try:
    jax.jit(lambda: 0, compiler_options=_ALL_CORES).lower().compile()
  except jax.errors.JaxRuntimeError:
    return None
  return _ALL_CORES
