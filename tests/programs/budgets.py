"""Kernels, bytes and memory of the main programs on one H100 by XLA's compiler.

`python tests/programs/budgets.py` stores them. It needs `jax[cuda12]` and no GPU. Run it after a change that was meant to
change them, and look at the difference.
"""

import json
import os
import pathlib
import sys

STORED = pathlib.Path(__file__).with_suffix(".json")
HALF = "network.dtype=bfloat16"
DDIM = ["sampling.grid=uniform", "sampling.steps=50", "sampling.eta=0.0", "sampling.covariance=posterior"]
PROGRAMS = {
  "cifar10_ddpm, training step": ("train", "cifar10_ddpm", [HALF]),
  "cifar10_ddpm, one DDIM step": ("sample", "cifar10_ddpm", [HALF, *DDIM]),
}
IMAGES = 128


def measure(name: str) -> dict[str, float]:
  """Kernels of the step, bytes that they move, bytes of memory."""
  import jax

  from ddpm_jax import config as configs
  from ddpm_jax.jobs import plan

  jax.config.update("jax_enable_compilation_cache", False)  # it stores programs for absent chips but cannot load them
  program, config, changes = PROGRAMS[name]
  config = configs.override(configs.load(config), changes)
  devices = plan.devices("h100:1")
  found = plan.train_step(config, devices) if program == "train" else plan.sampler(config, devices, IMAGES)
  return {"kernels": found.kernels.count, "moved": sum(found.kernels.moved.values()), "peak": found.peak}


def store(names: list[str]) -> None:
  """Measures the programs `names` and stores the results beside those of the others."""
  import jax

  stored = json.loads(STORED.read_text()) if STORED.exists() else {"programs": {}}
  stored["jax"] = jax.__version__
  for name in names:
    stored["programs"][name] = measure(name)
    print(name, stored["programs"][name], flush=True)
    STORED.write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  store(sys.argv[1:] or list(PROGRAMS))
