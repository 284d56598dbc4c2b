"""The same losses, whatever runs them: 1, 2 and 4 processes with four virtual devices in all and FSDP over 1, 2 and 4, and
with eight and FSDP over 8.

    python benchmarks/processes.py --steps 50 --out benchmarks/processes.json

Runs tests/programs/processes.py (a small network with everything that a run has) in each of twelve arrangements, and once in
an arrangement that changes: four processes until the middle, killed, and two processes from the last checkpoint on.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = ROOT / "tests" / "programs"
MESHES = ((4, 1), (4, 2), (4, 4), (8, 8))  # devices, fsdp
ARRANGEMENTS = [(processes, devices // processes, fsdp) for processes in (1, 2, 4) for devices, fsdp in MESHES]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=50)
parser.add_argument("--out", default="processes.json")
args = parser.parse_args()


def run(directory: pathlib.Path, processes: int, devices: int, fsdp: int, *flags: str) -> int:
  """The exit code of a run."""
  path = os.pathsep.join(map(str, (PROGRAMS, ROOT)))
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": path}
  command = [
    ROOT / "launch" / "local.sh",
    processes,
    sys.executable,
    PROGRAMS / "processes.py",
    directory,
  ]
  command += ["--steps", args.steps, "--fsdp", fsdp, *flags]
  return subprocess.run(list(map(str, command)), env=environment, stdout=subprocess.DEVNULL).returncode


def losses(directory: pathlib.Path) -> list[float]:
  rows = [json.loads(line) for line in (directory / "log" / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == list(range(1, args.steps + 1))
  return [row["loss"] for row in rows]


def farthest(curve: list[float], other: list[float]) -> float:
  """The largest relative distance of two curves."""
  return max(abs(a - b) / abs(b) for a, b in zip(curve, other, strict=True))


report = {"steps": args.steps, "arrangements": []}
reference = None
with tempfile.TemporaryDirectory() as scratch:
  for processes, devices, fsdp in ARRANGEMENTS:
    directory = pathlib.Path(scratch) / f"{processes}x{devices}_fsdp{fsdp}"
    if code := run(directory, processes, devices, fsdp):
      sys.exit(f"{processes} processes, fsdp {fsdp}: exit code {code}")
    curve = losses(directory)
    reference = reference or curve
    row = dict(processes=processes, devices=devices, fsdp=fsdp, farthest=farthest(curve, reference))
    report["arrangements"].append(row)
    print(row, flush=True)

  directory = pathlib.Path(scratch) / "changed"
  middle = args.steps // 2
  killed = run(directory, 4, 1, 4, "--at", str(middle), "--who", "3")
  resumed = run(directory, 2, 2, 2)
  report["killed_and_resumed"] = dict(
    killed_at=middle, exit_codes=[killed, resumed], farthest=farthest(losses(directory), reference)
  )
  print(report["killed_and_resumed"])
pathlib.Path(args.out).write_text(json.dumps(report | {"losses": reference}, indent=1) + "\n")
