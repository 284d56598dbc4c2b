"""What the speed benchmarks share: contenders in processes of their own that take turns, and how their times are reported.

A contender is an object in its own process, so that each library has its own threads and settings. Only one computes at a
time, in rounds, so that whatever else the machine does meets all of them alike.
"""

import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any


class Contender:
  """`make(*args)`, made in a new process; `ask("method", ...)` calls its methods there."""

  def __init__(self, make: Callable, *args: Any):
    here, there = multiprocessing.get_context("spawn").Pipe()
    self.process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, make, args), daemon=True)
    self.process.start()
    self.pipe = here

  def ask(self, method: str, *args: Any) -> Any:
    self.pipe.send((method, args))
    answer = self.pipe.recv()
    if isinstance(answer, Exception):
      raise answer
    return answer

  def close(self) -> None:
    self.process.kill()
    self.process.join()


def _serve(pipe, make, args):
  thing = None
  while True:
    method, arguments = pipe.recv()
    try:
      thing = thing or make(*args)
      pipe.send(getattr(thing, method)(*arguments))
    except Exception as error:  # the other end raises it
      pipe.send(RuntimeError(f"{method}: {type(error).__name__}: {error}"))


def rounds(contenders: dict[str, Contender], count: int, method: str, *args: Any) -> dict[str, dict[str, float]]:
  """Median, least and greatest seconds of `method`, which returns the seconds that it took, over `count` rounds."""
  times = {name: [] for name in contenders}
  for _ in range(count):
    for name, contender in contenders.items():
      time.sleep(0.2)  # OpenMP's threads spin for a while after their work; the next one should not pay for it
      times[name].append(contender.ask(method, *args))
  return {name: summary(each) for name, each in times.items()}


def summary(seconds: list[float]) -> dict[str, float]:
  return {"median_s": _short(statistics.median(seconds)), "min_s": _short(min(seconds)), "max_s": _short(max(seconds))}


def _short(number: float) -> float:
  return float(f"{number:.4g}")


def compare(title: str, times: dict[str, dict[str, float]], ours: str = "ddpm_jax") -> dict[str, Any]:
  """Prints a table, and returns it: how many times as long as ours each of the others took."""
  print(f"\n{title}")
  for name, row in times.items():
    row["times_ours"] = _short(row["median_s"] / times[ours]["median_s"])
    print(
      f"  {name:24} {1e3 * row['median_s']:10.1f} ms  [{1e3 * row['min_s']:.1f}, {1e3 * row['max_s']:.1f}]"
      f"  {row['times_ours']:6.2f}",
      flush=True,
    )
  return times


def timed(work: Callable[[], Any]) -> float:
  start = time.perf_counter()
  work()
  return time.perf_counter() - start


def write(path: str | None, result: dict[str, Any]) -> None:
  """The result with the machine, versions and commit, as JSON."""
  git = lambda *command: subprocess.run(["git", *command], capture_output=True, text=True, cwd=_HERE).stdout.strip()
  versions = {}
  for package in ("jax", "jaxlib", "flax", "torch", "diffusers", "numpy"):
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = None
  about = {
    "processor": _processor(),
    "cores": len(os.sched_getaffinity(0)),
    "load_at_end": round(os.getloadavg()[0], 1),
    "python": platform.python_version(),
    "versions": versions,
    "commit": git("rev-parse", "--short", "HEAD"),
    "changed_since": bool(git("status", "--porcelain", "--", "../ddpm_jax")),
  }
  if path:
    pathlib.Path(path).write_text(json.dumps({"machine": about, **result}, indent=2) + "\n")


def _processor() -> str:
  """The model as Linux names it."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
  except (OSError, StopIteration):
    return platform.processor() or platform.machine()


_HERE = pathlib.Path(__file__).parent
