"""The training loop, for notebooks and the command line."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ddpm_jax.devices import compiler, processes
from ddpm_jax.devices import mesh as layout
from ddpm_jax.errors import UserError
from ddpm_jax.training import flat
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.state import TrainState, place
from ddpm_jax.training.step import Step
from ddpm_jax.training.writers import Many, Meter, MetricWriter

log = logging.getLogger(__name__)


class Preempted(Exception):
  """Stopped by SIGTERM or Ctrl-C. The checkpoint of `step` is complete, and the same call continues from there."""

  exit_code = 42

  def __init__(self, step: int):
    super().__init__(f"Stopped by a signal at step {step}; the checkpoint is saved, and the same command continues.")
    self.step = step


class Diverged(UserError):
  """Too many updates in a row were not finite."""


@dataclasses.dataclass(frozen=True)
class Intervals:
  """How long a run is and how often it saves and reports, in steps.

  Attributes:
    total_steps: batches in all.
    checkpoint_every: steps between checkpoints; an interrupted run loses at most this many. The last step has one, too.
      Checkpoints are written in the background, one after the other. A temporary one is written halfway between two, so
      one of the last two is always complete.
    log_every: steps between rows of metrics; each row is the mean over them.
    preview_every: steps between previews; the last step has one, too. 0: only that one.
    max_skipped: how many updates in a row may be skipped before the run stops.
  """

  total_steps: int
  checkpoint_every: int = 1000
  log_every: int = 100
  preview_every: int = 0
  max_skipped: int = 20

  def __post_init__(self):
    if self.total_steps < 1:
      raise UserError(f"total_steps = {self.total_steps} must be at least 1.")

  def saves(self, step: int) -> bool:
    """Whether a checkpoint is due after `step`."""
    return step == self.total_steps or step % self.checkpoint_every in (0, self.checkpoint_every // 2)

  def logs(self, step: int) -> bool:
    """Whether a row of metrics is due after `step`."""
    return step == self.total_steps or step % self.log_every == 0

  def previews(self, step: int) -> bool:
    """Whether a preview is due after `step`."""
    return step == self.total_steps or bool(step and self.preview_every and step % self.preview_every == 0)


def fit(
  init: Callable[[], TrainState],
  train_step: Step,
  batches: Callable[[int], Iterator[dict]],
  intervals: Intervals,
  *,
  mesh: Mesh,
  checkpoints: Checkpoints | None = None,
  config: dict | None = None,
  open_writer: Callable[[int], MetricWriter] = lambda after: Many([]),
  preview: Callable[[TrainState], dict[str, np.ndarray]] | None = None,
) -> TrainState:
  """Trains until `intervals.total_steps` batches have been seen, from the latest sound checkpoint if there is one.

  The state after step s depends only on init, the batches and s: a run that is killed and resumed ends in bitwise the
  same state as an uninterrupted one. A preview that the killed run did not finish is made first. The host reads the
  metrics of a step while the next one runs, and never waits otherwise.

  Args:
    init: returns the state before the first step; traced. If there is a checkpoint, only its shapes are used.
    train_step: the result of make_train_step for the same mesh.
    batches: batches(s) iterates over this process's share of the batches from number s on.
    intervals: the length of the run, and how often it saves and reports.
    mesh: the devices.
    checkpoints: where to save; None saves nothing.
    config: stored in each checkpoint as JSON.
    open_writer: open_writer(s) returns the writer of a run that starts at step s.
    preview: preview(state) returns pictures by name, uint8 [H, W, C].

  Raises:
    Preempted: after SIGTERM or Ctrl-C, with the current step saved. A second Ctrl-C interrupts immediately.
    Diverged: after max_skipped skipped updates in a row, which did not change the state.
    CheckpointError: see Checkpoints.
  """
  total_steps = intervals.total_steps
  state, start, train_step = _start(init, train_step, batches, mesh, total_steps, checkpoints)
  if start >= total_steps:
    log.info("Nothing to train: step %d of %d is reached.", start, total_steps)
    if preview is None or start > total_steps:
      return flat.spread(state)
  writer = open_writer(start)
  meter = Meter(total_steps)

  def read(step: int, metrics: Any, images: int) -> None:
    values = jax.device_get(metrics)
    meter.add(values, images)
    if intervals.logs(step):
      writer.write_scalars(step, meter.row(step))
    if values["skipped_in_row"] >= intervals.max_skipped:
      raise Diverged(
        f"The last {intervals.max_skipped} updates up to step {step} were skipped, because loss or gradient was not finite. "
        "Parameters and checkpoints are unchanged. Lower optimizer.learning_rate, set optimizer.clip_norm, or check the "
        "data."
      )

  with contextlib.closing(writer), _Termination() as termination:
    if preview and intervals.previews(start) and not processes.agreed(writer.has_images(start)):
      log.info("Making the preview of step %d, which an interrupted run did not finish.", start)
      writer.write_images(start, preview(flat.spread(state)))
    if start >= total_steps:
      return flat.spread(state)
    feed = _on_device(batches(start), mesh)
    unread = None
    for step in range(start + 1, total_steps + 1):
      with meter.waiting():
        batch, size = next(feed)
      if step == start + 1:
        processes.wait_for_all()  # here, not inside the compiled program
      state, metrics = train_step(state, batch)
      if unread:
        read(*unread)
      unread = step, metrics, size

      stop = termination.requested(step)
      last = step == total_steps
      if stop or intervals.saves(step):
        read(*unread)  # before the checkpoint, so that a resumed run misses no row
        unread = None
        if checkpoints is not None:
          wait = stop or last or intervals.checkpoint_every == 1  # 1 has no half
          checkpoints.save(flat.spread(state), step, config or {}, wait=wait)
      if preview and intervals.previews(step):
        writer.write_images(step, preview(flat.spread(state)))
      if stop and not last:
        raise Preempted(step)
  return flat.spread(state)


def _start(
  init: Callable[[], TrainState],
  train_step: Step,
  batches: Callable[[int], Iterator[dict]],
  mesh: Mesh,
  total_steps: int,
  checkpoints: Checkpoints | None,
) -> tuple[TrainState, int, Step]:
  """(state, its step, train_step) of the latest checkpoint or a new run. Compiles the step meanwhile, or reads it from the
  cache."""
  shapes = jax.eval_shape(init)
  like = layout.shaped(shapes, layout.of_state(shapes, mesh))
  latest = checkpoints.latest() if checkpoints else 0
  with concurrent.futures.ThreadPoolExecutor(1, "compile") as meanwhile:
    if latest < total_steps:
      batch = layout.put_batch(next(batches(latest)), mesh)
      train_step = compiler.repeated(train_step, like, batch, times=total_steps - latest)
      meanwhile.submit(train_step.lower(like, batch).compile)  # jit keeps the result; the first step raises the same errors
    spread = jax.eval_shape(flat.spread, shapes)
    if checkpoints and (found := checkpoints.restore(layout.shaped(spread, layout.of_state(spread, mesh)))):
      state, manifest = found
      state = flat.pack(state, shapes)
      log.info("Continuing from step %d in %s.", manifest.step, checkpoints.directory)
      return state, manifest.step, train_step
    return place(init, mesh), 0, train_step


def _on_device(batches: Iterator[dict], mesh: Mesh, ahead: int = 2) -> Iterator[tuple[dict, int]]:
  """(batch on the devices, number of its images over all processes), transferred `ahead` steps early."""
  sent: collections.deque = collections.deque()
  for batch in batches:
    sent.append((layout.put_batch(batch, mesh), len(batch["image"]) * jax.process_count()))
    if len(sent) > ahead:
      yield sent.popleft()
  yield from sent


class _Termination:
  """Catches SIGTERM and Ctrl-C inside its block, in the main thread only.

  Ctrl-C is left alone where it is ignored, as for a job started with &. With several processes, JAX catches SIGTERM and
  tells the others.
  """

  def __enter__(self):
    self.received = False
    self.before = {}
    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
          self.before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_):
    for number, handler in self.before.items():
      signal.signal(number, handler)

  def _note(self, number, _):
    self.received = True
    if number == signal.SIGINT:
      signal.signal(number, signal.default_int_handler)  # for a second Ctrl-C

  def requested(self, step: int) -> bool:
    """Whether to stop after `step`: the same answer in every process."""
    if jax.process_count() == 1:
      return self.received
    return bool(multihost_utils.reached_preemption_sync_point(step))
