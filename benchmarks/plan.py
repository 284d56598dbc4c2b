"""ddpm-jax plan for the published configs on TPU slices that are not there: benchmarks/plan.json and its table.

    pip install 'ddpm_jax[tpu]'
    python benchmarks/plan.py                            # rows that plan.json has already are kept
    python benchmarks/plan.py --table                    # only prints the table of plan.json

Each row is one command, printed with it. One program at a time: the compiler takes one core and some GB per program.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
SLICES = ("v5e:4x4", "v5p:2x2x4")  # 16 chips each
# fsdp 16: weights, averages and optimizer of the large ones take 16 bytes per parameter, 9 GB, on each chip otherwise
ROWS = [
  (config, topology, changes)
  for config, changes in (
    ("cifar10_ddpm", []),
    ("imagenet64_adm", []),
    ("imagenet256_adm", ["mesh.fsdp=16"]),
    ("imagenet512_adm", ["mesh.fsdp=16"]),
  )
  for topology in SLICES
]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--table", action="store_true")
parser.add_argument("--only", default="", help="rows whose command contains this")
parser.add_argument("--as_configured", action="store_true", help="do not search for the largest batch")
parser.add_argument("--out", default=str(HERE / "plan.json"))
args = parser.parse_args()
out = pathlib.Path(args.out)
rows = json.loads(out.read_text()) if out.exists() else {}


def command(config: str, topology: str, changes: list[str], program: str) -> list[str]:
  flags = ["--programs", program, *["--as_configured"] * args.as_configured]
  return ["plan", "--config", config, "--topology", topology, *flags, *[f"--config.{change}" for change in changes]]


def measure() -> None:
  for config, topology, changes in ROWS:
    for program in ("sample", "train"):
      words = command(config, topology, changes, program)
      name = " ".join(["ddpm-jax", *words])
      if name in rows or args.only not in name:
        continue
      print(name, flush=True)
      with tempfile.TemporaryDirectory() as scratch:
        file = pathlib.Path(scratch) / "plan.json"
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "ddpm_jax", *words, "--json", str(file)])
        if done.returncode:
          print(f"exit code {done.returncode}", flush=True)
          continue
        rows[name] = json.loads(file.read_text()) | {"seconds_in_all": round(time.perf_counter() - began)}
      out.write_text(json.dumps(rows, indent=1) + "\n")


def table() -> None:
  """Markdown."""
  print(
    "| config | slice | program | images per chip | GFLOP per image | GiB per chip | GB moved, sent "
    "| s per call at best | images/s at best | compiled in |\n" + "|---" * 10 + "|"
  )
  for row in rows.values():
    for name in ("train", "sample"):
      if name not in row:
        continue
      label = f"| {row['config']} | {row['topology']} | {name} "
      if row[name] is None:
        print(f"{label}| does not fit | | | | | | |")
        continue
      fit = row[name]
      program = row[name]["program"]
      shared = program["images"] // program["devices"] // fit["per_device"]
      size = f"{fit['per_device']}" + (f" x {shared}" if shared > 1 else "")
      bounds = fit["seconds"]
      longest = max(bounds, key=bounds.get)
      print(
        f"{label}| {size}{'' if fit['searched'] else ' (as configured)'} | {program['flops'] / 1e9:,.4g} "
        f"| {program['peak'] / 2**30:.2f} | {program['moved'] / 1e9:,.3g}, {program['sent'] / 1e9:.3g} "
        f"| {bounds[longest]:.3g} ({longest}) | {fit['images_per_second']:,.0f} | {program['compile_seconds']:.0f} s |"
      )


if not args.table:
  measure()
table()
