"""What compiled programs hold on 8 devices: JAX_NUM_CPU_DEVICES=8 python tests/compiled.py, prints JSON."""

import json

import jax

from ddpm_jax import config as configs
from ddpm_jax.scale import plan

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


on = jax.devices()
report = {"samplers": {name: figures(plan.sampler(tiny(*changes), on, 1)) for name, changes in SAMPLERS.items()}}
report["parameters"] = plan.parameters(tiny())
report["train"] = {fsdp: figures(plan.train_step(tiny(f"mesh.fsdp={fsdp}"), on)) for fsdp in (1, 8)}
print(json.dumps(report))
