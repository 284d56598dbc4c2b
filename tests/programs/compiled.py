"""Prints as JSON what programs compiled for 8 devices hold and do.

JAX_NUM_CPU_DEVICES=8 python tests/programs/compiled.py
"""

import json

import jax
import numpy as np

from ddpm_jax import build
from ddpm_jax import config as configs
from ddpm_jax.devices import mesh as layout
from ddpm_jax.jobs import plan, trained

TINY = ["network.channels=8", "network.groups=4"]
CLASSIFIER = ["sampling.guidance.kind=classifier", "sampling.guidance.model=mnist_classifier:smoke"]
SAMPLERS = {
  "classifier_free": ["sampling.guidance.kind=classifier_free"],
  "classifier, mean": [*CLASSIFIER, "sampling.guidance.form=mean"],
  "classifier, score": [*CLASSIFIER, "sampling.guidance.form=score", "sampling.eta=0.0"],
}


def tiny(*changes: str):
  config = configs.override(configs.load("mnist_cond:smoke"), [*TINY, *changes])
  config.train.update(batch_size=8)
  return config


def figures(program: plan.Program) -> dict:
  return {"collectives": program.collectives, "arguments": program.arguments, "images": program.images}


def one_image_and_eight() -> dict:
  """Image 5 by itself, on the first device, and as one of eight, one on each."""
  config = tiny("sampling.grid=uniform", "sampling.steps=3")
  drawn_on = []
  with config.data.ignore_type():
    config.data.update(image_size=8, channels=1, num_classes=10)
  module = build.model(config, config.data.channels, config.data.num_classes)
  drawn = build.initial_params(module, jax.random.key(0), config.data.image_size, config.data.channels)
  params = jax.device_put(jax.tree.map(lambda w: w + 0.01, drawn), layout.replicated(layout.make_mesh()))  # none is zero
  run = trained.Trained(config, build.network(config, module, params), 0, "random")
  to_pixels = trained.Trained.to_pixels

  def noted(self, x, seeds):
    drawn_on.append(len(x.sharding.device_set))
    return to_pixels(self, x, seeds)

  trained.Trained.to_pixels = noted
  eight = run.sample(range(8), range(8))
  one = run.sample([5], [5])
  difference = np.abs(eight[5].astype(int) - one[0].astype(int)).max()
  return {"devices": drawn_on, "spread": int(np.ptp(eight)), "difference": int(difference)}


on = jax.devices()
report = {"samplers": {name: figures(plan.sampler(tiny(*changes), on, 1)) for name, changes in SAMPLERS.items()}}
report["parameters"] = plan.parameters(tiny())
report["train"] = {fsdp: figures(plan.train_step(tiny(f"mesh.fsdp={fsdp}"), on)) for fsdp in (1, 8)}
report["images"] = one_image_and_eight()
print(json.dumps(report))
