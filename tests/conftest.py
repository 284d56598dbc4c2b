"""What every test shares: strict JAX, and the numbers of the original authors' code."""

import json
import pathlib

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")  # parity with float32 references

collect_ignore = ["commands.py", "compiled.py", "devices.py", "processes.py", "tiny_run.py"]  # programs that tests start

GOLDEN = pathlib.Path(__file__).parent / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())


class Golden:
  """One file of numbers that the official implementations produced (tests/golden/README.md)."""

  def __init__(self, name: str):
    self.arrays = np.load(GOLDEN / f"{name}.npz")
    self.groups = INDEX["files"].get(f"{name}.npz", {}).get("groups", {})  # methods_*.npz are described where they are used

  def __getitem__(self, key: str) -> np.ndarray:
    return self.arrays[key]

  def args(self, group: str) -> dict:
    """Exact hyper-parameters of a group, as the reference was called."""
    return self.groups[group]["args"]

  def state_dict(self, group: str) -> dict[str, np.ndarray]:
    """The stored weights of a network group, by PyTorch key."""
    prefix = f"{group}/sd/"
    return {key.removeprefix(prefix): self.arrays[key] for key in self.arrays.files if key.startswith(prefix)}


@pytest.fixture(scope="session")
def golden():
  """golden("samplers_openai") opens that file once per session."""
  opened: dict[str, Golden] = {}
  return lambda name: opened.setdefault(name, Golden(name))
