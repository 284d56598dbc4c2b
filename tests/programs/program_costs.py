"""Memory and operations of the main programs, as reported by the compiler.

`python tests/programs/program_costs.py` writes them to program_costs.json. Run it after a change that is meant to change
them, and look at the difference.
"""

import json
import pathlib

import jax

from ddpm_jax import config as configs
from ddpm_jax.jobs import plan

STORED = pathlib.Path(__file__).with_suffix(".json")
GUIDED = ["sampling.guidance.kind=classifier", "sampling.guidance.model=mnist_classifier:smoke", "sampling.eta=0.0"]
PROGRAMS = {
  "training step": lambda: plan.train_step(small(), jax.devices()[:1]),
  "sampler": lambda: plan.sampler(small("sampling.guidance.kind=None"), jax.devices()[:1], 4),
  "guided sampler": lambda: plan.sampler(small(*GUIDED), jax.devices()[:1], 4),
}


def small(*changes: str):
  """A network of two levels on 8x8 digits in blocks of 2x2 pixels: compiled in seconds."""
  return configs.override(configs.load("mnist_cond:smoke"), ["network.channels=8", "network.groups=4", *changes])


def measure(name: str) -> dict[str, float]:
  """Bytes that have to be there, and operations per image."""
  program = PROGRAMS[name]()
  return {"peak": program.peak, "flops": program.flops}


if __name__ == "__main__":
  found = {"jax": jax.__version__, "programs": {name: measure(name) for name in PROGRAMS}}
  STORED.write_text(json.dumps(found, indent=2) + "\n")
  print(STORED.read_text(), end="")
