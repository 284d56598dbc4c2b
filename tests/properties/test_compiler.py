"""Programs whose temporaries come in pieces: the same programs, in smaller pieces, and nothing said."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.devices import compiler
from ddpm_jax.files import protobuf

cpu_alone = pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends keep their memory")
MB = 1_000_000


def step(weight, state):
  """Needs all of 12 products at its end, each as large as the state."""
  products = [state]
  for _ in range(12):
    products.append(jnp.tanh(products[-1] @ weight))
  return sum(a * b for a, b in zip(products, products[::-1], strict=True))


def arguments(mb: int):
  return jnp.eye(100) / 2, jnp.ones((mb * MB // 400, 100))


def pieces(jitted, *args) -> list[int]:
  """Bytes of all that the program asks for (`BufferAssignmentProto.buffer_allocations[].size` of XLA)."""
  assignment = jitted.lower(*args).compile().memory_analysis().serialized_buffer_assignment_proto
  return [dict(protobuf.fields(each))[2] for number, each in protobuf.fields(assignment) if number == 3]


@cpu_alone
@pytest.mark.parametrize("mb", [2, 12], ids="{} MB".format)
def test_temporaries_come_in_pieces_that_the_c_library_keeps(mb, capfd):
  jitted = jax.jit(step, donate_argnums=1)
  args = arguments(mb)
  kept = compiler.repeated(jitted, *args)
  assert max(pieces(jitted, *args)) >= 11 * mb * MB
  assert max(pieces(kept, *args)) == max(mb, 8) * MB
  np.testing.assert_array_equal(kept(*args), jitted(*arguments(mb)))
  assert args[1].is_deleted() and not args[0].is_deleted()  # donated as before
  assert kept is compiler.repeated(jitted, *arguments(mb))  # compiled once, whoever asks
  assert "per-heap" not in capfd.readouterr().err  # XLA's warning, once per array that is larger than a piece


@cpu_alone
def test_they_cannot_be_stored_and_nothing_is_said_of_it(tmp_path):
  program = """import sys; sys.path.append("tests/properties")
import test_compiler, jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
args = test_compiler.arguments(2)
test_compiler.compiler.repeated(jax.jit(test_compiler.step), *args)(*args)"""
  environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_RAISE_PERSISTENT_CACHE_ERRORS": "0"}
  done = subprocess.run([sys.executable, "-W", "always", "-c", program], env=environment, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, "")
  assert not list(tmp_path.glob("jit_step*"))  # as soon as it can be stored, `times` has no use


def test_what_is_called_a_few_times_stays_in_the_cache_of_programs():
  jitted = jax.jit(step)
  args = arguments(2)
  flop = 12 * 2 * 100 * args[1].size
  assert compiler.repeated(jitted, *args, times=2.3e13 / flop) is jitted
  assert (compiler.repeated(jitted, *args, times=2.5e13 / flop) is jitted) == (jax.default_backend() != "cpu")


def test_arrays_that_are_too_large_are_left_alone():
  jitted = jax.jit(step)
  assert compiler.repeated(jitted, *arguments(32)) is jitted
  assert compiler.repeated(jitted, jnp.eye(3000), jnp.ones((1, 3000))) is jitted  # a weight


@cpu_alone
def test_options_that_the_compiler_does_not_know_are_not_used():
  assert compiler._known(xla_cpu_no_such_option=1) is None
