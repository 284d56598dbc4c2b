"""SIGKILL at random moments, and two of a job at once: is the result that of an unbroken run?

    python benchmarks/kills.py                    # 100 kills of each job, then pairs; writes benchmarks/kills.json
    python benchmarks/kills.py --jobs sample --kills 10

Each job is a command on a tiny network of digits. It runs in a child process and is killed after a random share of the time
of an unbroken run and started again as it is, up to five times, then left alone until it ends. This is repeated in fresh
directories until the kills are spent.
Whenever it has ended, its files must hold what those of the unbroken run hold (times and dates aside), and nothing else.

Pairs: the same command twice, the second 0, 1 and 3 seconds after the first. Each of the two ends well or refuses in one
sentence, at least one ends well, and the files are those of the unbroken run.
"""

import argparse
import hashlib
import io
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time

import hostile

HERE = pathlib.Path(__file__).parent
TINY = ["channels=8", "channel_mult=(1,)", "groups=4", "attention_resolutions=()"]
NETWORK = [f"--config.network.{field}" for field in TINY]
TRAIN = ["train", "--config", "digits:smoke", *NETWORK]
JOBS = {  # the command, with {} for the directory
  "train": [*TRAIN, "--config.train.total_steps=8", "--config.train.checkpoint_every=4", "--workdir", "{}/new"],
  "sample": "sample --workdir {}/run --config.sampling.batch_size=8 --seeds 0-47 --formats png,npz,grid".split()
  + ["--out", "{}/new"],
  "evaluate": "evaluate --workdir {}/run --likelihood 64 --distance 32".split(),
  "moments": "moments --workdir {}/run --images 256 --per_pixel".split(),
  "prepare": "data prepare small {}/photos --image_size 16 --data_dir {}/new".split(),
  "convert": [*"convert {}/run.safetensors --like digits:smoke --out {}/new --config.data.image_size=8".split(), *NETWORK],
}
KILLS_PER_RUN = 5  # after which it is left alone, so that results are compared often
# Dates, durations and speeds, which no two runs share
TIMES = re.compile("second|time|date|per_sec|created|elapsed|speed|duration|pid|host|argv", re.IGNORECASE)


def in_child(function, *arguments) -> tuple[int, int]:
  """Calls function in a child process, in a group of its own: the child's number, and a pipe with what it returns.

  The child ends with the number that the function returns, or it returns a text and ends with 0.
  """
  read, write = os.pipe()
  number = os.fork()
  if number:
    os.close(write)
    return number, read
  os.setpgid(0, 0)
  silent = os.open(os.devnull, os.O_RDWR)
  for stream in (0, 1, 2):
    os.dup2(silent, stream)
  code, words = function(*arguments)
  os.write(write, words[-1000:].encode())
  os._exit(code)


def command(argv: list[str], cache: pathlib.Path) -> tuple[int, str]:
  """Runs a command line: its exit code, and the last line of what it said on stderr."""
  import jax

  from ddpm_jax.cli import main

  jax.config.update("jax_compilation_cache_dir", str(cache))
  sys.stdout = io.StringIO()
  sys.stderr = io.StringIO()
  code = 1
  try:
    code = main.run(argv)
  except SystemExit as end:
    code = int(end.code or 0)
  except BaseException as error:
    sys.stderr.write(f"\n{type(error).__name__}: {error}")
  lines = sys.stderr.getvalue().strip().splitlines()
  return code, lines[-1] if lines else ""


def wait(job: tuple[int, int]) -> tuple[int, str]:
  """The exit code (negative: the signal) and the last words of a child."""
  number, read = job
  with os.fdopen(read, "rb") as pipe:
    words = pipe.read().decode(errors="replace")
  _, status = os.waitpid(number, 0)
  return os.waitstatus_to_exitcode(status), words


# ---------------------------------------------------------------- what files hold


def timeless(value):
  """JSON without what differs between two runs that do the same."""
  if isinstance(value, dict):
    return {key: timeless(item) for key, item in value.items() if not TIMES.search(key)}
  return [timeless(item) for item in value] if isinstance(value, list) else value


def holds(path: pathlib.Path, root: pathlib.Path) -> str:
  """A digest of what a file holds."""
  if path.suffix == ".npz":
    import numpy as np

    with np.load(path) as stored:
      parts = [name.encode() + stored[name].tobytes() for name in sorted(stored.files) if not TIMES.search(name)]
  elif path.suffix in (".json", ".jsonl"):
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    parts = [json.dumps(timeless(json.loads(line)), sort_keys=True).encode() for line in lines if line]
  else:
    parts = [path.read_bytes()]
  return hashlib.sha256(b"".join(parts).replace(str(root).encode(), b"")).hexdigest()


def weights(workdir: pathlib.Path) -> tuple[int, str]:
  """0, and a digest of the latest checkpoint: its step and all its weights and averages."""
  import jax
  import numpy as np

  from ddpm_jax.training import checkpoints

  directory = str(workdir / "checkpoints")
  groups = sorted({"/".join(name.split("/")[:-1]) for name in checkpoints.load_manifest(directory).leaves})
  rates = sorted({name.split("/")[1] for name in groups if name.startswith("ema/")})
  sets = [*rates, *(["raw"] if any(name.startswith("params/") for name in groups) else [])]
  loaded = [checkpoints.load_weights(directory, ema=name) for name in sets]
  leaves = jax.tree.leaves([each.params for each in loaded])
  return 0, f"{loaded[0].step} " + hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


def bytes_of(folder: pathlib.Path) -> str:
  """A digest of all files in a folder, with their names."""
  files = sorted(path for path in folder.rglob("*") if path.is_file())
  return hashlib.sha256(b"".join(str(path.relative_to(folder)).encode() + path.read_bytes() for path in files)).hexdigest()


def contents(root: pathlib.Path) -> dict[str, str]:
  """name -> digest of every file in a directory, except logs and pictures of measurements.

  Of the checkpoints that were there before, the bytes; of new ones what they restore, since their files have random names.
  """
  found = {}
  for path in sorted(path for path in root.rglob("*") if path.is_file()):
    name = str(path.relative_to(root))
    if not re.search(r"checkpoints/|events/|commands\.log|evaluation/.*\.png", name):
      found[name] = holds(path, root)
  for folder in sorted({path.parent for path in root.rglob("checkpoints")}):
    name = f"{folder.relative_to(root)}/checkpoints"
    if folder.name == "run":
      found[name] = bytes_of(folder / "checkpoints")
      continue
    code, words = wait(in_child(weights, folder))
    found[name] = words if code == 0 else f"cannot be restored: {words}"
  found |= {str(path.relative_to(root)): "empty" for path in root.rglob("*") if path.is_dir() and not any(path.iterdir())}
  return found


# ---------------------------------------------------------------- the storm


class World:
  """Directories in which jobs run, each a copy of one that holds what they need."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.cache = folder / "cache"
    self.template = folder / "template"
    self.count = 0

  def prepare(self):
    """A trained network, its weights in a file, and 300 pictures."""
    from PIL import Image

    (self.template / "photos").mkdir(parents=True)
    rng = random.Random(0)
    for number in range(300):
      pixels = bytes(rng.randrange(256) for _ in range(24 * 20 * 3))
      Image.frombytes("RGB", (24, 20), pixels).save(self.template / "photos" / f"{number:03}.png")
    run = str(self.template / "run")
    export = ["convert", "--workdir", run, "--export", f"{run}.safetensors"]
    for argv in ([*TRAIN, "--workdir", run], export):
      code, words = wait(in_child(command, argv, self.cache))
      assert code == 0, words

  def fresh(self) -> pathlib.Path:
    self.count += 1
    return pathlib.Path(shutil.copytree(self.template, self.folder / f"{self.count}"))

  def start(self, job: str, root: pathlib.Path) -> tuple[int, int]:
    return in_child(command, [part.format(root) for part in JOBS[job]], self.cache)

  def unbroken(self, job: str) -> tuple[dict[str, str], float]:
    """What a run leaves that nobody disturbs, and its seconds, with everything compiled."""
    for _ in range(2):
      root = self.fresh()
      began = time.monotonic()
      code, words = wait(self.start(job, root))
      seconds = time.monotonic() - began
      assert code == 0, f"{job}: {words}"
    return contents(root), seconds


def differences(found: dict[str, str], want: dict[str, str]) -> list[str]:
  return sorted(name for name in found.keys() | want.keys() if found.get(name) != want.get(name))


def storm(world: World, job: str, kills: int) -> dict:
  """Kills a job `kills` times; compares what it leaves whenever it has ended."""
  want, seconds = world.unbroken(job)
  rng = random.Random(job)
  spent = 0
  ended = 0
  wrong = []
  while spent < kills:
    root = world.fresh()
    code = -signal.SIGKILL
    left = min(KILLS_PER_RUN, kills - spent)
    while code == -signal.SIGKILL:
      child = world.start(job, root)
      left -= 1
      if left >= 0:
        time.sleep(rng.uniform(0, 1.2) * seconds)
        os.killpg(child[0], signal.SIGKILL)
      code, words = wait(child)
      spent += code == -signal.SIGKILL
    ended += 1
    if code != 0:
      wrong.append(f"exit code {code}: {words}")
    wrong += differences(contents(root), want)
    shutil.rmtree(root)
    print(f"{job}: {spent} kills, {ended} ended, {len(wrong)} wrong {wrong[-1:]}", flush=True)
  return {"kills": spent, "ended": ended, "seconds_unbroken": round(seconds, 1), "files": len(want), "wrong": wrong}


def pairs(world: World, job: str) -> dict:
  """Two of a job at once."""
  want, _ = world.unbroken(job)
  found = {}
  for delay in (0, 1, 3):
    root = world.fresh()
    first = world.start(job, root)
    time.sleep(delay)
    second = world.start(job, root)
    ends = [wait(first), wait(second)]
    refusals = [words.replace(str(root), "DIR") for code, words in ends if code == 2]
    well = sum(code == 0 for code, _ in ends)
    wrong = [f"exit code {code}: {words}" for code, words in ends if code not in (0, 2)] + differences(contents(root), want)
    found[f"{delay} s"] = {"ended well": well, "refused": refusals, "wrong": wrong}
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--jobs", default=",".join(JOBS), help="(default %(default)s)")
  parser.add_argument("--kills", type=int, default=100, help="of each job (default %(default)s)")
  parser.add_argument("--out", type=pathlib.Path, default=HERE / "kills.json", help="(default %(default)s)")
  args = parser.parse_args()
  os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  hostile.preload()  # before children are made, so that none of them imports
  result = json.loads(args.out.read_text()) if args.out.exists() else {}
  with tempfile.TemporaryDirectory(prefix="kills_") as folder:
    world = World(pathlib.Path(folder))
    world.prepare()
    for job in args.jobs.split(","):
      result[job] = {"killed": storm(world, job, args.kills), "pairs": pairs(world, job)}
      print(job, json.dumps(result[job], indent=1), flush=True)
      args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
  main()
