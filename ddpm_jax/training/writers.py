"""Writers of metrics: TensorBoard events, JSON lines and the console. The interface is that of CLU's MetricWriter.

A run that resumes at step s opens its writers with `after=s`. Rows that the interrupted run wrote after s are dropped, since
the resumed run writes them again.
"""

import contextlib
import json
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from ddpm_jax.data.images import save_png
from ddpm_jax.errors import UserError
from ddpm_jax.files import limits, tables
from ddpm_jax.files.atomic import writing

log = logging.getLogger(__name__)
Scalars = Mapping[str, float]


class MetricWriter(Protocol):
  def write_scalars(self, step: int, scalars: Scalars) -> None: ...

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Pictures by name, uint8 [H, W, 1 or 3]."""

  def has_images(self, step: int) -> bool:
    """Whether the pictures of `step` have been written, also by an earlier run; True if this writer keeps none."""

  def close(self) -> None: ...


class Many:
  """Writes to each of several writers."""

  def __init__(self, writers: list[MetricWriter]):
    self.writers = writers

  def write_scalars(self, step: int, scalars: Scalars) -> None:
    for writer in self.writers:
      writer.write_scalars(step, scalars)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    for writer in self.writers:
      writer.write_images(step, images)

  def has_images(self, step: int) -> bool:
    return all(writer.has_images(step) for writer in self.writers)

  def close(self) -> None:
    for writer in self.writers:
      with contextlib.suppress(OSError):  # data that could not be written, which has been reported
        writer.close()


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
  """Turns errors of the disk into a UserError."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f"{path} cannot be written ({error.strerror or error}): free space or repair the disk; the same command continues."
    ) from error


class JsonLines:
  """DIR/metrics.jsonl: one object per row, `step` first. Pictures become DIR/previews/<step>_<name>.png."""

  def __init__(self, directory: pathlib.Path, after: int = 0):
    directory.mkdir(parents=True, exist_ok=True)
    self.previews = directory / "previews"
    path = directory / "metrics.jsonl"
    kept = [line for row, line in rows_of(path) if row["step"] <= after]
    with writing(path) as temporary:
      temporary.write_text("".join(f"{line}\n" for line in kept))
    self.file = path.open("a", buffering=1)  # line by line, so that a killed run loses none

  def write_scalars(self, step: int, scalars: Scalars) -> None:
    finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}  # JSON has no NaN
    with _writing(self.file.name):
      self.file.write(json.dumps({"step": step, **finite}) + "\n")

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    self.previews.mkdir(exist_ok=True)
    for name, image in images.items():
      save_png(self.previews / f"{step:07d}_{name}.png", image)

  def has_images(self, step: int) -> bool:
    return any(self.previews.glob(f"{step:07d}_*.png"))

  def close(self) -> None:
    self.file.close()


def rows_of(path: pathlib.Path) -> Iterator[tuple[dict[str, Any], str]]:
  """(row, line) of the complete rows, each with its step.

  A killed run may leave half a row, and a crashed machine arbitrary bytes.
  """
  text = limits.read_bytes(path).decode(errors="replace") if os.path.lexists(path) else ""
  for line in text.splitlines():
    with contextlib.suppress(UserError):
      row = tables.parse_json(line, path)
      if type(row.get("step")) is int and all(map(_is_number, row.values())):
        yield row, line


def _is_number(value: object) -> bool:
  return value is None or isinstance(value, int | float)


@contextlib.contextmanager
def _absent(module: str) -> Iterator[None]:
  """Inside this block `module` cannot be imported, unless it is imported already."""
  if module in sys.modules:
    yield
    return
  sys.modules[module] = None
  try:
    yield
  finally:
    del sys.modules[module]


class TensorBoard:
  """Events in DIR, written by tensorboardX without TensorFlow.

  Its SummaryWriter is not used: it writes in a thread, and hangs once a full disk has ended that thread.
  """

  def __init__(self, directory: pathlib.Path, after: int = 0):
    with _absent("torch"):  # tensorboardX would import it, which takes 2 s
      from tensorboardX import summary
      from tensorboardX.event_file_writer import EventsWriter
      from tensorboardX.proto.event_pb2 import Event, SessionLog
    self.summary = summary
    self.event = Event
    directory.mkdir(parents=True, exist_ok=True)
    self.events = EventsWriter(str(directory / "events"))
    self.events.write_event(Event(step=after + 1, session_log=SessionLog(status=SessionLog.START)))  # drops later rows

  def write_scalars(self, step: int, scalars: Scalars) -> None:
    self._write(step, [self.summary.scalar(name, value) for name, value in scalars.items()])

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    self._write(step, [self.summary.image(name, image, dataformats="HWC") for name, image in images.items()])

  def has_images(self, step: int) -> bool:
    return True  # JsonLines knows, by its PNGs

  def close(self) -> None:
    self.events.close()

  def _write(self, step, summaries):
    with _writing("events"):
      for each in summaries:
        self.events.write_event(self.event(wall_time=time.time(), step=step, summary=each))
      self.events.flush()


class Console:
  """One line per row: step, metrics, speed and time left."""

  def __init__(self, total_steps: int):
    self.total_steps = total_steps

  def write_scalars(self, step: int, scalars: Scalars) -> None:
    log.info(line(step, self.total_steps, scalars))

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    pass

  def has_images(self, step: int) -> bool:
    return True

  def close(self) -> None:
    pass


def line(step: int, total_steps: int, scalars: Scalars) -> str:
  """One line for the console.

  Examples:
    >>> line(400, 20000, {"loss": 0.03125, "images_per_second": 8124.3, "data_wait": 0.012, "seconds_left": 3731.0})
    'step   400/20000  loss 0.03125  8120 images/s  data wait 1%  1:02:11 left'
  """
  parts = [f"step {step:{len(str(total_steps))}}/{total_steps}", f"loss {scalars['loss']:.4g}"]
  if scalars.get("skipped"):
    parts.append(f"{scalars['skipped']:.0f} updates skipped")
  if "images_per_second" in scalars:
    speed = float(f"{scalars['images_per_second']:.3g}")
    seconds = round(scalars["seconds_left"])
    parts.append(f"{speed:g} images/s  data wait {scalars['data_wait']:.0%}")
    parts.append(f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left")
  return "  ".join(parts)


def open_all(directory: str, total_steps: int, after: int = 0) -> MetricWriter:
  """All three writers in `directory`; processes other than the first write nothing."""
  if jax.process_index():
    return Many([])
  path = pathlib.Path(directory)
  return Many([JsonLines(path, after), TensorBoard(path / "events", after), Console(total_steps)])


class Meter:
  """Averages metrics between rows and measures time."""

  def __init__(self, total_steps: int):
    self.total_steps = total_steps
    self._ended: float | None = None  # when the last step ended
    self._waited = 0.0  # seconds of waiting for data since then
    self._forget()

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Measures the block as time spent waiting for data."""
    began = time.perf_counter()
    yield
    self._waited += time.perf_counter() - began

  def add(self, metrics: Mapping[str, np.ndarray], images: int) -> None:
    """Adds the metrics of a step of `images` images that has just ended.

    Its duration is the time since the previous step. The first step, which compiles, does not count.
    """
    ended = time.perf_counter()
    if self._ended is not None:
      self.times.append((images, self._waited, ended - self._ended))
    self._ended = ended
    self._waited = 0.0
    for name, value in metrics.items():
      self.values.setdefault(name, []).append(np.asarray(value))

  def row(self, step: int) -> dict[str, float]:
    """The means since the last row, over the steps where they are finite; counters (integers) at their last value."""
    scalars = {}
    for name, values in self.values.items():
      finite = [value for value in values if np.isfinite(value)] or [np.array(np.nan)]
      scalars[name] = int(values[-1]) if values[-1].dtype.kind == "i" else float(np.mean(finite))
    if self.times:
      images, waited, elapsed = np.sum(self.times, axis=0).tolist()
      scalars["images_per_second"] = images / elapsed
      scalars["data_wait"] = waited / elapsed
      scalars["seconds_left"] = (self.total_steps - step) * elapsed / len(self.times)
    self._forget()
    return scalars

  def _forget(self) -> None:
    self.values: dict[str, list[np.ndarray]] = {}
    self.times: list[tuple[int, float, float]] = []
