"""Checkpoints: everything comes back, nothing damaged does, and what is said is true."""

import errno
import itertools
import json
import logging
import os
import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from weights import save_weights

from ddpm_jax.errors import UserError
from ddpm_jax.training import checkpoints, manifest, reading, state
from ddpm_jax.training.checkpoints import CheckpointError, Checkpoints

CONFIG = {"network": {"width": 8, "rate": 0.1}, "name": "é"}


def make_state(step: int, width: int = 8):
  """A state of random numbers, of every kind of leaf that a run has."""
  rng = np.random.default_rng(step)
  params = {"conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, width, 64)), jnp.float32), "bias": jnp.zeros(64)}}
  made = state.create(
    jax.random.key(5), params, optax.adam(1e-3), ema_rates=(0.9, 0.999), time_sampler={"count": jnp.arange(4)}
  )
  return made.replace(step=jnp.int32(step), ema=jax.tree.map(lambda x: x + step, made.ema))


def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_bitwise_equal(a, b):
  a = manifest.flatten(a)
  b = manifest.flatten(b)
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].dtype == b[name].dtype and np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes(), name


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A directory with sound checkpoints of steps 10 and 20; copy it before doing harm."""
  directory = tmp_path_factory.mktemp("saved")
  run = Checkpoints(directory)
  for step in (10, 20):
    run.save(make_state(step), step, CONFIG)
  run.close()
  return directory


@pytest.fixture
def harmed(saved, tmp_path):
  """A copy to do harm to."""
  return pathlib.Path(shutil.copytree(saved, tmp_path / "harmed"))


def restore(directory):
  return Checkpoints(directory).restore(abstract(make_state(0)))


# ---------------------------------------------------------------------------------------------------- sound ones


def test_everything_comes_back(saved):
  found, about = restore(saved)
  assert_bitwise_equal(found, make_state(20))
  assert found.key == jax.random.key(5) and about.config == CONFIG and about.step == 20


def test_nothing_there_is_no_error_for_a_run_that_starts(tmp_path):
  assert restore(tmp_path / "new") is None


def test_sampling_reads_one_average_and_says_which(saved):
  weights = checkpoints.load_weights(saved)
  assert_bitwise_equal(weights.params, make_state(20).ema["0.999"])
  assert (weights.source, weights.step, weights.config) == ("EMA 0.999", 20, CONFIG)
  assert_bitwise_equal(checkpoints.load_weights(saved, ema="0.9", step=10).params, make_state(10).ema["0.9"])
  raw = checkpoints.load_weights(saved, ema="raw")
  assert_bitwise_equal(raw.params, make_state(20).params)
  assert raw.source == "raw parameters" and checkpoints.load_config(saved) == CONFIG


def test_one_average_is_read_without_the_rest(harmed):
  for item in ("run", "params", "ema_0.9"):
    shutil.rmtree(harmed / "20" / item)
  assert checkpoints.load_weights(harmed).step == 20


def test_converted_weights_are_a_checkpoint(tmp_path):
  params = {"conv": {"kernel": np.ones((2, 2), np.float32)}}
  save_weights(tmp_path, params, CONFIG, rate="0.9999", step=500_000)
  weights = checkpoints.load_weights(tmp_path)
  assert_bitwise_equal(weights.params, params)
  assert weights.source == "EMA 0.9999" and weights.step == 500_000


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
  forward = jax.jit(lambda s: jax.tree.map(lambda x: x * 3 + 1, s), donate_argnums=0)
  live = {"x": jnp.ones((256, 1024)), "y": jnp.arange(7.0)}
  run = Checkpoints(tmp_path)
  kept = None
  for step in range(1, 6):
    live = forward(live)
    if step == 3:
      kept = jax.tree.map(np.array, live)
    run.save(live, step, {})
  run.close()
  like = abstract(live)
  assert_bitwise_equal(run.restore(like)[0], live)
  shutil.rmtree(tmp_path / "5"), shutil.rmtree(tmp_path / "4")
  assert_bitwise_equal(run.restore(like)[0], kept)


def test_the_last_few_stay_and_every_so_many(tmp_path):
  run = Checkpoints(tmp_path, keep=2, keep_every=4)
  for step in range(1, 12):
    run.save({"x": jnp.full(3, step)}, step, {})
  run.close()
  assert checkpoints.steps_in(tmp_path) == [4, 8, 10, 11]
  assert not [p.name for p in tmp_path.iterdir() if "tmp" in p.name]


@pytest.mark.parametrize("restarted", [False, True])
def test_the_last_few_of_the_interval_stay_and_of_all(tmp_path, restarted):
  run = Checkpoints(tmp_path, keep=2, every=6, keep_every=9)
  left = {3: [3], 6: [3, 6], 9: [6, 9], 12: [6, 9, 12], 14: [6, 9, 12, 14], 15: [6, 9, 12, 14, 15], 18: [9, 12, 15, 18]}
  for step, steps in left.items():
    if restarted:
      run.close()
      run = Checkpoints(tmp_path, keep=2, every=6, keep_every=9)
    run.save({"x": jnp.full(3, step)}, step, {}, wait=True)
    assert checkpoints.steps_in(tmp_path) == steps
  run.close()


def test_another_interval_leaves_a_checkpoint_to_fall_back_to(tmp_path):
  for every, steps in ((500, (500, 1000)), (6, (1002,))):
    run = Checkpoints(tmp_path, keep=2, every=every)
    for step in steps:
      run.save({"x": jnp.full(3, step)}, step, {}, wait=True)
    run.close()
  assert checkpoints.steps_in(tmp_path) == [1000, 1002]


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_not_called_damaged(harmed, monkeypatch, caplog):
  real = reading.manifest_at

  def replaced(path, step):
    if step == 20:
      (harmed / "20").rename(harmed / "30")
    return real(path, step)

  monkeypatch.setattr(reading, "manifest_at", replaced)
  assert checkpoints.load_weights(harmed).step == 30 and not caplog.text


def test_leftovers_of_a_broken_write_are_ignored_and_swept(harmed):
  leftover = harmed / "30.orbax-checkpoint-tmp"
  shutil.copytree(harmed / "20" / "params", leftover / "params")
  assert checkpoints.steps_in(harmed) == [10, 20]
  run = Checkpoints(harmed)
  run.save(make_state(30), 30, CONFIG, wait=True)
  run.close()
  assert not leftover.exists() and restore(harmed)[1].step == 30


# ---------------------------------------------------------------------------------------------------- damage


def big_files(step: pathlib.Path) -> list[pathlib.Path]:
  return sorted(p for p in step.rglob("*") if p.is_file() and p.stat().st_size > 2000 and "d" in p.parts)


def flip(path: pathlib.Path, rng) -> None:
  data = bytearray(path.read_bytes())
  data[rng.integers(len(data))] ^= 1 << rng.integers(8)
  path.write_bytes(data)


@pytest.mark.parametrize("trial", range(8))
def test_a_flipped_bit_never_comes_back(harmed, trial, caplog):
  rng = np.random.default_rng(trial)
  files = big_files(harmed / "20")
  flip(files[trial % len(files)], rng)
  found, about = restore(harmed)
  assert_bitwise_equal(found, make_state(about.step))
  if about.step == 10:  # a bit that no value depends on may be flipped without harm
    assert "20 is damaged" in caplog.text


def test_a_flipped_bit_in_the_config_is_seen(harmed, caplog):
  path = harmed / "20" / "manifest" / "metadata"
  path.write_text(path.read_text().replace('"width": 8', '"width": 9'))
  assert restore(harmed)[1].step == 10
  assert "its manifest does not match its checksum" in caplog.text


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_truncated_file_is_seen(harmed, kept):
  path = max(big_files(harmed / "20"), key=lambda p: p.stat().st_size)
  path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
  found, about = restore(harmed)
  assert about.step == 10 or kept == 0.99  # the end of a file may be an index that nothing reads
  assert_bitwise_equal(found, make_state(about.step))


@pytest.mark.parametrize("missing", ["manifest", "params", "run", "ema_0.9", "ema_0.999", "params/manifest.ocdbt", "run/d"])
def test_a_missing_part_is_seen_and_the_step_set_aside(harmed, missing, caplog):
  path = harmed / "20" / missing
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  assert restore(harmed)[1].step == 10
  assert "20 is damaged" in caplog.text
  assert sorted(p.name for p in harmed.iterdir()) == ["10", "20.damaged"]


def test_a_damaged_step_can_be_written_anew(harmed):
  for _ in range(2):  # a bad disk may do it again
    shutil.rmtree(harmed / "20" / "run")
    run = Checkpoints(harmed)
    run.restore(abstract(make_state(0)))
    run.save(make_state(20), 20, CONFIG, wait=True)
    run.close()
  assert_bitwise_equal(restore(harmed)[0], make_state(20))


def test_sampling_walks_back_too_unless_told_the_step(harmed):
  shutil.rmtree(harmed / "20" / "ema_0.999")
  assert checkpoints.load_weights(harmed).step == 10
  with pytest.raises(CheckpointError, match="No checkpoint in .* can be used: step 20: "):
    checkpoints.load_weights(harmed, step=20)
  assert (harmed / "20").exists()  # readers set nothing aside


def test_if_all_are_damaged_each_reason_is_given(harmed):
  shutil.rmtree(harmed / "10" / "params")
  (harmed / "20" / "manifest" / "metadata").write_text("{}")
  with pytest.raises(CheckpointError, match="(?s)step 20: .*; step 10: .*Restore them from a copy, or start again"):
    restore(harmed)
  assert sorted(p.name for p in harmed.iterdir()) == ["10", "20"]


# ---------------------------------------------------------------------------------------------------- sentences


def test_another_architecture_names_the_first_difference(saved):
  with pytest.raises(CheckpointError) as error:
    Checkpoints(saved).restore(abstract(make_state(0, width=16)))
  assert "has float32 [3, 3, 8, 64] at params/conv/kernel, where this config has float32 [3, 3, 16, 64]" in str(error.value)
  like = abstract(make_state(0))
  with pytest.raises(CheckpointError, match="has nothing at ema/0.99/conv/bias, where this config has float32"):
    Checkpoints(saved).restore(like.replace(ema={**like.ema, "0.99": like.ema["0.9"]}))
  with pytest.raises(CheckpointError, match="has float32 .* at ema/0.9/conv/bias, where this config has nothing"):
    Checkpoints(saved).restore(like.replace(ema={"0.999": like.ema["0.999"]}))


def test_what_is_not_there_is_said(saved, tmp_path):
  with pytest.raises(CheckpointError, match="There is no checkpoint in .*Train first"):
    checkpoints.load_weights(tmp_path)
  with pytest.raises(CheckpointError, match="no checkpoint of step 15 in .*; there are 10, 20"):
    checkpoints.load_weights(saved, step=15)
  with pytest.raises(CheckpointError, match="has no EMA 0.5; it has EMA rates 0.9, 0.999 and raw parameters"):
    checkpoints.load_weights(saved, ema="0.5")
  with pytest.raises(UserError, match="keep = 0"):
    Checkpoints(tmp_path, keep=0)


# ---------------------------------------------------------------------------------------------------- failed writes


def broken_writes(monkeypatch, times: int):
  """The next `times` saves fail in the background, as on a full disk."""
  left = [times]
  real = checkpoints.ocp.CheckpointManager.wait_until_finished

  def wait(self):
    real(self)
    if left[0]:
      left[0] -= 1
      for step in self.directory.glob("[0-9]*"):
        step.rmtree() if int(step.name) > 20 else None
      raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "wait_until_finished", wait)


def test_a_failed_write_is_tried_again_with_a_fresh_manager(harmed, monkeypatch, caplog):
  run = Checkpoints(harmed)
  run.save(make_state(20), 20, CONFIG)  # is there already: nothing to do
  broken_writes(monkeypatch, times=1)
  with caplog.at_level(logging.WARNING):
    run.save(make_state(30), 30, CONFIG, wait=True)
  assert "No space left on device. The last complete one is step 20" in caplog.text
  run.close()
  assert restore(harmed)[1].step == 30


def test_one_process_of_several_does_not_begin_again_alone(tmp_path, monkeypatch):
  run = Checkpoints(tmp_path)
  now = make_state(1)
  failed = []

  def fail():
    failed.append(True)
    raise CheckpointError("No space left.")

  monkeypatch.setattr(run, "wait", fail)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(CheckpointError, match="No space left"):  # which ends the others too (distributed.together)
    run.save(now, 1, CONFIG)
  assert len(failed) == 1 and not list(tmp_path.iterdir())


def test_a_full_disk_ends_in_one_sentence_and_harms_nothing(harmed, monkeypatch):
  run = Checkpoints(harmed)
  run.save(make_state(20), 20, CONFIG)
  broken_writes(monkeypatch, times=9)
  with pytest.raises(
    CheckpointError, match="could not be written to .*: .*No space left on device. The last complete one is step 20"
  ):
    run.save(make_state(30), 30, CONFIG, wait=True)
  monkeypatch.undo()
  assert_bitwise_equal(restore(harmed)[0], make_state(20))


# ---------------------------------------------------------------------------------------------------- versions


def test_a_checkpoint_of_schema_0_is_migrated(tmp_path, monkeypatch):
  old = {"params": jnp.ones(3), "skipped_streak": jnp.int32(4), "skipped": jnp.int32(9)}
  monkeypatch.setattr(manifest, "SCHEMA", 0)
  run = Checkpoints(tmp_path)
  run.save(old, 1, CONFIG, wait=True)
  run.close()
  monkeypatch.undo()
  like = abstract({"params": jnp.ones(3), "skipped_in_row": jnp.int32(0), "skipped": jnp.int32(0)})
  found, _ = run.restore(like)
  assert found["skipped_in_row"] == 4 and found["skipped"] == 9


def test_a_checkpoint_of_the_future_asks_for_an_update_and_is_left_alone(harmed, monkeypatch):
  monkeypatch.setattr(manifest, "SCHEMA", 7)
  run = Checkpoints(harmed)
  run.save(make_state(30), 30, CONFIG, wait=True)
  run.close()
  monkeypatch.undo()
  for read in (checkpoints.load_weights, restore):
    with pytest.raises(CheckpointError, match="step 30 has schema 7, but this version of ddpm_jax reads up to 1: update it"):
      read(harmed)
  assert checkpoints.steps_in(harmed) == [10, 20, 30]


def test_the_manifest_is_plain_json(saved):
  document = json.loads((saved / "20" / "manifest" / "metadata").read_text())
  content = document["content"]
  assert content["schema"] == manifest.SCHEMA and content["config"] == CONFIG
  assert content["leaves"]["params/conv/kernel"][:2] == [[3, 3, 8, 64], "float32"]


@pytest.mark.parametrize("calls", [1, 5, 20, 60])
def test_a_clock_that_jumps_ends_nothing(calls, tmp_path, monkeypatch):
  """A laptop that slept for a day in the middle of a save: Orbax measures its timeouts by time.time()."""
  awake = time.time
  called = itertools.count()
  monkeypatch.setattr(time, "time", lambda: awake() + 24 * 3600 * (next(called) > calls))
  saved = Checkpoints(tmp_path)
  saved.save({"params": {"a": jnp.arange(4.0)}}, 1, {}, wait=True)
  saved.close()
  assert checkpoints.steps_in(tmp_path) == [1]


def sealed(content):
  """A manifest with the checksum of its content, whatever that is."""
  return {"content": content, "sha256": manifest._sha256(content)}


SOUND = {"schema": 1, "step": 3, "config": {}, "leaves": {"params/a": [[2], "float32", "0" * 16]}}


def test_a_manifest_that_makes_no_sense_is_refused_though_its_checksum_is_right():
  assert manifest.parse(sealed(SOUND)).leaves["params/a"].shape == (2,)
  for change in (
    {"schema": -1},
    {"schema": "1"},
    {"step": -1},
    {"step": 1.5},
    {"config": []},
    {"leaves": []},
    {"leaves": {"a": 1}},
    {"leaves": {"a": [[-1], "float32", "0" * 16]}},
    {"leaves": {"a": [[10**6, 10**6], "float32", "0" * 16]}},
    {"leaves": {"a": [[2], "object", "0" * 16]}},
    {"leaves": {"a": [[2], "float32", "x"]}},
    {"leaves": {"params/../../a": [[2], "float32", "0" * 16]}},
  ):
    with pytest.raises(UserError):
      manifest.parse(sealed(SOUND | change))
  for document in ({}, {"content": 1}, sealed([])):
    with pytest.raises(UserError):
      manifest.parse(document)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("large", [False, True])  # small arrays are looked at on the host
def test_weights_that_are_not_finite_are_refused_though_their_digest_is_right(tmp_path, value, large, caplog):
  params = {"a": jnp.ones(2**18 if large else 4), "count": jnp.arange(3)}
  save_weights(tmp_path, params, {}, rate="0.9", step=1)
  assert checkpoints.load_weights(tmp_path).step == 1
  save_weights(tmp_path, params | {"a": params["a"].at[1].set(value)}, {}, rate="0.9", step=2)
  assert checkpoints.load_weights(tmp_path).step == 1 and "ema/0.9/a has values that are not finite" in caplog.text
  with pytest.raises(CheckpointError, match="ema/0.9/a has values that are not finite"):
    checkpoints.load_weights(tmp_path, step=2)


def test_folders_that_are_only_numbers_are_not_checkpoints(saved, tmp_path):
  (tmp_path / "15197/task").mkdir(parents=True)  # such as those of /proc
  assert checkpoints.steps_in(tmp_path) == [] and checkpoints.steps_in(saved) == [10, 20]


def test_groups_and_arrays_of_one_name_are_refused():
  with pytest.raises(UserError, match="an array and a group"):
    manifest.nest({"a": 1, "a/b": 2})


def test_pipes_and_dangling_links_in_a_checkpoint_are_refused(tmp_path):
  save_weights(tmp_path, {"a": jnp.arange(4.0)}, {}, rate="0.9", step=1)
  (tmp_path / "2").symlink_to("nowhere")
  assert checkpoints.steps_in(tmp_path) == [1]
  os.mkfifo(tmp_path / "1/pipe")
  with pytest.raises(UserError, match="pipe is not a regular file"):
    checkpoints.load_config(tmp_path)
