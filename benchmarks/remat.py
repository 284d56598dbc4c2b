"""What network.remat saves and costs, in remat.json and its tables: per policy what is kept and computed for an image, a
gradient on this machine, and training steps on 16 TPU chips that are not there.

    pip install 'ddpm_jax[tpu]'
    python benchmarks/remat.py                           # rows that remat.json has already are kept
    python benchmarks/remat.py --table                   # only prints the tables of remat.json and plan.json

Each step is one command, printed with it, and takes minutes of a core; those of a config's own policy are in plan.json.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp

from ddpm_jax import build
from ddpm_jax import config as configs
from ddpm_jax.devices import flops
from ddpm_jax.jobs import plan
from ddpm_jax.jobs.train import with_remat
from ddpm_jax.models.recompute import REMAT

HERE = pathlib.Path(__file__).parent
SLICE = "v5e:4x4"
# config, changes, policy -> images per chip at a time
ROWS = (
  ("cifar10_ddpm", [], {"norms": (8,), "blocks": (8,)}),
  ("imagenet64_adm", [], {"none": (16,), "norms": (32,)}),
  ("imagenet256_adm", ["mesh.fsdp=16"], {"none": (4,), "norms": (8,)}),
  ("imagenet512_adm", ["mesh.fsdp=16"], {"norms": (1,), "blocks": (1,)}),
)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--table", action="store_true")
  parser.add_argument("--only", default="", help="rows whose command contains this")
  parser.add_argument("--out", default=str(HERE / "remat.json"))
  args = parser.parse_args()
  out = pathlib.Path(args.out)
  found = json.loads(out.read_text()) if out.exists() else {"here": {}, "per_image": {}, "steps": {}}

  def keep(kind: str, name: str, measure, *arguments) -> None:
    if name in found[kind] or args.only not in name:
      return
    print(name, flush=True)
    found[kind][name] = measure(*arguments)
    out.write_text(json.dumps(found, indent=1) + "\n")

  if not args.table:
    keep("here", "cifar10_ddpm, 8 images", here, "cifar10_ddpm", 8)
    for config, changes, policies in ROWS:
      for remat in REMAT:
        keep("per_image", f"{config} {remat}", per_image, config, remat)
      for remat, sizes in policies.items():
        for images in sizes:
          words = command(config, [*changes, f"network.remat={remat}", f"train.per_device_batch={images}"])
          keep("steps", " ".join(["ddpm-jax", *words]), step, words)
  tables(found)


def loss_of(name: str, remat: str, images: int = 1):
  """(loss of weights and images in training, shapes of these)."""
  config = with_remat(plan.complete(configs.load(name)), remat)
  data = config.data
  key = jax.random.key(0)
  module = build.model(config, data.channels, data.num_classes)
  cond = {"label": jnp.zeros(images, jnp.int32)}

  def loss(params, x):
    out = module.apply({"params": params}, x, jnp.ones(images), cond, train=True, rngs={"dropout": key})
    return jnp.square(out).mean()

  params = jax.eval_shape(lambda: build.initial_params(module, key, data.image_size, data.channels))
  return loss, (params, jax.ShapeDtypeStruct((images, data.image_size, data.image_size, data.channels), jnp.float32))


def per_image(name: str, remat: str) -> dict[str, float]:
  """Bytes that wait for the backward pass beside the weights, and operations of a gradient, by tracing alone."""
  loss, given = loss_of(name, remat)
  waiting = jax.eval_shape(lambda *given: jax.vjp(loss, *given)[1], *given)
  kept, weights = (sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) for tree in (waiting, given[0]))
  return {"kept": kept - weights, "flops": flops.count(jax.make_jaxpr(jax.grad(loss))(*given))}


def here(name: str, images: int, rounds: int = 3) -> dict[str, dict]:
  """Temporaries and seconds of a gradient on the first device here, the policies in turns."""
  gradients = {}
  seconds = {remat: [] for remat in REMAT}
  for remat in REMAT:
    loss, given = loss_of(name, remat, images)
    gradients[remat] = jax.jit(jax.grad(loss)).lower(*given).compile()
  given = jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), given)
  for _ in range(rounds + 1):
    for remat, gradient in gradients.items():
      began = time.perf_counter()
      jax.block_until_ready(gradient(*given))
      seconds[remat].append(time.perf_counter() - began)
  temporaries = {remat: gradient.memory_analysis().temp_size_in_bytes for remat, gradient in gradients.items()}
  return {remat: {"temporaries": temporaries[remat], "seconds": sorted(seconds[remat][1:])} for remat in REMAT}


def command(config: str, changes: list[str]) -> list[str]:
  words = ["plan", "--config", config, "--topology", SLICE, "--programs", "train", "--as_configured"]
  return [*words, *[f"--config.{change}" for change in changes]]


def step(words: list[str]) -> dict:
  with tempfile.TemporaryDirectory() as scratch:
    file = pathlib.Path(scratch) / "plan.json"
    subprocess.run([sys.executable, "-m", "ddpm_jax", *words, "--json", str(file)], check=True)
    return json.loads(file.read_text())


def tables(found: dict) -> None:
  """Markdown."""
  for name, row in found["here"].items():
    for remat, figures in row.items():
      ratio = statistics.median(figures["seconds"]) / statistics.median(row["none"]["seconds"])
      print(f"{name}, here, {remat}: {figures['temporaries'] / 2**20:.0f} MiB, {ratio:.2f} times as long as without")
  print("\n| config | remat | MB kept per image | GFLOP per image |\n" + "|---" * 4 + "|")
  for name, row in found["per_image"].items():
    print(f"| {name.replace(' ', ' | ')} | {row['kept'] / 1e6:,.0f} | {row['flops'] / 1e9:,.1f} |")
  own = json.loads((HERE / "plan.json").read_text()).values()
  steps = [row for row in (*own, *found["steps"].values()) if row["topology"] == SLICE and "train" in row]
  print("\n| config | remat | images per chip | GiB per chip | GB moved | s per step at best | images/s |")
  print("|---" * 7 + "|")
  for config, *_ in ROWS:
    of_config = [(policy(row), row) for row in steps if row["config"] == config]
    for remat, row in sorted(of_config, key=lambda pair: [*REMAT].index(pair[0])):
      if (fit := row["train"]) is None:
        images = next(change.partition("=")[2] for change in row["changes"] if "per_device_batch" in change)
        print(f"| {config} | {remat} | {images} | does not fit | | | |")
        continue
      program = fit["program"]
      seconds = fit["seconds"]
      shared = program["images"] // program["devices"] // fit["per_device"]
      bound = max(seconds, key=seconds.get)
      print(
        f"| {config} | {remat} | {fit['per_device']}{f' x {shared}' if shared > 1 else ''} | {program['peak'] / 2**30:.2f} "
        f"| {program['moved'] / 1e9:,.3g} | {seconds[bound]:.3g} ({bound}) | {fit['images_per_second']:,.0f} |"
      )


def policy(row: dict) -> str:
  """Of a plan."""
  return configs.override(configs.load(row["config"]), row["changes"]).network.get("remat", "none")


if __name__ == "__main__":
  main()
