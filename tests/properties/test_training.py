"""Runs: broken ones end where unbroken ones do, bitwise; poisoned batches leave no trace; devices do not matter."""

import errno
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_run
from tensorboardX.proto.event_pb2 import Event, SessionLog

from ddpm_jax.devices import compiler
from ddpm_jax.devices import mesh as layout
from ddpm_jax.errors import UserError
from ddpm_jax.training import checkpoints, loop, manifest, writers
from ddpm_jax.training.state import place

FEW = dict(rtol=1e-5)  # float32 sums in another order; measured 1e-6 over 40 steps


@pytest.fixture(scope="module")
def mesh():
  return layout.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def made(mesh):
  """(init, train_step), compiled once for this file."""
  return tiny_run.make(mesh)


@pytest.fixture(scope="module")
def whole(mesh, made, tmp_path_factory):
  """(final state, directory) of the unbroken run."""
  directory = tmp_path_factory.mktemp("whole")
  return tiny_run.run(directory, mesh, made=made), directory


def before_batch(number: int, do):
  """The run's batches, with something happening as step `number` begins."""

  def feed(start):
    for i, batch in enumerate(tiny_run.batches(start), start=start + 1):
      if i == number + 2:  # the loop reads two ahead
        do()
      yield batch

  return feed


class Killed(BaseException):
  """What no code of the run catches."""


def kill():
  raise Killed


# ---------------------------------------------------------------------------------------------------- continuing


def test_it_learns(whole):
  losses = tiny_run.losses_of(whole[1])
  assert len(losses) == tiny_run.TOTAL and np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_a_killed_run_ends_bitwise_where_an_unbroken_one_does(mesh, made, whole, tmp_path):
  with pytest.raises(Killed):
    tiny_run.run(tmp_path, mesh, made=made, feed=before_batch(17, kill))
  assert checkpoints.steps_in(tmp_path)[-1] == 15
  with pytest.raises(Killed):  # and once more, across the end of an epoch of the data
    tiny_run.run(tmp_path, mesh, made=made, feed=before_batch(33, kill))
  final = tiny_run.run(tmp_path, mesh, made=made)
  assert tiny_run.fingerprint(final) == tiny_run.fingerprint(whole[0])
  assert tiny_run.losses_of(tmp_path) == tiny_run.losses_of(whole[1])  # each step has one row, and the same


def test_dropout_is_the_same_in_every_life(mesh, tmp_path):
  made = tiny_run.make(mesh, dropout=0.1)
  run = lambda name, **options: tiny_run.run(tmp_path / name, mesh, made=made, total_steps=12, **options)
  first = tiny_run.fingerprint(run("first"))
  assert tiny_run.fingerprint(run("again")) == first
  with pytest.raises(Killed):
    run("broken", feed=before_batch(8, kill))
  assert tiny_run.fingerprint(run("broken")) == first


@pytest.fixture
def ctrl_c():
  """Ctrl-C as in a terminal; whoever runs the tests may have it ignored."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield signal.SIGINT
  signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_saves_the_step_it_comes_in_and_loses_none(mesh, made, whole, tmp_path, ctrl_c, number):
  before = signal.getsignal(number)
  with pytest.raises(loop.Preempted, match="at step 23; the checkpoint is saved") as stopped:
    tiny_run.run(tmp_path, mesh, made=made, feed=before_batch(23, lambda: os.kill(os.getpid(), number)))
  assert stopped.value.step == 23 and stopped.value.exit_code == 42
  assert checkpoints.steps_in(tmp_path)[-1] == 23 and signal.getsignal(number) is before
  final = tiny_run.run(tmp_path, mesh, made=made)
  assert tiny_run.fingerprint(final) == tiny_run.fingerprint(whole[0])
  assert tiny_run.losses_of(tmp_path) == tiny_run.losses_of(whole[1])


def test_a_second_ctrl_c_interrupts_at_once_and_an_ignored_one_is_not_heard(mesh, made, tmp_path, ctrl_c):
  def twice():
    os.kill(os.getpid(), ctrl_c)
    os.kill(os.getpid(), ctrl_c)

  with pytest.raises(KeyboardInterrupt):
    tiny_run.run(tmp_path, mesh, made=made, feed=before_batch(3, twice))
  signal.signal(ctrl_c, signal.SIG_IGN)
  tiny_run.run(tmp_path, mesh, made=made, total_steps=5, feed=before_batch(3, twice))


def test_a_finished_run_has_nothing_to_do(mesh, made, whole):
  rows = (whole[1] / "log" / "metrics.jsonl").read_text()
  again = tiny_run.run(whole[1], mesh, made=made, feed=lambda start: kill())
  assert tiny_run.fingerprint(again) == tiny_run.fingerprint(whole[0])
  assert (whole[1] / "log" / "metrics.jsonl").read_text() == rows


def test_a_damaged_checkpoint_costs_steps_and_nothing_else(mesh, made, whole, tmp_path):
  tiny_run.run(tmp_path, mesh, made=made, total_steps=20)
  (tmp_path / "20" / "run" / "manifest.ocdbt").unlink()
  final = tiny_run.run(tmp_path, mesh, made=made)
  assert tiny_run.fingerprint(final) == tiny_run.fingerprint(whole[0])
  assert tiny_run.losses_of(tmp_path) == tiny_run.losses_of(whole[1])


@pytest.mark.parametrize(
  "every, written, left",
  [
    (1, range(1, 14), [12, 13]),
    (2, range(1, 14), [10, 12, 13]),
    (5, [2, 5, 7, 10, 12, 13], [5, 10, 12, 13]),
    (6, [3, 6, 9, 12, 13], [6, 12, 13]),
  ],
)
def test_halfway_between_two_checkpoints_there_is_a_passing_one(mesh, made, tmp_path, monkeypatch, every, written, left):
  saves = []
  save = checkpoints.Checkpoints.save

  def recorded(self, state, step, config, *, wait):
    saves.append((step, wait))
    save(self, state, step, config, wait=wait)

  monkeypatch.setattr(checkpoints.Checkpoints, "save", recorded)
  tiny_run.run(tmp_path, mesh, made=made, total_steps=13, every=every, keep=2)
  assert saves == [(step, step == 13 or every == 1) for step in written]  # nobody waits for the others
  assert checkpoints.steps_in(tmp_path) == left


class Slowest(checkpoints.Checkpoints):
  """Its writes are complete when somebody waits for them, and never sooner."""

  begun = complete = 0

  def save(self, state, step, config, *, wait):
    self.costs.append(step - self.complete)  # of a death right now
    super().save(state, step, config, wait=wait)

  def _start(self, state, step, config):
    self.begun = step

  def wait(self):
    self.complete = self.begun


@pytest.mark.parametrize("every", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("first", [0, 3, 4], ids="from {}".format)  # 3 and 4: a passing one, or of a signal
def test_no_death_costs_more_than_the_interval_however_slow_the_disk(mesh, made, tmp_path, monkeypatch, every, first):
  if first:
    tiny_run.run(tmp_path, mesh, made=made, total_steps=first)
  costs: list[int] = []
  for field, value in dict(costs=costs, begun=first, complete=first).items():
    monkeypatch.setattr(Slowest, field, value, raising=False)
  monkeypatch.setattr(checkpoints, "Checkpoints", Slowest)
  tiny_run.run(tmp_path, mesh, made=made, total_steps=first + 3 * every + 1, every=every)
  assert max(costs) == every


def test_resuming_adds_no_retrace(mesh, made, tmp_path):
  for steps in (5, 10):
    tiny_run.run(tmp_path, mesh, made=made, total_steps=steps)
    assert made[1]._cache_size() == 1


def test_a_long_run_whose_temporaries_are_kept_is_the_same_bit_by_bit(mesh, made, whole, tmp_path, monkeypatch):
  repeated = compiler.repeated
  used = []

  def recorded(*args, times):
    used.append((times, repeated(*args, times=times)))
    return used[-1][1]

  monkeypatch.setattr(compiler, "_LONG", 0)
  monkeypatch.setattr(compiler, "_PIECE", 0)
  monkeypatch.setattr(compiler, "repeated", recorded)
  final = tiny_run.run(tmp_path, mesh, made=made)
  ((times, program),) = used
  assert times == tiny_run.TOTAL and (program is made[1]) == (jax.default_backend() != "cpu")
  assert tiny_run.fingerprint(final) == tiny_run.fingerprint(whole[0])


def test_a_step_is_compiled_once(mesh, tmp_path):
  """While the state is made, for shapes alone: the first call finds it."""
  compiled = []
  listener = lambda event, _, **about: compiled.append(about.get("fun_name")) if "backend_compile" in event else None
  jax.monitoring.register_event_duration_secs_listener(listener)
  try:
    tiny_run.run(tmp_path, mesh, made=tiny_run.make(mesh, width=8), total_steps=2)
  finally:
    jax.monitoring.unregister_event_duration_listener(listener)
  assert [name for name in compiled if "step" in name] == ["jit(step)"]


def test_a_run_needs_its_number_of_steps(mesh, made):
  with pytest.raises(UserError, match="total_steps = 0 must be at least 1"):
    loop.fit(*made, tiny_run.batches, loop.Intervals(0), mesh=mesh)


# ---------------------------------------------------------------------------------------------------- poison


def poisoned(first: int, last: int):
  """The run's batches, one pixel of those of steps first … last being NaN."""

  def feed(start):
    for i, batch in enumerate(tiny_run.batches(start), start=start + 1):
      if first <= i <= last:
        batch["image"][0, 0, 0, 0] = np.nan
      yield batch

  return feed


def test_a_nan_leaves_everything_bitwise_as_it_was(mesh, made):
  init, train_step = made
  feed = poisoned(7, 7)(0)
  now = place(init, mesh)
  for batch in itertools.islice(feed, 6):
    now, _ = train_step(now, layout.put_batch(batch, mesh))
  before = {name: np.array(x) for name, x in manifest.flatten(now).items()}
  now, metrics = train_step(now, layout.put_batch(next(feed), mesh))
  after = {name: np.array(x) for name, x in manifest.flatten(now).items()}
  changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
  assert changed == {"step", "skipped", "skipped_in_row"}
  assert (after["step"], after["skipped"], after["skipped_in_row"]) == (7, 1, 1) and np.isnan(metrics["loss"])
  now, metrics = train_step(now, layout.put_batch(next(feed), mesh))
  assert (int(now.updates), int(now.skipped), int(now.skipped_in_row)) == (7, 1, 0) and np.isfinite(metrics["loss"])


def test_a_run_survives_a_nan(mesh, made, tmp_path):
  final = tiny_run.run(tmp_path, mesh, made=made, feed=poisoned(7, 9))
  assert int(final.skipped) == 3 and int(final.skipped_in_row) == 0
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((final.params, final.ema, final.opt_state)))


def test_a_run_that_only_skips_stops_and_keeps_its_checkpoints(mesh, made, whole, tmp_path):
  with pytest.raises(loop.Diverged, match="The last 20 updates up to step 31 were skipped"):
    tiny_run.run(tmp_path, mesh, made=made, feed=poisoned(12, 99), keep=9)
  assert checkpoints.steps_in(tmp_path) == [5, 10, 15, 20, 25, 27, 30]
  at_10, at_30 = (checkpoints.load_weights(tmp_path, step=step, ema="raw").params for step in (15, 30))
  assert all((a == b).all() for a, b in zip(jax.tree.leaves(at_10), jax.tree.leaves(at_30), strict=True))


# ---------------------------------------------------------------------------------------------------- writing


def test_previews_of_all_weights_are_written(mesh, made, tmp_path):
  def preview(state):
    picture = np.zeros((4, 4, 1), np.uint8)
    return {"raw": picture, **{f"ema_{rate}": picture for rate in state.ema}}

  tiny_run.run(tmp_path, mesh, made=made, total_steps=7, preview=preview, preview_every=5)
  names = sorted(p.name for p in (tmp_path / "log" / "previews").iterdir())
  assert names == [f"{step:07d}_{name}.png" for step in (5, 7) for name in ("ema_0.9", "ema_0.99", "raw")]
  assert list((tmp_path / "log" / "events").iterdir())


def test_rows_after_the_restored_step_are_forgotten(tmp_path):
  log = writers.JsonLines(tmp_path)
  for step in (1, 2, 3):
    log.write_scalars(step, {"loss": 1.0 / step})
  log.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 4, "lo')  # the process was killed here
  log = writers.JsonLines(tmp_path, after=2)
  log.write_scalars(3, {"loss": float("nan")})
  log.close()
  rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").open()]
  assert rows == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": None}]


def test_metrics_survive_a_machine_that_went_down(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b'{"step": 1, "loss": 1.0}\n\0\0\0\xff\n{"step": 2, "loss": 0.5}')
  writers.JsonLines(tmp_path, after=2).close()
  assert [json.loads(row)["step"] for row in path.open()] == [1, 2]
  assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_ends_metrics_in_a_sentence(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  log = writers.Many([writers.JsonLines(tmp_path), writers.TensorBoard(tmp_path / "events")])
  jsonl, board = log.writers
  jsonl.file.close()
  jsonl.file = open("/dev/full", "a", buffering=1)  # its close fails too, with what is left in its buffer
  monkeypatch.setattr(board.events, "flush", full)
  for writer, name in ((jsonl, "/dev/full"), (board, "events")):
    with pytest.raises(UserError, match=f"^{name} cannot be written .No space left on device.: free space"):
      for step in range(20):
        writer.write_scalars(step, {"loss": 1.0})
  log.close()


def test_tensorboard_reads_what_was_written(tmp_path):
  log = writers.TensorBoard(tmp_path, after=4)
  log.write_scalars(5, {"loss": 0.25})
  log.write_images(5, {"raw": np.zeros((4, 4, 1), np.uint8)})
  log.close()
  (path,) = tmp_path.iterdir()
  data = path.read_bytes()
  events = []
  while data:  # length, its check sum, an event, its check sum
    size = int.from_bytes(data[:8], "little")
    events.append(Event.FromString(data[12 : 12 + size]))
    data = data[16 + size :]
  version, start, scalar, image = events
  assert version.file_version == "brain.Event:2"
  assert (start.step, start.session_log.status) == (5, SessionLog.START)  # hides what an earlier life wrote from there on
  assert (scalar.step, scalar.summary.value[0].tag, scalar.summary.value[0].simple_value) == (5, "loss", 0.25)
  assert (image.summary.value[0].tag, image.summary.value[0].image.height) == ("raw", 4)


def test_a_row_is_the_mean_since_the_last_one(monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(writers.time, "perf_counter", lambda: clock[0])
  meter = writers.Meter(total_steps=100)

  def step(loss, waited, others, **counters):
    with meter.waiting():
      clock[0] += waited
    clock[0] += others
    meter.add({"loss": np.float32(loss), **counters}, images=64)

  step(5.0, 3.0, 30.0)
  assert meter.row(59) == {"loss": 5.0}  # the first step compiles
  for loss in (1.0, 2.0, 6.0):
    step(loss, 0.5, 1.5, skipped=np.int32(loss))
  expected = {"loss": 3.0, "skipped": 6, "images_per_second": 32.0, "data_wait": 0.25, "seconds_left": 80.0}
  assert meter.row(60) == pytest.approx(expected)
  step(4.0, 0.0, 0.5)
  clock[0] += 1.0  # a checkpoint, a preview
  step(float("nan"), 0.0, 0.5)  # of a skipped step
  expected = {"loss": 4.0, "images_per_second": 64.0, "data_wait": 0.0, "seconds_left": 39.0}
  assert meter.row(61) == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------------- size does not matter


def test_microbatches_train_as_the_whole_batch(mesh, whole, tmp_path):
  final = tiny_run.run(tmp_path, mesh, accumulate=2)
  np.testing.assert_allclose(tiny_run.losses_of(tmp_path), tiny_run.losses_of(whole[1]), **FEW)
  for a, b in zip(jax.tree.leaves(final.params), jax.tree.leaves(whole[0].params), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)  # Adam amplifies rounding where gradients are near 0


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
  """What tests/programs/devices.py found out on 8 devices, in a process of its own."""
  here = pathlib.Path(__file__).parents[1] / "programs"
  directory = tmp_path_factory.mktemp("devices")
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(here.parents[1])}
  done = subprocess.run(
    [sys.executable, here / "devices.py", directory], env=environment, capture_output=True, text=True, timeout=600
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_every_mesh_has_the_same_loss_curve(devices, whole):
  for name, losses in devices["curves"].items():
    np.testing.assert_allclose(losses, tiny_run.losses_of(whole[1]), err_msg=name, **FEW)


def test_fsdp_cuts_parameters_averages_and_moments(devices):
  assert devices["cut"] == {"params": 8, "ema": 8, "opt_state": 8}  # parts of the middle kernel


def test_a_checkpoint_of_8_devices_continues_on_any_number(devices):
  assert set(devices["restored"].values()) == {devices["saved"]}  # bitwise, wherever it went
  np.testing.assert_allclose(list(devices["next_loss"].values()), devices["next_loss"]["1"], **FEW)


def test_eight_devices_resume_bitwise(devices):
  assert devices["resumed"] == devices["unbroken"]


def test_a_restored_state_traces_and_compiles_nothing_on_any_mesh(devices):
  assert devices["compiled_by_it"] == {name: [] for name in devices["curves"]}


def test_a_preview_that_a_killed_run_owes_is_made_up(tmp_path):
  """Killed between the last checkpoint and its preview; and with the preview there, none is made twice."""
  made = []

  def preview(now):
    made.append(int(now.step))
    return {"a": np.zeros((2, 2, 1), np.uint8)}

  tiny_run.run(str(tmp_path), total_steps=4, every=4)
  for _ in range(2):
    tiny_run.run(str(tmp_path), total_steps=4, every=4, preview=preview)
  assert made == [4] and (tmp_path / "log/previews/0000004_a.png").exists()
