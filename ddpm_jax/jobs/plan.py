"""Plans a run: memory, traffic and the shortest possible time, for devices that you need not have.

The real training step and the real sampler are compiled ahead of time for a TPU slice or for NVIDIA GPUs
(devices/absent.py), or for the devices of this machine. State, batch and keys are shapes with shardings: nothing is
allocated and nothing runs. The compiled program gives memory, traffic, collectives and kernels (hlo.py, kernels.py), the
traced program gives the arithmetic (flops.py). The published figures of the chip then bound the time:

    seconds per call = max(operations / peak,  bytes moved / HBM bandwidth,  bytes sent / link bandwidth)   (roofline)
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ddpm_jax import build
from ddpm_jax import config as configs
from ddpm_jax.data.sources import Info
from ddpm_jax.devices import absent, flops, hlo
from ddpm_jax.devices import mesh as layout
from ddpm_jax.devices.chips import Chip, chip_of_all, memory_of
from ddpm_jax.devices.kernels import Summary, summary
from ddpm_jax.devices.memory import TooLarge, compile_lowered, least_remat
from ddpm_jax.diffusion.guidance import Classifier
from ddpm_jax.diffusion.noise import PerImage
from ddpm_jax.diffusion.samplers import sample
from ddpm_jax.errors import UserError
from ddpm_jax.jobs import train
from ddpm_jax.jobs.shapes import conditions, labels
from ddpm_jax.models.kernels import target
from ddpm_jax.models.recompute import REMAT
from ddpm_jax.sizes import image_shape
from ddpm_jax.training import checkpoints

# ---------------------------------------------------------------- programs


def devices(topology: str | None) -> list[jax.Device]:
  """The devices of a topology (see absent.devices); None: those of this machine."""
  return jax.devices() if topology is None else absent.devices(topology)


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program. Bytes are per device.

  Attributes:
    images: images per call, over all devices.
    devices: number of devices.
    flops: operations per image, including what remat repeats.
    arguments: bytes of arguments and results; a donated argument and its result count once.
    temporaries: bytes of temporary buffers.
    peak: bytes needed in total.
    moved: bytes read and written per call.
    collectives: kind -> (how many, bytes) per call.
    sent: bytes over the links per call.
    compile_seconds: time to compile on the planning machine.
    remat: the policy that network.remat="auto" chose; None if it was not "auto".
    kernels: of GPU programs, their kernels.
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
  kernels: Summary | None = None

  def seconds(self, chip: Chip) -> dict[str, float]:
    """Seconds per call by each bound of the roofline; the largest counts."""
    return {
      "arithmetic": self.flops * self.images / self.devices / chip.peak,
      "memory": self.moved / chip.bandwidth,
      "links": self.sent / chip.links,
    }

  def images_per_second(self, chip: Chip) -> float:
    """Images per second of all devices at the roofline."""
    return self.images / max(self.seconds(chip).values())


def compiled(function: jax.stages.Wrapped, arguments: tuple, images: int, mesh: Mesh, *, exact: bool = False) -> Program:
  """Compiles `function`, jitted, for arguments of these shapes and shardings.

  Args:
    function: a function of jax.jit.
    arguments: its arguments.
    images: images per call.
    mesh: the devices.
    exact: compile as a run would. Otherwise the TPU's compiler uses its least effort: 10 times faster, but nothing stays in
      the chip's fast memory, so that memory and traffic are upper bounds.

  Raises:
    TooLarge: if the compiler reports that it does not fit.
  """
  device = mesh.devices.flat[0]
  with target.compiling_for(device):
    traced = function.trace(*arguments)
    lowered = traced.lower()
  least = device.platform == "tpu" and not exact
  began = time.perf_counter()
  program, needs = compile_lowered(lowered, {"exec_time_optimization_effort": -1.0} if least else None)
  seconds = time.perf_counter() - began
  text = program.as_text()
  moves = hlo.traffic(text)
  return Program(
    images=images,
    devices=mesh.size,
    flops=flops.count(traced.jaxpr) / images,
    **dataclasses.asdict(needs),
    moved=moves.moved,
    collectives=moves.collectives,
    sent=moves.sent,
    compile_seconds=seconds,
    kernels=summary(text) if device.platform in ("gpu", "cuda") else None,
  )


def train_step(config: ConfigDict, on: list[jax.Device], *, exact: bool = False) -> Program:
  """The training step of `config` as a run compiles it for the devices `on`."""

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
  config = complete(config)
  mesh = layout.make_mesh(devices=on)
  batch = per_device * len(on)
  network = _network(config, mesh)
  guide = _guide(config, mesh)
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
  """The number of parameters of the network of `config`."""
  config = complete(config)
  return train.parameter_count(_params(config))


# ---------------------------------------------------------------- the largest batch that fits

MOST_SAMPLED = 1024  # images per device at a time; more do not make a sampler faster


@dataclasses.dataclass(frozen=True)
class Fit:
  """A program with `per_device` images at a time on each device. `searched`: no larger power of two fits."""

  program: Program
  per_device: int
  searched: bool


def training(config: ConfigDict, on: list[jax.Device], *, search: bool = True, exact: bool = False) -> Fit:
  """The training step with the largest microbatches that fit, or as configured.

  With network.remat="auto" this is done for each policy, and the policy that is fastest by the roofline is taken. A run with
  that many images at a time chooses the same policy, unless one that recomputes less fits too.

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
  """The sampler with the largest batch that fits, or as configured. Raises TooLarge as `training` does."""
  measure = lambda per_device: sampler(config, on, per_device, exact=exact)
  return _fit(measure, -(-config.sampling.batch_size // len(on)), MOST_SAMPLED, on, search)


def _fastest_remat(config: ConfigDict, on: list[jax.Device], exact: bool) -> Fit:
  """The policy that is fastest by the roofline, of those that fit; without published figures the first that fits."""
  chip = chip_of_all(on)
  fits = []
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
  fits = 1
  guess = min(2, most)
  while guess > fits:
    if (larger := _fitting(measure, guess, memory)) is not None:
      fits = guess
      program = larger
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


# ---------------------------------------------------------------- data and networks that need not exist

# (pixels, channels, classes) of the data sets of our configs, for planning without the data
KNOWN = {"digits": (8, 1, 10), "mnist": (28, 1, 10), "cifar10": (32, 3, 10)}
KNOWN |= {f"imagenet{size}_adm": (size, 3, 1000) for size in (64, 128, 256, 512)}


def described(config: ConfigDict) -> Info:
  """The properties of the data of `config`, from its name and the config. The data need not exist.

  Raises:
    UserError: if these do not define image size and classes.
  """
  data = config.data
  size, channels, classes = KNOWN.get(data.name, (None, 3, None))
  size = data.image_size or size
  channels = data.channels or channels
  classes = data.num_classes or classes
  if size is None:
    raise UserError(
      f"The image size of {data.name!r} is unknown, and planning reads no data: add --config.data.image_size=N."
    )
  if classes is None and "label" in build.conditions(config):
    raise UserError(f"The number of classes of {data.name!r} is unknown: add --config.data.num_classes=N.")
  return Info(data.name, data.train_split, size, channels, classes)


def complete(config: ConfigDict) -> ConfigDict:
  """A copy of the config with image size, channels and classes of its data filled in."""
  config = config.copy_and_resolve_references()
  info = described(config)
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
  """The guiding network, in shapes. Of the run sampling.guidance.model only the config is read."""
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
