"""Time and peak memory of converting a large checkpoint, and of exporting it again, by the command line.

    python benchmarks/conversion.py --out benchmarks/conversion.json

Random weights in OpenAI's names and file format, of ADM for ImageNet 256 unless --config says otherwise. What is exported
is compared with them bit by bit.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import side_by_side


def write(config: str, path: pathlib.Path) -> dict:
  """The tensors of a checkpoint, written to `path`."""
  import numpy as np

  from ddpm_jax import build
  from ddpm_jax import config as configs
  from ddpm_jax.convert import convert, names, weight_files
  from ddpm_jax.jobs import plan

  loaded = configs.load(config)
  info = plan.described(loaded)
  with loaded.data.ignore_type():
    loaded.data.update(image_size=info.image_size, channels=info.channels, num_classes=info.num_classes)
  module = build.model(loaded, info.channels, info.num_classes)
  random = np.random.default_rng(0)
  tensors = {}
  for entry in names.entries(module, convert.parameter_shapes(module, loaded), "openai"):
    tensors |= {name: random.standard_normal(entry.their_shape, np.float32) for name in entry.theirs}
  weight_files.write(path, tensors)
  return tensors


def run(*words: str | pathlib.Path) -> dict:
  """Seconds and peak memory of a ddpm-jax command."""
  start = time.perf_counter()
  process = subprocess.Popen([sys.executable, "-m", "ddpm_jax", *map(str, words)])
  _, status, usage = os.wait4(process.pid, 0)
  assert status == 0, f"exit code {os.waitstatus_to_exitcode(status)}"
  return {"seconds": round(time.perf_counter() - start, 1), "peak_gib": round(usage.ru_maxrss / 2**20, 2)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="imagenet256_adm", help="one of OpenAI's networks")
  parser.add_argument("--out")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    given, run_dir, back = (pathlib.Path(scratch) / name for name in ("random.pt", "run", "back.pt"))
    tensors = write(args.config, given)
    result = {"config": args.config, "file_gib": round(given.stat().st_size / 2**30, 2)}
    result["convert"] = run("convert", given, "--out", run_dir, "--like", args.config)
    result["export"] = run("convert", "--export", back, "--workdir", run_dir, "--family", "openai")

    from ddpm_jax.convert import weight_files

    returned = weight_files.read(back).tensors
    result["bitwise_equal"] = tensors.keys() == returned.keys() and all(
      tensor.tobytes() == returned[name].tobytes() for name, tensor in tensors.items()
    )
  for step in ("convert", "export"):
    result[step]["times_the_file"] = round(result[step]["peak_gib"] / result["file_gib"], 2)
  print(result)
  side_by_side.write(args.out, result)


if __name__ == "__main__":
  main()
