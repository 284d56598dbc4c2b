"""Hostile inputs for every reader and command, counted by what happens.

    python benchmarks/hostile.py --count 3000 --seed 0

Each input is a valid file that has been damaged, a known attack, or structured nonsense. It is given to a reader or to a
command in a child process with limits. The outcomes are:

  value        it was read, because the damage did not matter
  refused      one sentence
  traceback    any other exception
  execution    a process was started, or a class of the file was imported
  memory       more than 1 GiB beyond what the idle child has
  hang         more than 60 s of the processor, or 300 s in all
  leftover     files that were not there before: .lock, temporary and partial files, empty folders
  message      a sentence that is longer than 300 characters or not printable
"""

import argparse
import atexit
import collections
import functools
import importlib
import io
import json
import os
import pathlib
import pickle
import pkgutil
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "properties"))

import numpy as np
import test_readers as readers

import ddpm_jax
from ddpm_jax import fields
from ddpm_jax.cli import main
from ddpm_jax.errors import LONGEST, UserError

CACHE = tempfile.mkdtemp(prefix="hostile_compiled_")  # of compiled programs, for all children
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
LIMIT = 60.0  # seconds of the processor
WAIT = 5  # times as many seconds in all: a reader may also wait for what never comes
MEMORY = 2**30  # bytes
RESULTS = ("value", "refused", "traceback", "execution", "memory", "hang", "leftover", "message")
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")


def damaged(data: bytes, rng: random.Random) -> bytes:
  """`data` with bytes changed, cut off, inserted or repeated, or with lengths that lie."""
  data = bytearray(data)
  for _ in range(rng.randint(1, 5)):
    at = rng.randrange(max(len(data), 1))
    kind = rng.randrange(6)
    if kind == 0:
      data[at : at + 1] = bytes([rng.randrange(256)])
    elif kind == 1:
      del data[at:]
    elif kind == 2:
      data[at:at] = rng.randbytes(rng.randint(1, 16))
    elif kind == 3:
      data[at:at] = data[at : at + rng.randint(1, 200)]
    elif kind == 4:
      data[at : at + 4] = struct.pack(rng.choice(["<i", ">i"]), rng.choice([0, -1, 2**31 - 1, 2**20, 1]))
    else:
      data[at : at + 8] = struct.pack("<q", rng.choice([0, -1, 2**63 - 1, 2**40]))
  return bytes(data)


def nonsense(rng: random.Random, depth: int = 4):
  """A JSON value of random shape."""
  scalars = [None, True, -1, 0, 1e308, 10**30, "", "x" * 300, "\x1b[31m", "../../etc", float("nan"), [], {}]
  if depth == 0 or rng.random() < 0.3:
    return rng.choice(scalars)
  if rng.random() < 0.5:
    return [nonsense(rng, depth - 1) for _ in range(rng.randrange(4))]
  return {rng.choice(["a", "name", "shape", "splits", "step", "config"]): nonsense(rng, depth - 1) for _ in range(3)}


def changed(value, rng: random.Random):
  """A JSON value with one part replaced."""
  if isinstance(value, dict) and value and rng.random() < 0.9:
    key = rng.choice(list(value))
    return {**value, key: changed(value[key], rng)}
  if isinstance(value, list) and value and rng.random() < 0.9:
    index = rng.randrange(len(value))
    return [*value[:index], changed(value[index], rng), *value[index + 1 :]]
  return nonsense(rng)


# ---------------------------------------------------------------- cases: (kind, what is run in a folder)


def of_reader(rng: random.Random, folder: pathlib.Path):
  """A reader and a damaged, hostile or random file."""
  kind = rng.randrange(10)
  if kind == 0:
    reader, data = rng.choice(list(readers.HOSTILE.values()))
  else:
    reader = rng.choice(list(readers.READERS))
    data = damaged(rng.choice(readers.READERS[reader][1]), rng)
    if kind == 1:
      data = rng.randbytes(rng.randrange(300))
    if kind == 2:
      data = json.dumps(nonsense(rng)).encode()
  (folder / "file").write_bytes(data)
  return f"reader {reader}", lambda: readers.READERS[reader][0](folder / "file")


def command(*argv: object):
  def run():
    code = main.run([str(each) for each in argv])
    if code == 2:
      raise UserError("said on stderr")

  return run


@functools.cache
def sound_run() -> pathlib.Path:
  """A small trained run with measurements, made by a child."""
  folder = pathlib.Path(tempfile.mkdtemp(prefix="hostile_run_"))
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  small = ["channels=8", "channel_mult=(1,)", "groups=4", "attention_resolutions=()"]
  run = folder / "run"
  worker = Worker()
  for argv in (
    ["train", "--config", "digits:smoke", "--workdir", run, *(f"--config.network.{field}" for field in small)],
    ["evaluate", "--workdir", run, "--likelihood", "8"],
    ["moments", "--workdir", run, "--images", "16"],
    ["study", "--workdir", run, "--steps", "3", "--samples", "0", "--likelihood", "4"],
  ):
    found = worker.run(argv, 10 * LIMIT)
    assert found[1] == "value", found
  worker.close()
  return run


def images_in(folder: pathlib.Path, rng: random.Random) -> None:
  """A folder of images of which some are damaged, with hostile names and labels."""
  for number in range(4):
    kind = rng.choice(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
    data = readers.picture(kind)
    name = rng.choice([f"{number}.png", f"{number}.jpg", f"a/{number}.gif", f"{number}\x1b[31m.png", f"ü{number}.bmp"])
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(damaged(data, rng) if rng.random() < 0.5 else data)
  extra = rng.randrange(8)
  if extra == 0:
    os.mkfifo(folder / "pipe.png")
  elif extra == 1:
    (folder / "loop.png").symlink_to("loop.png")
  elif extra == 2:
    (folder / "self").symlink_to(folder)
  elif extra == 3:
    (folder / "labels.csv").write_bytes(
      damaged("0.png,ä\r1.png,b\r".encode(rng.choice(["utf-8", "utf-16", "latin-1"])), rng)
    )
  elif extra == 4:
    (folder / "dataset.json").write_text(json.dumps(changed({"labels": [["0.png", 1], ["1.png", 0]]}, rng)))
  elif extra == 5:
    (folder / "0.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n")


def of_data_show(rng, folder):
  images_in(folder / "set", rng)
  size = rng.choice(["4", "8", "100000"])
  return "data show", command("data", "show", folder / "set", "--image_size", size)


def of_data_zip(rng, folder):
  content = {f"{n}.png": readers.picture("PNG") for n in range(3)}
  (folder / "set.zip").write_bytes(damaged(readers.packed(**content), rng))
  return "data show zip", command("data", "show", folder / "set.zip")


def of_convert(rng, folder):
  reader, name = rng.choice([("torch", "a.pt"), ("safetensors", "a.safetensors"), ("torch", "b.ckpt"), ("json", "x.json")])
  data = damaged(rng.choice(readers.READERS[reader][1]), rng)
  hostile = [data for kind, data in readers.HOSTILE.values() if kind == reader]
  (folder / name).write_bytes(rng.choice(hostile) if hostile and rng.random() < 0.3 else data)
  return "convert", command("convert", folder / name, "--out", folder / "out")


def of_diffusers(rng, folder):
  unet = {"_class_name": "UNet2DModel", "sample_size": 16, "in_channels": 3, "out_channels": 3, "layers_per_block": 1,
          "block_out_channels": [32, 64], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
          "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "norm_num_groups": 32}  # fmt: skip
  (folder / "unet").mkdir()
  (folder / "unet/config.json").write_text(json.dumps(changed(unet, rng)))
  data = readers.READERS["safetensors"][1][0]
  (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(data if rng.random() < 0.5 else damaged(data, rng))
  return "convert a folder", command("convert", folder, "--out", folder / "out")


def of_evaluate(rng, folder):
  pixels = readers.npy(np.zeros((3, 8, 8, 3), np.uint8))
  arrays = {"arr_0.npy": pixels, "arr_1.npy": readers.npy(np.array(rng.choice([[0, 1, 2], [0, -7, 2], [10**9, 0, 0]])))}
  (folder / "samples.npz").write_bytes(
    damaged(readers.packed(**arrays), rng) if rng.random() < 0.7 else readers.packed(**arrays)
  )
  sigma = rng.choice([np.eye(4), -np.eye(4), np.triu(np.ones((4, 4))), np.full((4, 4), np.nan), np.ones((4, 3))])
  reference = readers.packed(**{"mu.npy": readers.npy(np.zeros(4)), "sigma.npy": readers.npy(sigma)})
  (folder / "reference.npz").write_bytes(reference if rng.random() < 0.7 else damaged(reference, rng))
  weights = folder / "weights.pb"
  weights.write_bytes(damaged(readers.READERS["graph"][1][0], rng))
  return "evaluate", command(
    "evaluate", "--samples", folder / "samples.npz", "--reference", folder / "reference.npz", "--inception", weights,
    "--metrics", "fid",
  )  # fmt: skip


def of_report(rng, folder):
  rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "images_per_second": 9.0}]
  text = "\n".join(json.dumps(changed(row, rng)) for row in rows)
  (folder / "metrics.jsonl").write_bytes(damaged(text.encode(), rng))
  (folder / "bits_per_dim.json").write_text(json.dumps(changed({"bits_per_dim": 3.5, "images": 10}, rng)))
  return "report", command("report", "--workdir", folder)


def of_out(rng, folder):
  (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
  (folder / "target").write_text("precious")
  (folder / "link").symlink_to("target")
  os.mkfifo(folder / "pipe")
  where = rng.choice(["/dev/null", folder / "pipe", folder, folder / "target/inside", folder / ("x" * 300), "~nobody/x"])
  return "report --out", command("report", "--workdir", folder, "--out", where)


def of_checkpoint(rng, folder):
  content = {
    "schema": 1,
    "step": 3,
    "config": {"data": {"name": "digits"}},
    "leaves": {"params/a": [[2], "float32", "0" * 16]},
  }
  from ddpm_jax.training import manifest

  content = changed(content, rng)
  step = folder / "checkpoints/3"
  (step / "manifest").mkdir(parents=True)
  (step / "_CHECKPOINT_METADATA").write_text(json.dumps({"item_handlers": {}, "commit_timestamp_nsecs": 1}))
  text = json.dumps({"content": content, "sha256": manifest._sha256(content)})
  (step / "manifest/metadata").write_bytes(text.encode() if rng.random() < 0.7 else damaged(text.encode(), rng))
  if rng.random() < 0.2:
    os.mkfifo(step / "pipe")
  verb = rng.choice([("sample", "--dry_run"), ("report",), ("evaluate", "--dry_run"), ("moments", "--images", "8")])
  return f"{verb[0]} of a checkpoint", command(verb[0], "--workdir", folder, *verb[1:])


VALUES = (
  "-1", "0", "1e999", "nan", "None", "True", "x", "''", "()", "(1,)", "(0,-1)", "[1,2]", "1000000000000", "0.5", "1e-300",
  "__import__('os').system('true')", "/dev/zero", "../../etc/passwd", "{}", "\x1b[31m", "9" * 400,
)  # fmt: skip


def of_fields(rng, folder):
  """Values that make no sense in one or two fields of a config, for commands that only check and print."""
  names = rng.sample(sorted(fields.FIELDS), rng.choice([1, 1, 2]))
  flags = [f"--config.{name}={rng.choice(VALUES)}" for name in names]
  verb = rng.choice([["train", "--config", "digits:smoke"], ["sample", "--workdir", sound_run()]])
  return f"{verb[0]} --dry_run", command(*verb, "--dry_run", *flags)


def of_flags(rng, folder):
  """Values that make no sense for the flags of each command."""
  value = lambda: rng.choice(VALUES)
  run = sound_run()
  line = rng.choice(
    [
      ["sample", "--workdir", run, "--seeds", value(), "--steps", value(), "--dry_run"],
      ["edit", "inpaint", "--workdir", run, "--images", value(), "--hide", value(), "--out", folder / "out"],
      ["edit", "interpolate", "--workdir", run, "--steps", value(), "--out", folder / "out"],
      ["evaluate", "--workdir", run, "--likelihood", value(), "--covariance", value()],
      ["study", "--workdir", run, "--steps", value(), "--samples", value()],
      ["moments", "--workdir", run, "--images", value(), "--levels", value()],
      ["plan", "--config", "digits", "--topology", value(), "--price_per_chip_hour", value()],
      ["export", "--workdir", run, "--program", value(), "--steps", value()],
      ["figures", "schedule", "--out", rng.choice([folder, folder / "pipe", "/dev/full", "/proc/x"])],
      ["convert", "--workdir", run, "--export", folder / rng.choice(["a.pt", "a.txt", "x/y.pt", "a.safetensors"])],
      ["data", "prepare", value(), folder, "--data_dir", folder / "out"],
      ["data", "show", value(), "--image_size", value()],
    ]
  )
  return f"flags of {line[0]}", command(*line)


_CIFAR = pickle.dumps({b"data": np.zeros((3, 3072), np.uint8), b"labels": [0, 1, -2]}, 2)
_PIXELS = struct.pack(">HBBIII", 0, 8, 3, 2, 4, 4) + bytes(32)
_LABELS = struct.pack(">HBBI", 0, 8, 1, 2) + bytes([1, 200])
FILES_OF = {
  "cifar10": {"data_batch_1": _CIFAR, "test_batch": _CIFAR, "batches.meta": pickle.dumps({b"label_names": [b"a"]}, 2)},
  "mnist": {
    "train-images-idx3-ubyte": _PIXELS,
    "train-labels-idx1-ubyte": _LABELS,
    "t10k-images-idx3-ubyte": _PIXELS,
    "t10k-labels-idx1-ubyte": _LABELS,
  },
}


def of_prepare(rng, folder):
  """Images, CIFAR's pickles or IDX files, damaged."""
  kind = rng.choice(["images", "cifar10", "mnist"])
  (folder / "set").mkdir()
  if kind == "images":
    images_in(folder / "set", rng)
  for name, data in FILES_OF.get(kind, {}).items():
    (folder / "set" / name).write_bytes(damaged(data, rng) if rng.random() < 0.7 else data)
  name = "mine" if kind == "images" else kind
  size = ["--image_size", "8"] if kind == "images" else []  # published sets have sizes of their own
  return "data prepare", command("data", "prepare", name, folder / "set", "--data_dir", folder / "out", *size)


def of_run(rng, folder):
  """A sound run of which one file is damaged, or is not what it should be; for every command that opens runs."""
  run = pathlib.Path(shutil.copytree(sound_run(), folder / "run"))
  path = rng.choice(sorted(path for path in run.rglob("*") if path.is_file()))
  kind = rng.randrange(5)
  if kind == 0 and path.suffix == ".json":
    path.write_text(json.dumps(changed(json.loads(path.read_text()), rng)))
  elif kind == 1:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size + 1)])
  elif kind == 2:
    path.unlink()
    path.mkdir()
  elif kind == 3:
    path.write_text(json.dumps(nonsense(rng)))
  else:
    path.write_bytes(damaged(path.read_bytes(), rng))
  if rng.random() < 0.2:
    bad = {"count.npy": readers.npy(np.array(-4)), "mean.npy": readers.npy(np.full(20, rng.choice([np.nan, np.inf, -1.0])))}
    (run / "evaluation").mkdir(exist_ok=True)
    (run / "evaluation/moments.npz").write_bytes(readers.packed(**bad))
  line = rng.choice(
    [
      ["sample", "--workdir", run, "--seeds", "0-3"],
      ["sample", "--workdir", run, "--seeds", "0-3", "--sampler", "analytic", "--steps", "5"],
      ["edit", "reconstruct", "--workdir", run, "--steps", "5"],
      ["evaluate", "--workdir", run, "--likelihood", "8"],
      ["moments", "--workdir", run, "--images", "16"],
      ["study", "--workdir", run, "--steps", "3", "--samples", "0", "--likelihood", "4"],
      ["report", "--workdir", run],
      ["export", "--workdir", run, "--program", folder / "program"],
      ["convert", "--workdir", run, "--export", folder / "out.safetensors"],
      ["train", "--config", "digits:smoke", "--workdir", run],
    ]
  )
  return f"{line[0]} of a damaged run", command(*line)


COMMANDS = (
  of_data_show, of_data_zip, of_convert, of_diffusers, of_evaluate, of_report, of_out, of_checkpoint, of_fields, of_flags,
  of_prepare, of_run, of_run,
)  # fmt: skip


# ---------------------------------------------------------------- running


class Worker:
  """A child process in which cases run one after the other, so that JAX starts once and not for each.

  A case that hangs, crashes or takes too much memory ends the child, and the next case gets a new one.
  """

  CASES = 200  # of one child

  def __init__(self):
    self.child = 0
    self.cases = 0

  def outcome(self, share: float, seed: int, limit: float = LIMIT) -> tuple[str, str, str]:
    """(kind, a word of RESULTS, what was said) of the case of that seed; see `case_of`."""
    return self._answer(json.dumps([share, seed]), limit)

  def run(self, argv: list, limit: float = LIMIT) -> tuple[str, str, str]:
    """The same for a command line."""
    return self._answer(json.dumps([str(each) for each in argv]), limit)

  def _answer(self, request: str, limit: float) -> tuple[str, str, str]:
    if not self.child or self.cases == self.CASES:
      self.close()
      self._start()
    self.cases += 1
    os.write(self.to_child, request.encode() + b"\n")
    began = time.monotonic()
    used = _cpu_seconds(self.child)
    said = b""
    while said.count(b"\n") < 2:
      if select.select([self.from_child], [], [], 1.0)[0]:
        block = os.read(self.from_child, 65536)
        if not block:
          kind = said.decode().strip() or "?"
          status = self.close()
          return kind, "traceback", f"the process ended with status {status}"
        said += block
      elif _cpu_seconds(self.child) - used > limit or time.monotonic() - began > WAIT * limit:
        kind = said.decode().strip() or "?"
        os.kill(self.child, signal.SIGKILL)
        self.close()
        return kind, "hang", f"after {time.monotonic() - began:.0f} s"
    kind, answer = said.decode().splitlines()
    result, text = json.loads(answer)
    if result == "memory":
      self.close()
    return kind, result, text

  def _start(self) -> None:
    requests, self.to_child = os.pipe()
    self.from_child, answers = os.pipe()
    self.child = os.fork()
    self.cases = 0
    if not self.child:
      os.close(self.to_child)
      os.close(self.from_child)
      _serve(os.fdopen(requests, "r"), answers)
    os.close(requests)
    os.close(answers)

  def close(self) -> int:
    """Ends the child and returns its exit status."""
    if not self.child:
      return 0
    os.close(self.to_child)
    os.close(self.from_child)
    _, status = os.waitpid(self.child, 0)
    self.child = 0
    return os.waitstatus_to_exitcode(status)


def _cpu_seconds(process: int) -> float:
  fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def case_of(share: float, seed: int, folder: pathlib.Path):
  """(kind, what is run in `folder`) of a seed."""
  case = random.Random(seed)
  make = of_reader if case.random() < share else case.choice(COMMANDS)
  return make(case, folder)


def _serve(requests, answers: int) -> None:
  """Runs cases and tells their results until there are no more requests."""
  import jax

  jax.config.update("jax_compilation_cache_dir", str(CACHE))
  executed: list[str] = []

  def watch(event, args):
    if event in STARTS and "uname" not in args[:1]:  # which Python's `platform` asks for the processor
      executed.append(f"{event} {args[:2]}")

  sys.addaudithook(watch)
  most = _memory("VmSize") + 8 * MEMORY  # protects the machine: the attempt fails, and the peak shows it
  resource.setrlimit(resource.RLIMIT_AS, (most, most))
  silent = os.open(os.devnull, os.O_RDWR)
  for number in (1, 2):
    os.dup2(silent, number)
  for line in requests:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hostile_"))
    request = json.loads(line)
    kind, run = (request[0], command(*request)) if isinstance(request[0], str) else case_of(*request, folder)
    os.write(answers, f"{kind}\n".encode())
    executed.clear()
    result = _result(run, folder)
    if executed:
      result = ("execution", executed[0])
    os.write(answers, json.dumps(result).encode() + b"\n")
    shutil.rmtree(folder, ignore_errors=True)
  os._exit(0)


def _result(run, folder: pathlib.Path) -> tuple[str, str]:
  """(a word of RESULTS, what was said) of run()."""
  before = set(folder.rglob("*"))
  stderr = io.StringIO()
  sys.stdout = io.StringIO()
  sys.stderr = stderr
  idle = _memory("VmRSS")
  pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is in use now
  try:
    run()
    result = "value"
    text = ""
  except UserError as error:
    last = stderr.getvalue().strip().splitlines()
    text = str(error) if not last else last[-1].removeprefix("ddpm-jax: ")
    result = "refused" if len(text) <= LONGEST and text.isprintable() else "message"
  except SystemExit as error:
    result = "refused" if error.code == 2 else "traceback"
    text = stderr.getvalue()[-200:]
  except BaseException:
    result = "traceback"
    text = traceback.format_exc()[-1500:]
  if _memory("VmHWM") - idle > MEMORY:
    return "memory", f"{(_memory('VmHWM') - idle) / 2**30:.2f} GiB: {text}"
  left = [path for path in set(folder.rglob("*")) - before if _is_leftover(path)]
  return ("leftover", f"{left[0]}: {text}") if left and result == "refused" else (result, text)


def _memory(field: str) -> int:
  """Bytes of a field of /proc/self/status."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def _is_leftover(path: pathlib.Path) -> bool:
  empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
  return empty or path.name == ".lock" or ".tmp" in path.name or path.name.endswith(".partial")


def preload() -> None:
  """Imports what commands import, so that each child does not."""
  for module in pkgutil.walk_packages(ddpm_jax.__path__, "ddpm_jax."):
    if module.name != "ddpm_jax.__main__":
      importlib.import_module(module.name)
  for name in ("tensorflow_datasets.proto", "array_record.python.array_record_module", "matplotlib.figure"):
    importlib.import_module(name)


def run_all(count: int, seed: int, share: float) -> dict[str, dict[str, int]]:
  """Counts by kind and outcome; what should not happen is printed."""
  rng = random.Random(seed)
  table: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
  worker = Worker()
  began = time.monotonic()
  for number in range(count):
    case_seed = rng.randrange(2**32)
    kind, result, text = worker.outcome(share, case_seed)
    table[kind][result] += 1
    if result not in ("value", "refused"):
      print(f"--- {number} (seed {case_seed}) {kind}: {result}\n{text}", flush=True)
    if number % 100 == 99:
      print(f"{number + 1} inputs, {time.monotonic() - began:.0f} s", flush=True)
  worker.close()
  return {kind: dict(counts) for kind, counts in sorted(table.items())}


def show(table: dict[str, dict[str, int]]) -> str:
  """The counts as a table."""
  rows = [f"{kind:28}" + "".join(f"{counts.get(name, 0):11}" for name in RESULTS) for kind, counts in table.items()]
  total = collections.Counter()
  for counts in table.values():
    total.update(counts)
  rows.append(f"{'all':28}" + "".join(f"{total[name]:11}" for name in RESULTS))
  return "\n".join([" " * 28 + "".join(f"{name:>11}" for name in RESULTS), *rows])


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--count", type=int, default=3000, help="inputs (default %(default)s)")
  parser.add_argument("--seed", type=int, default=0, help="selects the inputs (default %(default)s)")
  parser.add_argument("--readers", type=float, default=0.75, help="share of inputs for readers alone (default %(default)s)")
  parser.add_argument("--out", help="write the counts to this JSON file")
  args = parser.parse_args()
  preload()
  sound_run()
  found = run_all(args.count, args.seed, args.readers)
  print(show(found))
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps({"count": args.count, "seed": args.seed, "outcomes": found}, indent=1))
