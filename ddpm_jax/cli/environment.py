"""What is set before JAX touches a device: virtual CPU devices, and the cache of compiled programs."""

import contextlib
import os
import pathlib


def prepare() -> None:
  """Called once by every command that computes.

  On a CPU, XLA spreads one program badly over cores; as many virtual devices, each with its share of the batch, use
  them all. Compiled programs are kept between runs in $XDG_CACHE_HOME/ddpm_jax (set JAX_COMPILATION_CACHE_DIR for
  another place).
  """
  import jax

  if "JAX_NUM_CPU_DEVICES" not in os.environ:
    with contextlib.suppress(RuntimeError):  # raised where JAX runs already, as in a notebook: its devices stay
      jax.config.update("jax_num_cpu_devices", _power_of_two(len(os.sched_getaffinity(0))))
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "ddpm_jax" / "compiled"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _power_of_two(cores: int) -> int:
  """The largest one within `cores`: batches are usually divisible by it."""
  return 1 << (cores.bit_length() - 1)
