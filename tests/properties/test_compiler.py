"""Programs whose temporaries come in pieces: the same programs, in smaller pieces, and nothing said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.convert import protobuf
from ddpm_jax.scale import compiler

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
  jitted, args = jax.jit(step, donate_argnums=1), arguments(mb)
  kept = compiler.repeated(jitted, *args)
  assert max(pieces(jitted, *args)) >= 11 * mb * MB
  assert max(pieces(kept, *args)) == max(mb, 8) * MB
  np.testing.assert_array_equal(kept(*args), jitted(*arguments(mb)))
  assert args[1].is_deleted() and not args[0].is_deleted()  # donated as before
  assert kept is compiler.repeated(jitted, *arguments(mb))  # compiled once, whoever asks
  assert "per-heap" not in capfd.readouterr().err  # XLA's warning, once per array that is larger than a piece


def test_arrays_that_are_too_large_are_left_alone():
  jitted = jax.jit(step)
  assert compiler.repeated(jitted, *arguments(32)) is jitted
  assert compiler.repeated(jitted, jnp.eye(3000), jnp.ones((1, 3000))) is jitted  # a weight


@cpu_alone
def test_options_that_the_compiler_does_not_know_are_not_used():
  assert compiler._known(xla_cpu_no_such_option=1) is None
