"""What XLA is told on a CPU, by options that its other backends, and perhaps other versions, do not have."""

import functools
import math
import warnings
from typing import Any

import jax

from ddpm_jax.devices import flops

# Bytes. glibc keeps what is freed for the next time if it is below 32 MiB (its DEFAULT_MMAP_THRESHOLD_MAX). Pieces of 8 MB
# were no slower than 5, and faster than 31.
_PIECE, _LARGEST_KEPT = 8_000_000, 31_000_000

_LONG = 2.4e13  # operations of a device: ten minutes of a core with 40 GFLOP/s


def all_cores() -> dict[str, Any] | None:
  """For a program that has all cores on one device.

  XLA's library of kernels (YNN) leaves a convolution on one core unless it is large; its older one (Eigen) shares it among
  all. Where every core is a device of its own both are equal, and gradients by kernels are faster in the newer one.
  """
  sums_alone = "LIBRARY_FUSION_TYPE_REDUCE"  # are left to YNN
  return _known(xla_cpu_experimental_ynn_fusion_type=sums_alone, xla_cpu_prefer_vector_width=512)  # bits, where there are


def repeated(jitted: Any, *args: Any, times: float = math.inf) -> Any:
  """`jitted`, by jax.jit with at most donated arguments, for that many calls with such arrays (or shapes with shardings).

  At every call XLA asks for a program's temporaries in one piece, which goes back to the kernel afterwards, and comes from
  there anew, page by page, zeroed: 13 % to a third of a training step of the CIFAR-10 UNet. Here they are in pieces that the
  C library keeps, unless a single array is too large for that. Such programs cannot be stored, and are compiled at every
  start: `jitted` is returned where the calls take less than some minutes. Samplers need none of this: a loop asks once.
  """
  if jax.default_backend() != "cpu":
    return jitted
  traced = jitted.trace(*args)
  devices = max(len(x.sharding.device_set) for x in jax.tree.leaves(args))
  arguments = max((_bytes(aval) for aval in traced.jaxpr.in_avals), default=0)  # weights, which are not cut
  largest = max(arguments, _largest(traced.jaxpr) // devices, _PIECE)
  if largest > _LARGEST_KEPT or times * flops.count(traced.jaxpr) < _LONG * devices:
    return jitted
  donated = tuple(i for i, arg in enumerate(traced.args_info[0]) if any(leaf.donated for leaf in jax.tree.leaves(arg)))
  return _in_pieces(jitted, donated, largest)


@functools.lru_cache(maxsize=16)  # so that its programs are kept as long as those of `jitted`
def _in_pieces(jitted, donated, size):
  options = _known(xla_multiheap_size_constraint_per_heap=size)
  if options is None:
    return jitted
  warnings.filterwarnings("ignore", ".*persistent compilation cache entry.*Multiple temp buffer allocations")
  return jax.jit(jitted.__wrapped__, donate_argnums=donated, compiler_options=options)


def _largest(jaxpr: Any) -> int:
  """Bytes of the largest array that is computed on the way."""
  equations = getattr(jaxpr, "jaxpr", jaxpr).eqns
  inner = (_largest(each) for equation in equations for each in flops.jaxprs(equation))
  return max((*(_bytes(out.aval) for equation in equations for out in equation.outvars), *inner), default=0)


def _bytes(aval: Any) -> int:
  return getattr(aval, "size", 0) * getattr(getattr(aval, "dtype", None), "itemsize", 0)  # keys and tokens have none


@functools.cache
def _known(**options: Any) -> dict[str, Any] | None:
  """Options are experimental: another jaxlib may not have them."""
  if jax.default_backend() != "cpu":
    return None
  try:
    jax.jit(lambda: 0, compiler_options=options).lower().compile()
  except jax.errors.JaxRuntimeError:
    return None
  return options
