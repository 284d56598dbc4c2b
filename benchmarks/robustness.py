"""What a run survives, at length; the tests hold the short version.

  python benchmarks/robustness.py            # half an hour on a quiet machine; writes benchmarks/robustness.json
  python benchmarks/robustness.py flips kills

Everything happens to the miniature run of tests/programs/tiny_run.py in a temporary directory.
"""

import collections
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
TESTS = HERE.parent / "tests" / "programs"
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{HERE.parent}:{TESTS}"}
FLIPS = 200
KILLS = 100
TERMS = 10


def start(directory: pathlib.Path, *arguments: str, limit: int | None = None, **environment: str) -> subprocess.Popen:
  """The miniature run as a process, which may write files of `limit` bytes at most."""
  command = [sys.executable, str(TESTS / "tiny_run.py"), str(directory), *arguments]
  if limit is not None:
    command = ["sh", "-c", f'trap \'\' XFSZ; ulimit -f {limit // 512}; exec "$0" "$@"', *command]
  environment = {**ENVIRONMENT, "JAX_COMPILATION_CACHE_DIR": str(directory.parent / "cache"), **environment}
  return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> str:
  """Its last line; it must have succeeded."""
  out, err = process.communicate(timeout=1200)
  assert process.returncode == 0, err[-2000:]
  return out.splitlines()[-1]


# ---------------------------------------------------------------------------------------------------- damaged files


class Damage:
  """Restores copies of a sound directory with steps 35 and 40 after something was done to step 40."""

  def __init__(self, directory: pathlib.Path):
    import jax
    import tiny_run

    from ddpm_jax.training.checkpoints import Checkpoints

    self.checkpoints = Checkpoints
    self.fingerprint = tiny_run.fingerprint
    self.sound = directory / "sound"
    self.copy = directory / "copy"
    if not self.sound.exists():
      tiny_run.run(self.sound, keep=2)
    shapes = jax.eval_shape(tiny_run.make()[0])
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    self.like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), shapes)
    self.truth = {}
    for step in (40, 35):
      self.truth[step] = self.fingerprint(self.fresh().restore(self.like)[0])
      shutil.rmtree(self.sound / str(step)) if step == 40 else None
      if step == 40:
        shutil.copytree(self.copy / "40", directory / "forty")
    shutil.copytree(directory / "forty", self.sound / "40")

  def fresh(self):
    shutil.rmtree(self.copy, ignore_errors=True)
    shutil.copytree(self.sound, self.copy)
    return self.checkpoints(self.copy)

  def files(self) -> list[pathlib.Path]:
    return sorted(p.relative_to(self.sound / "40") for p in (self.sound / "40").rglob("*") if p.is_file())

  def outcome(self, harm) -> str:
    """ "detected" (step 35 came back), "harmless" (step 40 did, and is right) or "WRONG"."""
    run = self.fresh()
    harm(self.copy / "40")
    state, manifest = run.restore(self.like)
    right = self.fingerprint(state) == self.truth[manifest.step]
    return "WRONG" if not right else "detected" if manifest.step == 35 else "harmless"


def kind(path: pathlib.Path) -> str:
  """What a file is, whatever its random name: "params/ocdbt.process_0/d/*"."""
  return "/".join("*" if len(part) == 32 else part for part in path.parts)


def flips(directory: pathlib.Path) -> dict:
  """One flipped bit in step 40, each byte of the checkpoint as likely as another."""
  damage = Damage(directory)
  rng = random.Random(0)
  files = damage.files()
  sizes = [(damage.sound / "40" / path).stat().st_size for path in files]
  counts = collections.Counter()
  for _ in range(FLIPS):
    (path,) = rng.choices(files, sizes)

    def harm(step, path=path):
      data = bytearray((step / path).read_bytes())
      data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
      (step / path).write_bytes(data)

    counts[damage.outcome(harm)] += 1
  return dict(counts)


def truncations(directory: pathlib.Path) -> dict:
  """Each kind of file cut at 10 offsets."""
  damage = Damage(directory)
  counts = collections.Counter()
  size = lambda path: (damage.sound / "40" / path).stat().st_size
  for path in {kind(path): path for path in sorted(damage.files(), key=size)}.values():  # the largest of each kind
    for tenth in range(10):

      def harm(step, path=path, tenth=tenth):
        data = (step / path).read_bytes()
        (step / path).write_bytes(data[: len(data) * tenth // 10])

      counts[damage.outcome(harm)] += 1
  return dict(counts)


def missing(directory: pathlib.Path) -> dict:
  """Each file taken away in turn; what happened to the files of each kind."""
  damage = Damage(directory)
  outcomes = collections.defaultdict(set)
  for path in damage.files():
    outcomes[kind(path)].add(damage.outcome(lambda step, path=path: (step / path).unlink()))
  return {name: sorted(found) for name, found in outcomes.items()}


# ---------------------------------------------------------------------------------------------------- signals


def kills(directory: pathlib.Path, every: int = 2) -> dict:
  """SIGKILL at a moment uniform in the first 2 s of training, again and again, a checkpoint every other step.

  None may cost more than `every` steps, whatever is being written.
  """
  rng = random.Random(0)
  run = directory / "run"
  reached = 0
  lost = []
  damaged = 0
  leftovers = 0
  for _ in range(KILLS):
    process = start(run, "--steps", "1000000", "--every", str(every), "--verbose")
    done = reached
    for text in process.stderr:
      damaged += "damaged" in text
      if text.startswith("Continuing from step"):
        lost.append(reached - int(text.split()[3]))
      if text.startswith("step "):
        break
    time.sleep(rng.uniform(0, 2))
    process.kill()
    for text in process.stderr:
      if text.startswith("step "):
        done = int(text.split("/")[0].split()[-1])
    process.wait()
    process.stdout.close()
    reached = max(reached, done)
    leftovers += any("tmp" in p.name for p in run.iterdir()) if run.exists() else 0
  last = max(int(p.name) for p in run.iterdir() if p.name.isdigit())
  stormy = finish(start(run, "--steps", str(last + 4), "--every", str(every)))
  calm = finish(start(directory / "calm", "--steps", str(last + 4), "--every", str(last + 4)))
  rows = lambda path: [json.loads(row)["loss"] for row in (path / "log" / "metrics.jsonl").open()]
  return {
    "kills": KILLS,
    "checkpoint_every": every,
    "steps_reached": last,
    "unreadable": damaged,
    "kills_that_left_a_partial_write": leftovers,
    "most_steps_lost": max(lost),
    "final_state_bitwise_equal": stormy == calm,
    "every_loss_bitwise_equal": rows(run) == rows(directory / "calm"),
  }


def terms(directory: pathlib.Path) -> dict:
  """SIGTERM at a random moment of training."""
  rng = random.Random(1)
  run = directory / "run"
  seconds = []
  codes = []
  lost = []
  reached = 0
  for _ in range(TERMS):
    process = start(run, "--steps", "1000000", "--every", "1000000", "--verbose")
    for text in process.stderr:
      if text.startswith("Continuing from step"):
        lost.append(reached - int(text.split()[3]))
      if text.startswith("step "):
        break
    time.sleep(rng.uniform(0, 1))
    began = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    for text in process.stderr:
      if text.startswith("step "):
        reached = int(text.split("/")[0].split()[-1])
    codes.append(process.wait())
    process.stdout.close()
    seconds.append(time.perf_counter() - began)
  return {
    "terms": TERMS,
    "exit_codes": sorted(set(codes)),
    "most_seconds": round(max(seconds), 2),
    "most_steps_lost": max(lost),
  }


def full_disk(directory: pathlib.Path) -> dict:
  """No file may grow beyond 16 kB after step 10: a checkpoint fails, and the run ends; with room again it continues."""
  finish(start(directory / "run", "--steps", "10"))
  process = start(directory / "run", limit=16_384)
  _, err = process.communicate(timeout=600)
  after = finish(start(directory / "run"))
  return {
    "exit_code": process.returncode,
    "lines_on_stderr": len(err.splitlines()),  # that it tries again, and that it failed
    "said_so": err.splitlines()[-1].startswith("A checkpoint could not be written to"),
    "continues_bitwise": after == finish(start(directory / "unbroken")),
  }


def resumption(directory: pathlib.Path) -> dict:
  """40 = 17 + kill + 23, dropout on, on 1 and on 8 devices; and the same run twice."""
  result = {}
  for count in ("1", "8"):
    devices = {"JAX_NUM_CPU_DEVICES": count}
    whole, again, broken = (directory / f"{name}{count}" for name in ("whole", "again", "broken"))
    first = finish(start(whole, "--dropout", "0.1", **devices))
    process = start(broken, "--dropout", "0.1", "--every", "1", "--die", "18", **devices)
    process.communicate(timeout=600)
    result[f"{count}_devices"] = {
      "killed_by": -process.returncode,
      "resumed_bitwise": finish(start(broken, "--dropout", "0.1", **devices)) == first,
      "same_twice": finish(start(again, "--dropout", "0.1", **devices)) == first,
    }
  return result


def meshes(directory: pathlib.Path) -> dict:
  """Loss curves over 40 steps, and elastic restoration, on all meshes of 1, 2, 4 and 8 devices."""
  command = [sys.executable, str(TESTS / "devices.py"), str(directory), "--all"]
  done = subprocess.run(command, env={**ENVIRONMENT, "JAX_NUM_CPU_DEVICES": "8"}, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  report = json.loads(done.stdout.splitlines()[-1])
  curve = report["curves"]["1"]
  relative = lambda a, b: max(abs(x / y - 1) for x, y in zip(a, b, strict=True))
  return {
    "largest_relative_difference_of_losses": {
      name: float(f"{relative(losses, curve):.2g}") for name, losses in report["curves"].items()
    },
    "restored_bitwise": set(report["restored"].values()) == {report["saved"]},
    "next_loss_relative": float(
      f"{relative(report['next_loss'].values(), [report['next_loss']['1']] * len(report['next_loss'])):.2g}"
    ),
  }


EXPERIMENTS = {f.__name__: f for f in (flips, truncations, missing, kills, terms, full_disk, resumption, meshes)}


def main() -> None:
  sys.path[:0] = [str(TESTS), str(HERE.parent)]
  path = HERE / "robustness.json"
  results = json.loads(path.read_text()) if path.exists() else {}
  for name in sys.argv[1:] or EXPERIMENTS:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
      results[name] = EXPERIMENTS[name](pathlib.Path(directory))
    print(f"{name} ({time.perf_counter() - began:.0f} s): {json.dumps(results[name])}", flush=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
  main()
