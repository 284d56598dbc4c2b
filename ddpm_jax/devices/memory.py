"""Device memory of compiled programs, and the choice of network.remat="auto" that follows from it."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from ddpm_jax.devices import processes
from ddpm_jax.errors import UserError
from ddpm_jax.models.recompute import REMAT

log = logging.getLogger(__name__)


class TooLarge(UserError):
  """The compiler reports that a program does not fit the chip's memory."""


@dataclasses.dataclass(frozen=True)
class Needs:
  """The memory that a program needs on one device.

  Attributes:
    arguments: bytes of arguments and results; a donated argument and its result count once.
    temporaries: bytes of temporary buffers.
    peak: total bytes, including the program itself.
  """

  arguments: int
  temporaries: int
  peak: int


def compile_lowered(lowered: Any, options: dict | None = None) -> tuple[Any, Needs]:
  """Compiles the result of jax.jit(...).lower(...) and returns the program with its memory needs.

  Raises:
    TooLarge: if the compiler reports that the program does not fit.
  """
  try:
    program = lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise TooLarge(next(line for line in str(error).splitlines() if "RESOURCE_EXHAUSTED" in line)) from None
  memory = program.memory_analysis()
  arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  peak = arguments + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
  return program, Needs(arguments, memory.temp_size_in_bytes, peak)


# ---------------------------------------------------------------- network.remat = "auto"

Step = TypeVar("Step")


def least_remat(measure: Callable[[str], tuple[Step, int]], limit: int) -> Step:
  """The training step that recomputes least and fits `limit` bytes; if none fits, the one that keeps least.

  Args:
    measure: measure(remat) -> (the step, its peak in bytes); may raise TooLarge.
  """
  tried = []
  for remat in REMAT:
    step = None
    fits = False
    try:
      step, peak = measure(remat)
      tried.append(f"{remat} needs {peak / 2**30:.3g}")
      fits = peak <= limit
    except TooLarge:
      if remat == [*REMAT][-1]:
        raise
      tried.append(f"{remat} is too large to compile")
    if processes.agreed(fits):
      break
  log.info("remat=%s: %s of %.3g GiB.", remat, ", ".join(tried), limit / 2**30)
  return step
