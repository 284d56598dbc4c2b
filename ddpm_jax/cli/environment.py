"""Settings to make before any use of a device: virtual CPU devices, the compilation cache, other processes."""

import argparse
import contextlib
import os
import pathlib

from ddpm_jax.devices import processes
from ddpm_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of commands that several processes can run together."""
  several = parser.add_argument_group(
    "several processes",
    "Detected on a TPU slice, under srun, and from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and\n"
    "JAX_PROCESS_ID (Kubernetes); launch/ has scripts for each. Elsewhere start the same command on every host with:",
  )
  several.add_argument("--coordinator", metavar="HOST:PORT", help="the address on which process 0 listens")
  several.add_argument("--processes", type=int, metavar="N", help="the number of processes")
  several.add_argument("--process", type=int, metavar="K", help="the index of this process, 0 to N - 1")
  several.add_argument("--wait", type=float, default=300.0, metavar="S", help="seconds to wait for all (%(default)g)")


def prepare(args: argparse.Namespace | None = None, *, saves: bool = False) -> None:
  """Prepares JAX; every command that computes calls it once.

  Args:
    args: arguments with the flags above, for commands that several processes can share.
    saves: whether the command saves its state at SIGTERM instead of ending at once.

  XLA does not use all CPU cores well for one program, so the batch is split over virtual devices. Compiled programs
  are cached in $XDG_CACHE_HOME/ddpm_jax, or in $JAX_COMPILATION_CACHE_DIR if it is set.
  """
  import jax

  if "JAX_NUM_CPU_DEVICES" not in os.environ:
    with contextlib.suppress(RuntimeError):  # raised if JAX is already running, as in a notebook, whose devices stay
      jax.config.update("jax_num_cpu_devices", _power_of_two(len(os.sched_getaffinity(0))))
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "ddpm_jax" / "compiled"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  if args is not None:
    flags = {name: getattr(args, name) for name in ("coordinator", "processes", "process")}
    if (group := processes.find(**flags)) is not None:
      processes.join(group, args.wait, saves=saves)


def prepare_alone(command: str) -> None:
  """Prepares JAX for a command that runs in one process.

  Raises:
    UserError: if the environment says that several processes run it.
  """
  if (group := processes.find()) is not None:
    raise UserError(
      f"ddpm-jax {command} runs in one process, but the environment says that this is one of {group.processes}: start it "
      "once, without srun or launch/local.sh, and without JAX_NUM_PROCESSES."
    )
  prepare()


def _power_of_two(cores: int) -> int:
  """The largest power of two up to `cores`, by which batches are usually divisible."""
  return 1 << (cores.bit_length() - 1)
