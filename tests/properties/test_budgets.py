"""The programs of an H100 stay as lean as they are: kernels, bytes and memory by XLA's compiler, where it is installed."""

import importlib.util
import json

import budgets
import jax
import pytest

STORED = json.loads(budgets.STORED.read_text())


@pytest.mark.skipif(importlib.util.find_spec("jax_cuda12_plugin") is None, reason="needs jax[cuda12], and no GPU")
@pytest.mark.skipif(jax.__version__ != STORED["jax"], reason="another compiler makes other kernels")
@pytest.mark.parametrize("name", STORED["programs"])
def test_kernels_bytes_and_memory_are_those_written_down(name):
  found = budgets.measure(name)
  stored = STORED["programs"][name]
  for quantity, amount in stored.items():
    assert found[quantity] <= 1.05 * amount, f"{quantity}; wanted? Then python tests/programs/budgets.py"
