"""Numbers that the original authors' code produced (tests/golden/README.md)."""

import json
import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())


class Golden:
  """One file of numbers that the official implementations produced."""

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
