"""What a run will need and cost on machines that one does not have yet.

The real training step and the real sampler are compiled ahead of time for the devices of a TPU slice that is not there,
by libtpu, which needs no TPU for that; or for the devices at hand. State, batch and keys are shapes with shardings:
nothing is allocated, nothing runs. From the compiled program come memory, traffic and collectives (hlo.py), from the
traced one the arithmetic (flops.py), and from both the time that the chip's published figures allow at best:

    seconds per call = max(operations / peak,  bytes moved / HBM bandwidth,  bytes sent / ICI bandwidth)       (roofline)
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax import config as configs
from ddpm_jax.data.sources import Info
from ddpm_jax.devices import flops, hlo
from ddpm_jax.devices import mesh as layout
from ddpm_jax.devices.chips import Chip, chip_of, memory_of
from ddpm_jax.devices.memory import TooLarge, compile_lowered, least_remat
from ddpm_jax.diffusion.guidance import Classifier
from ddpm_jax.diffusion.noise import PerImage
from ddpm_jax.diffusion.samplers import sample
from ddpm_jax.errors import UserError
from ddpm_jax.jobs import train
from ddpm_jax.jobs.shapes import conditions, labels
from ddpm_jax.models.layers import REMAT
from ddpm_jax.sizes import image_shape
from ddpm_jax.training import checkpoints

# ---------------------------------------------------------------- devices

# libtpu does not ask which slice this machine is in, nor complain that it is in none, nor lock out a second planner.
NOWHERE = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_LOG_DIR": "disabled",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def devices(topology: str | None) -> list[jax.Device]:
  """The devices of a slice such as "v5e:4x4" or "v5p:2x2x4", which need not exist; None: those at hand.

  Raises:
    UserError: without libtpu, or for a slice that does not exist.
  """
  if topology is None:
    return jax.devices()
  for name, value in NOWHERE.items():
    os.environ.setdefault(name, value)
  chips = [int(n) for n in topology.partition(":")[2].split("x") if n.isdigit()]
  one_host = {"chips_per_host_bounds": [*chips, 1][:3]} if np.prod(chips) == 1 else {}
  try:
    return topologies.get_topology_desc(topology, "tpu", **one_host).devices
  except Exception as error:
    why = str(error).strip().splitlines()[0]
    if "not installed" in why:
      raise UserError(
        f"Planning for {topology} needs libtpu, the TPU's compiler: pip install 'ddpm_jax[tpu]'. It needs no TPU."
      ) from None
    raise UserError(f"{topology} is no TPU slice ({why}): write one like v5e:4x4, v5p:2x2x4 or v6e:8x8.") from None


# ---------------------------------------------------------------- programs


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program. Bytes are those of one device.

  Attributes:
    images: in one call, over all devices.
    devices: that share them.
    flops: operations per image, remat's repetitions included.
    arguments: bytes of what is given and, if donated, of what comes back.
    temporaries: bytes used meanwhile.
    peak: bytes that have to be there.
    moved: bytes read and written in a call.
    collectives: kind -> (how many, bytes) in a call.
    sent: bytes over the links in a call.
    compile_seconds: of the compiler, on the machine that plans.
    remat: what network.remat="auto" came to mean; None: it was not "auto".
  """

  images: int
  devices: int
  flops: float
  arguments: int
  temporaries: int
  peak: int
  moved: int
  collectives: dict[str, tuple[int, int]]
  sent: int
  compile_seconds: float
  remat: str | None = None

  def seconds(self, chip: Chip) -> dict[str, float]:
    """What each bound of the roofline allows for one call; the largest counts."""
    return {
      "arithmetic": self.flops * self.images / self.devices / chip.peak,
      "memory": self.moved / chip.bandwidth,
      "links": self.sent / chip.links,
    }

  def images_per_second(self, chip: Chip) -> float:
    """Over all devices, at the roofline."""
    return self.images / max(self.seconds(chip).values())


def compiled(function: Callable, arguments: tuple, images: int, mesh: Mesh, *, exact: bool = False) -> Program:
  """What `function`, jitted, does with arguments of these shapes and shardings.

  Args:
    images: that one call handles.
    exact: compile as a run would. Otherwise with the compiler's least effort, where there is a TPU's: 10 times faster,
      but it keeps nothing in the chip's fast memory, so that memory and traffic are upper bounds.

  Raises:
    TooLarge: if the compiler finds that it does not fit.
  """
  traced = function.trace(*arguments)
  lowered = traced.lower()
  least = mesh.devices.flat[0].platform == "tpu" and not exact
  began = time.perf_counter()
  program, needs = compile_lowered(lowered, {"exec_time_optimization_effort": -1.0} if least else None)
  seconds = time.perf_counter() - began
  moves = hlo.traffic(program.as_text())
  return Program(
    images=images,
    devices=mesh.size,
    flops=flops.count(traced.jaxpr) / images,
    **dataclasses.asdict(needs),
    moved=moves.moved,
    collectives=moves.collectives,
    sent=moves.sent,
    compile_seconds=seconds,
  )


def train_step(config: ConfigDict, on: list[jax.Device], *, exact: bool = False) -> Program:
  """The training step of `config`, as a run compiles it, on the devices `on`."""

  def measure(config: ConfigDict) -> Program:
    run = train.prepare(config, info=described(config), devices=on)
    return compiled(run.step, run.arguments(), config.train.batch_size, run.mesh, exact=exact)

  def measure_with(remat: str) -> tuple[Program, int]:
    program = measure(train.with_remat(config, remat))
    return dataclasses.replace(program, remat=remat), program.peak

  limit = memory_of(on[0])
  if limit is None or config.network.get("remat") != "auto":
    return measure(config)
  return least_remat(measure_with, limit)


def sampler(config: ConfigDict, on: list[jax.Device], per_device: int, *, exact: bool = False) -> Program:
  """The sampler of `config`, from keys to images, as `ddpm-jax sample` compiles it."""
  config, mesh = complete(config), layout.make_mesh(devices=on)
  batch = per_device * len(on)
  network, guide = _network(config, mesh), _guide(config, mesh)
  denoiser, walk = build.sampling(config, network, guide)
  keys = layout.shaped(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch)), layout.over_batch(mesh))

  def draw(keys, denoiser, walk, cond):
    x_T = PerImage(keys).initial(image_shape(config.data))
    return sample(keys, denoiser, walk, x_T, cond)[0]

  cond = conditions(config, batch, mesh)
  if config.sampling.guidance.kind == "classifier":
    cond |= labels(batch, mesh)
  whole = layout.shaped((denoiser, walk), layout.replicated(mesh))
  given = (keys, *whole, cond or None)
  return compiled(jax.jit(draw, out_shardings=layout.over_batch(mesh)), given, batch, mesh, exact=exact)


def parameters(config: ConfigDict) -> int:
  """Numbers that the network of `config` learns."""
  config = complete(config)
  return train.parameter_count(_params(config))


# ---------------------------------------------------------------- what fits

MOST_SAMPLED = 1024  # images per device at a time: more make no sampler faster


@dataclasses.dataclass(frozen=True)
class Fit:
  """A program with `per_device` images at a time on each device; `searched`: no larger power of two fits."""

  program: Program
  per_device: int
  searched: bool


def training(config: ConfigDict, on: list[jax.Device], *, search: bool = True, exact: bool = False) -> Fit:
  """The training step with the largest microbatches that fit, or as configured.

  With network.remat="auto" they are found for each policy, and the fastest policy is taken, by the roofline. A run with so
  many images at a time comes to the same, unless a policy that recomputes less fits there too.

  Raises:
    TooLarge: if not even one image per device fits.
  """
  if search and config.network.get("remat") == "auto" and memory_of(on[0]) is not None:
    return _fastest_remat(config, on, exact)

  def measure(per_device: int) -> Program:
    changed = config.copy_and_resolve_references()
    with changed.ignore_type():
      changed.train.per_device_batch = per_device
    return train_step(changed, on, exact=exact)

  local = max(1, config.train.batch_size // len(on))
  configured = min(local, config.train.per_device_batch or local)
  return _fit(measure, configured, local, on, search)


def sampling(config: ConfigDict, on: list[jax.Device], *, search: bool = True, exact: bool = False) -> Fit:
  """The sampler with the largest batch that fits, or as configured. Raises TooLarge like `training`."""
  measure = lambda per_device: sampler(config, on, per_device, exact=exact)
  return _fit(measure, -(-config.sampling.batch_size // len(on)), MOST_SAMPLED, on, search)


def _fastest_remat(config: ConfigDict, on: list[jax.Device], exact: bool) -> Fit:
  """Of what fits with each policy, the fastest by the roofline; on chips without published figures the first."""
  chip, fits = chip_of(on[0]), []
  for remat in REMAT:
    with contextlib.suppress(TooLarge):
      fit = training(train.with_remat(config, remat), on, exact=exact)
      fits.append(dataclasses.replace(fit, program=dataclasses.replace(fit.program, remat=remat)))
  if not fits:
    raise TooLarge("Not even one image per chip fits, whatever is recomputed.")
  return max(fits, key=lambda fit: fit.program.images_per_second(chip) if chip else 0)


def _fit(measure: Callable[[int], Program], configured: int, most: int, on: list[jax.Device], search: bool) -> Fit:
  memory = memory_of(on[0])
  if not search or memory is None:
    return Fit(measure(configured), configured, False)
  per_device, program = largest(measure, memory, most)
  return Fit(program, per_device, True)


def largest(measure: Callable[[int], Program], memory: int, most: int) -> tuple[int, Program]:
  """The largest power of two of images per device, up to `most`, whose program fits `memory` bytes; and the program.

  Memory grows about linearly with the batch: each program that fits predicts the next, at least twice as large, until one
  does not fit.

  Raises:
    TooLarge: if not even one image fits.
  """
  one = program = measure(1)
  if one.peak > memory:
    raise TooLarge(f"One image per chip needs {one.peak / 2**30:.1f} GiB of {memory / 2**30:.1f} GiB.")
  fits, guess = 1, min(2, most)
  while guess > fits:
    if (larger := _fitting(measure, guess, memory)) is not None:
      fits, program = guess, larger
      per_image = max((program.peak - one.peak) / (fits - 1), 1)
      guess = min(most, max(2 * fits, int(1 + (memory - one.peak) / per_image)))
    else:
      most = guess = guess - 1
    guess = 1 << (guess.bit_length() - 1)
  return fits, program


def _fitting(measure: Callable[[int], Program], images: int, memory: int) -> Program | None:
  with contextlib.suppress(TooLarge):
    program = measure(images)
    return program if program.peak <= memory else None
  return None


# ---------------------------------------------------------------- data and networks that are not there

# (pixels, channels, classes) of the data sets of our configs, for who plans before having them
KNOWN = {"digits": (8, 1, 10), "mnist": (28, 1, 10), "cifar10": (32, 3, 10)}
KNOWN |= {f"imagenet{size}_adm": (size, 3, 1000) for size in (64, 128, 256, 512)}


def described(config: ConfigDict) -> Info:
  """What the data of `config` are like, by their name and the config alone: they need not be there.

  Raises:
    UserError: if that does not say enough.
  """
  data = config.data
  size, channels, classes = KNOWN.get(data.name, (None, 3, None))
  size, channels, classes = data.image_size or size, data.channels or channels, data.num_classes or classes
  if size is None:
    raise UserError(
      f"How large the images of {data.name!r} are is not known here, and planning reads none: "
      "add --config.data.image_size=N."
    )
  if classes is None and "label" in build.conditions(config):
    raise UserError(f"How many classes {data.name!r} has is not known here: add --config.data.num_classes=N.")
  return Info(data.name, data.train_split, size, channels, classes)


def complete(config: ConfigDict) -> ConfigDict:
  """A copy with what `described` tells of its data."""
  config, info = config.copy_and_resolve_references(), described(config)
  with config.data.ignore_type():
    config.data.update(image_size=info.image_size, channels=info.channels, num_classes=info.num_classes)
  return config


def _params(config: ConfigDict) -> Any:
  data = config.data
  module = build.model(config, data.channels, data.num_classes)
  return jax.eval_shape(lambda: build.initial_params(module, jax.random.key(0), data.image_size, data.channels))


def _network(config: ConfigDict, mesh: Mesh) -> Any:
  module = build.model(config, config.data.channels, config.data.num_classes)
  return build.network(config, module, layout.shaped(_params(config), layout.replicated(mesh)))


def _guide(config: ConfigDict, mesh: Mesh) -> Classifier | Any | None:
  """The network that guides, in shapes; of the run sampling.guidance.model its config is read, nothing else."""
  section = config.sampling.guidance
  if section.kind not in ("classifier", "autoguidance"):
    return None
  if section.model is None:
    raise UserError(f"Guidance of the kind {section.kind!r} needs sampling.guidance.model, a run or config of the guide.")
  if os.path.isdir(section.model):
    guide = configs.from_dict(checkpoints.load_config(os.path.join(section.model, "checkpoints")))
  else:
    guide = configs.load(section.model)
  guide = complete(guide)
  build.check_guide(config, guide)
  return _network(guide, mesh)
