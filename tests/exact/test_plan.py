"""Plans: operations counted by others, traffic that can be worked out by hand, and memory laws; nothing is run."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from ddpm_jax import build
from ddpm_jax import config as configs
from ddpm_jax.cli.main import run
from ddpm_jax.cli.plan import describe, roofline
from ddpm_jax.devices import flops, hlo
from ddpm_jax.devices.memory import TooLarge, least_remat
from ddpm_jax.errors import UserError
from ddpm_jax.jobs import plan
from ddpm_jax.jobs.plan import Fit, Program

PROGRAMS = pathlib.Path(__file__).parents[1] / "programs"


# ---------------------------------------------------------------- operations


# multiply-adds of one forward pass, counted in the authors' PyTorch code by torch's own counter, in 10^9
@pytest.mark.parametrize(("name", "classes", "multiply_adds"), [("cifar10_ddpm", 10, 6.222), ("cifar10_iddpm", 10, 8.387)])
def test_operations_of_a_forward_pass(name, classes, multiply_adds):
  config = configs.load(name)
  module = build.model(config, 3, classes)
  size = config.data.image_size
  x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  params = jax.eval_shape(lambda: build.initial_params(module, jax.random.key(0), size, 3))
  inputs = (params, x, jax.ShapeDtypeStruct((1,), jnp.float32), {"label": jax.ShapeDtypeStruct((1,), jnp.int32)})
  counted = flops.count(jax.make_jaxpr(build.Apply(module))(*inputs))
  assert counted / 2e9 == pytest.approx(multiply_adds, rel=1e-4)  # they are printed to 3 decimals


def test_operations_of_gradients_loops_and_branches():
  a = jnp.zeros((3, 5))
  b = jnp.zeros((5, 7))
  once = 2 * 3 * 5 * 7
  product = lambda a: (a @ b).sum()
  looped = lambda a: jax.lax.scan(lambda c, _: (c, product(a)), 0.0, None, length=11)
  either = lambda a: jax.lax.cond(a[0, 0] > 0, product, jnp.sum, a)
  for function, times in ((product, 1), (jax.value_and_grad(product), 2), (looped, 11), (either, 1), (jax.jit(product), 1)):
    assert flops.count(jax.make_jaxpr(function)(a)) == times * once


def test_operations_of_a_convolution_and_its_gradients():
  x = jnp.zeros((2, 8, 8, 3))
  kernel = jnp.zeros((3, 3, 3, 5))
  conv = lambda x, kernel, stride: jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  ).sum()
  for stride in (1, 2):
    forward = 2 * (2 * (8 // stride) ** 2 * 5) * (3 * 3 * 3)
    both = jax.make_jaxpr(jax.value_and_grad(lambda x, k, s=stride: conv(x, k, s), argnums=(0, 1)))(x, kernel)
    # Gradients cost as much as the value, each; XLA's padding makes a strided one a little dearer.
    assert forward * 3 <= flops.count(both) <= forward * 3.5


# ---------------------------------------------------------------- traffic


def test_traffic_of_a_loop_counts_every_turn():
  def loop(x, w):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=20)[0]

  text = jax.jit(loop).lower(jnp.zeros((16, 256)), jnp.zeros((256, 256))).compile().as_text()
  least = 20 * 4 * (256 * 256 + 2 * 16 * 256)  # weights and x read, x written
  assert least <= hlo.traffic(text).moved <= 1.6 * least  # tanh may be an instruction of its own
  for unknown in ('"known_trip_count":{"n":"20"}', "nothing"):  # a TPU's compiler does not write it down
    assert hlo.traffic(text.replace(unknown, "")).moved >= least


TEXT = """HloModule made_up

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %i = s32[] get-tuple-element(%p), index=0
  %all-reduce.1 = f32[8,128]{1,0:T(8,128)} all-reduce(%x), replica_groups={}, to_apply=%add
  ROOT %out = (s32[], f32[8,128]{1,0:T(8,128)}) tuple(%i, %all-reduce.1)
}

%condition (p.1: (s32[], f32[8,128])) -> pred[] {
  %p.1 = (s32[], f32[8,128]) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %turns = s32[] constant(6)
  ROOT %less = pred[] compare(%i.1, %turns), direction=LT
}

ENTRY %main (x.1: f32[8,128], w.1: bf16[4,64]) -> (s32[], f32[8,128]) {
  %x.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %w.1 = bf16[4,64]{1,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[] constant(0)
  %ag-start = (bf16[4,64]{1,0}, bf16[16,64]{1,0:T(8,128)(2,1)S(1)}) all-gather-start(%w.1), dimensions={0}
  %ag-done = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} all-gather-done(%ag-start)
  %start = (s32[], f32[8,128]) tuple(%zero, %x.1)
  ROOT %loop = (s32[], f32[8,128]{1,0:T(8,128)}) while(%start), condition=%condition, body=%body
}
"""


def test_collectives_of_a_program_text():
  found = hlo.traffic(TEXT)
  assert found.collectives == {"all-gather": (1, 16 * 64 * 2), "all-reduce": (6, 6 * 8 * 128 * 4)}
  assert found.sent == 16 * 64 * 2 + 2 * 6 * 8 * 128 * 4


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory) -> dict:
  """What tests/programs/compiled.py finds on 8 devices."""
  path = os.pathsep.join(map(str, (PROGRAMS, PROGRAMS.parents[1])))
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
  environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # machine code that is not run need not be fast
  done = subprocess.run(
    [sys.executable, PROGRAMS / "compiled.py"], env=environment, capture_output=True, text=True, timeout=1200
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def test_samplers_on_eight_devices_hold_no_collectives(on_eight):
  assert {name: found["collectives"] for name, found in on_eight["samplers"].items()} == {
    "classifier_free": {},
    "classifier, mean": {},
    "classifier, score": {},
  }
  assert all(found["images"] == 8 for found in on_eight["samplers"].values())


def test_one_image_is_drawn_once_and_is_the_same(on_eight):
  found = on_eight["images"]
  assert found["devices"] == [8, 1]
  assert found["spread"] > 100 and found["difference"] <= 1  # rounded, in another order of sums


def test_data_parallel_training_adds_up_the_gradient_once(on_eight):
  """One float32 per parameter, and a few numbers more for the loss and its parts.

  Less the biases of keys in attention (4 of 16 numbers here): a softmax does not see them, and their gradient is zero.
  """
  collectives = on_eight["train"]["1"]["collectives"]
  gradient = 4 * on_eight["parameters"]
  assert set(collectives) == {"all-reduce"}
  assert gradient - 4 * 4 * 16 <= collectives["all-reduce"][1] <= gradient + 4096


def test_sharing_the_state_costs_gathers_and_saves_memory(on_eight):
  whole = on_eight["train"]["1"]
  cut = on_eight["train"]["8"]
  assert "all-gather" in cut["collectives"]
  assert cut["arguments"] < whole["arguments"]


# ---------------------------------------------------------------- what fits


def program(peak: int) -> Program:
  return Program(
    images=8,
    devices=2,
    flops=1e9,
    arguments=0,
    temporaries=0,
    peak=peak,
    moved=4,
    collectives={},
    sent=2,
    compile_seconds=0.0,
  )


@pytest.mark.parametrize(
  ("memory", "most", "per_device"), [(1000, 1024, 64), (1000, 16, 16), (131, 1024, 2), (115, 1024, 1), (10**9, 1024, 1024)]
)
def test_the_largest_batch_that_fits(memory, most, per_device):
  asked = []

  def measure(images: int) -> Program:
    asked.append(images)
    if 100 + 14 * images > memory:
      raise TooLarge("no")
    return program(100 + 14 * images)

  assert plan.largest(measure, memory, most) == (per_device, program(100 + 14 * per_device))
  assert len(asked) <= 4  # 1, 2, as many as they predict, and twice that


def test_a_large_batch_may_need_less_than_small_ones_predict():
  """As XLA's do: 7 GiB per image from 1 to 2, 3 from there on."""
  peak = {1: 7, 2: 14, 4: 20, 8: 32, 16: 56, 32: 104}
  assert plan.largest(lambda images: program(peak[images]), 95, 32) == (16, program(56))
  assert plan.largest(lambda images: program(peak[images]), 20, 32) == (4, program(20))


def test_a_state_that_fits_nowhere_is_said_so():
  with pytest.raises(TooLarge, match="One image per chip needs 2.0 GiB of 1.0 GiB"):
    plan.largest(lambda images: program(2**31), 2**30, 8)


GIB = 2**30
PEAKS = {"none": 30 * GIB, "norms": 12.5 * GIB, "blocks": 8 * GIB}


@pytest.mark.parametrize(
  ("limit", "remat", "said"),
  [
    (32, "none", "remat=none: none needs 30 of 32 GiB."),
    (12.5, "norms", "remat=norms: none needs 30, norms needs 12.5 of 12.5 GiB."),
    (10, "blocks", "remat=blocks: none needs 30, norms needs 12.5, blocks needs 8 of 10 GiB."),
    (1, "blocks", "remat=blocks: none needs 30, norms needs 12.5, blocks needs 8 of 1 GiB."),
  ],
)
def test_no_more_is_recomputed_than_the_memory_asks_for(limit, remat, said, caplog):
  caplog.set_level("INFO")
  assert least_remat(lambda remat: (remat, PEAKS[remat]), limit * GIB) == remat
  assert caplog.messages == [said]


@pytest.mark.parametrize("refused", [1, 3])
def test_what_the_compiler_refuses_is_recomputed(refused, caplog):
  caplog.set_level("INFO")
  refusals = iter([TooLarge("no")] * refused)

  def measure(remat):
    for refusal in refusals:
      raise refusal
    return remat, PEAKS[remat]

  if refused == 3:
    with pytest.raises(TooLarge, match="no"):
      least_remat(measure, 16 * GIB)
  else:
    assert least_remat(measure, 16 * GIB) == "norms"
    assert caplog.messages == ["remat=norms: none is too large to compile, norms needs 12.5 of 16 GiB."]


def undecided():
  return configs.override(configs.load("digits:smoke"), ["network.channels=8", "network.groups=4", "network.remat=auto"])


@pytest.mark.parametrize(("limit", "remat", "asked"), [(16 * GIB, "norms", 2), (None, None, 1)])
def test_a_plan_recomputes_as_a_run_would(limit, remat, asked, monkeypatch):
  config = undecided()
  peaks = iter(PEAKS.values())
  monkeypatch.setattr(plan, "memory_of", lambda device: limit)
  monkeypatch.setattr(plan, "compiled", lambda *_, **__: program(next(peaks)))
  found = plan.train_step(config, jax.devices()[:1])
  assert found.remat == remat and len(list(peaks)) == 3 - asked
  assert ("with remat=norms" in describe("train", config, Fit(found, 1, False), limit)) == (remat is not None)


@pytest.mark.parametrize(
  ("limit", "remat", "images"), [(16 * GIB, "none", 16), (4 * GIB, "norms", 16), (GIB, "blocks", 16), (1, None, 0)]
)
def test_a_plan_that_searches_takes_the_fastest_policy_with_its_largest_batch(limit, remat, images, monkeypatch):
  """Made up: each policy needs a quarter of the memory and is a fifth slower, twice as many images are a tenth faster."""
  chip = plan.Chip("made up", peak=1e9, hbm=limit, bandwidth=1.0, links=1e9)
  monkeypatch.setattr(plan, "memory_of", lambda device: limit)
  monkeypatch.setattr(plan, "chip_of_all", lambda devices: chip)

  def train_step(config, on, exact):
    policy = [*PEAKS].index(config.network.remat)
    images = config.train.per_device_batch
    flops = 1e9 * 1.2**policy * 0.9 ** math.log2(images)
    return dataclasses.replace(program(GIB * images // 4**policy), flops=flops, moved=0)

  monkeypatch.setattr(plan, "train_step", train_step)
  if remat is None:
    with pytest.raises(TooLarge, match="whatever is recomputed"):
      plan.training(undecided(), jax.devices()[:1])
  else:
    fit = plan.training(undecided(), jax.devices()[:1])
    assert (fit.program.remat, fit.per_device, fit.searched) == (remat, images, True)


def test_roofline_is_the_slowest_of_three():
  chip = plan.Chip("made up", peak=1e9, hbm=1, bandwidth=1.0, links=0.1)
  assert program(0).seconds(chip) == {"arithmetic": 4.0, "memory": 4.0, "links": 20.0}
  assert program(0).images_per_second(chip) == 8 / 20


def test_what_is_assumed_is_told_only_if_somebody_assumes_it():
  chip = plan.Chip("made up", peak=1e9, hbm=1, bandwidth=1.0, links=0.1)
  config = configs.load("digits")
  config.train.total_steps = 1800  # of 20 s
  bound = roofline("train", config, program(0), chip, None, None)
  assert "at least 1,800 steps in 10.0 h" in bound and "assumed" not in bound
  both = roofline("train", config, program(0), chip, 0.25, 3.0)
  assert bound.splitlines()[0] in both and f"{1800:,} steps in 40.0 h" in both and "at 3 per chip hour, as assumed" in both


# ---------------------------------------------------------------- the command


def test_plan_of_the_devices_here(capsys, tmp_path):
  code = run(
    [
      "plan",
      "--config",
      "digits:smoke",
      "--programs",
      "sample",
      "--json",
      str(tmp_path / "plan.json"),
      "--config.network.channels=8",
      "--config.network.groups=4",
    ]
  )
  assert code == 0
  out = capsys.readouterr().out
  assert "collectives  none" in out and "no roofline" in out
  figures = json.loads((tmp_path / "plan.json").read_text())
  fit = figures["sample"]
  config = configs.override(configs.load("digits:smoke"), ["network.channels=8", "network.groups=4"])
  assert fit["program"]["arguments"] >= 4 * plan.parameters(config)
  assert not fit["searched"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config", "digits:smoke", "--programs", "trian"], "did you mean 'train'"),
    (["--config", "digits:smoke", "--utilisation", "40"], "--utilisation 40 must be a share of the speed at best"),
    (["--config", "lsun_ddpm", "--config.data.image_size=None"], "add --config.data.image_size=N"),
  ],
)
def test_what_cannot_be_planned(arguments, message, capsys):
  assert run(["plan", *arguments]) == 2
  assert message in capsys.readouterr().err


def test_a_slice_without_its_compiler_or_of_no_such_shape():
  with pytest.raises(UserError, match="ddpm_jax.tpu.|is not a TPU slice"):
    plan.devices("v5e:3x3")
