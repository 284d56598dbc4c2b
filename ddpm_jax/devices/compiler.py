"""Compiler options for XLA's CPU backend. Other backends, and perhaps other versions, do not have them."""

import functools
import math
import warnings
from typing import Any

import jax

from ddpm_jax.devices import flops

# Bytes. glibc reuses freed blocks below 32 MiB (its DEFAULT_MMAP_THRESHOLD_MAX). Pieces of 8 MB were as fast as 5 MB and
# faster than 31 MB.
_PIECE = 8_000_000
_LARGEST_KEPT = 31_000_000

_LONG = 2.4e13  # operations per device: ten minutes of a core at 40 GFLOP/s


def all_cores() -> dict[str, Any] | None:
  """Options for a program that runs on one device with all cores.

  XLA's kernel library YNN runs a convolution on one core unless it is large. Its older library, Eigen, uses all cores. With
  one device per core both are equally fast, and YNN computes kernel gradients faster.
  """
  only_sums = "LIBRARY_FUSION_TYPE_REDUCE"  # use YNN for reductions only
  return _known(xla_cpu_experimental_ynn_fusion_type=only_sums, xla_cpu_prefer_vector_width=512)  # bits


def repeated(jitted: Any, *args: Any, times: float = math.inf) -> Any:
  """A version of `jitted` for `times` calls with these arrays (or shapes with shardings), faster on CPUs for long runs.

  XLA allocates a program's temporaries in one block at every call. The C library returns so large a block to the kernel,
  which zeroes the pages again at the next call: 13 % to a third of a training step of the CIFAR-10 UNet. Here the
  temporaries are split into blocks that the C library reuses, unless a single array is too large for that.

  Such programs cannot be stored in the compilation cache. Therefore `jitted` is returned unchanged when all calls together
  take less than some minutes. Samplers do not need this, since a loop allocates once.

  Args:
    jitted: a function of jax.jit, whose only option may be donated arguments.
  """
  if jax.default_backend() != "cpu":
    return jitted
  traced = jitted.trace(*args)
  devices = max(len(x.sharding.device_set) for x in jax.tree.leaves(args))
  arguments = max((_bytes(aval) for aval in traced.jaxpr.in_avals), default=0)  # weights, which are not sharded
  largest = max(arguments, _largest(traced.jaxpr) // devices, _PIECE)
  if largest > _LARGEST_KEPT or times * flops.count(traced.jaxpr) < _LONG * devices:
    return jitted
  donated = tuple(i for i, arg in enumerate(traced.args_info[0]) if any(leaf.donated for leaf in jax.tree.leaves(arg)))
  return _in_pieces(jitted, donated, largest)


@functools.lru_cache(maxsize=16)  # repeated calls return the same function, whose programs jit caches
def _in_pieces(jitted: Any, donated: tuple[int, ...], size: int) -> Any:
  options = _known(xla_multiheap_size_constraint_per_heap=size)
  if options is None:
    return jitted
  warnings.filterwarnings("ignore", ".*persistent compilation cache entry.*Multiple temp buffer allocations")
  return jax.jit(jitted.__wrapped__, donate_argnums=donated, compiler_options=options)


def _largest(jaxpr: Any) -> int:
  """Bytes of the largest intermediate array."""
  equations = getattr(jaxpr, "jaxpr", jaxpr).eqns
  inner = (_largest(each) for equation in equations for each in flops.jaxprs(equation))
  return max((*(_bytes(out.aval) for equation in equations for out in equation.outvars), *inner), default=0)


def _bytes(aval: Any) -> int:
  return getattr(aval, "size", 0) * getattr(getattr(aval, "dtype", None), "itemsize", 0)  # keys and tokens have none


@functools.cache
def _known(**options: Any) -> dict[str, Any] | None:
  """The options, or None if this backend does not accept them. They are experimental: another jaxlib may lack them."""
  if jax.default_backend() != "cpu":
    return None
  try:
    jax.jit(lambda: 0, compiler_options=options).lower().compile()
  except jax.errors.JaxRuntimeError:
    return None
  return options
