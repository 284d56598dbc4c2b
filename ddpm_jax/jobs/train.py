"""Training: from a config to a finished run in a working directory.

`prepare` builds and checks everything before the first step. `train` runs it, and continues an interrupted run.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build, data, fields, importable, sizes
from ddpm_jax import config as configs
from ddpm_jax.data import images as pixels
from ddpm_jax.devices import mesh as layout
from ddpm_jax.devices.chips import memory_of
from ddpm_jax.devices.memory import compile_lowered, least_remat
from ddpm_jax.errors import UserError
from ddpm_jax.files import atomic, lock, tables
from ddpm_jax.jobs import shapes
from ddpm_jax.jobs.phases import Phase
from ddpm_jax.jobs.trained import NotFinite, Trained, dataset, load
from ddpm_jax.training import checkpoints, loop, observers, optimizer, state, step, writers

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything in a training run that can be built and checked before it starts."""

  config: ConfigDict  # including the properties of the data
  source: data.Source | None  # None: planned without data
  module: Any
  mesh: jax.sharding.Mesh
  init: Callable[[], state.TrainState]
  step: step.Step

  def arguments(self) -> tuple[Any, dict]:
    """The shapes of the arguments of `step`."""
    state = jax.eval_shape(self.init)
    return layout.shaped(state, layout.of_state(state, self.mesh)), shapes.training_batch(self.config, self.mesh)


def prepare(config: ConfigDict, *, info: data.Info | None = None, devices: list[jax.Device] | None = None) -> Run:
  """Builds a run from its config.

  Args:
    info: a description of the data, when planning without it; None: the data set is opened.
    devices: the devices of the mesh; None: all.

  Raises:
    UserError: for any field of the config that cannot work.
  """
  if config.train.total_steps < 1:
    raise UserError("train.total_steps is required: set the number of training steps, at least 1.")
  fields.check(config)
  importable.trust(config)
  if config.train.label_dropout and config.train.class_conditional is False:
    raise UserError("train.label_dropout hides labels that the network does not get: set train.class_conditional=True.")
  config = config.copy_and_resolve_references()
  backbone = None
  if config.train.backbone is not None:
    backbone = load(config.train.backbone)
    config = build.on_backbone(config, backbone.config)
  build.check(config)
  source = dataset(config, config.data.train_split) if info is None else None
  if source is not None:
    _check_test_split(config)
  info = info or source.info
  if config.data.num_classes not in (None, info.num_classes):
    raise UserError(
      f"data.num_classes = {config.data.num_classes}, but {config.data.name} has {info.num_classes or 'no'} classes: leave "
      "it out."
    )
  with config.data.ignore_type():
    config.data.update(
      image_size=info.image_size, channels=info.channels, num_classes=info.num_classes, class_names=info.class_names
    )
  if config.train.class_conditional == "auto":
    with config.train.ignore_type():
      config.train.class_conditional = info.num_classes is not None
    config.train.label_dropout *= config.train.class_conditional
  module = build.model(config, info.channels, info.num_classes)
  module.check_size(*info.shape[:2])
  start = _starting_weights(config, module)
  mesh = layout.make_mesh(**config.mesh, devices=devices)
  recipe = dict(config.optimizer)
  rate = optimizer.schedule(
    recipe.pop("learning_rate"),
    config.train.total_steps,
    warmup_steps=recipe.pop("warmup_steps"),
    decay=recipe.pop("decay"),
  )
  adam = optimizer.make_optimizer(rate, **recipe)
  times = build.time_sampler(config)
  learns = backbone and build.is_of_head
  flat = learns is None and mesh.shape["fsdp"] == 1 and mesh.devices.flat[0].platform in ("gpu", "cuda")

  def init() -> state.TrainState:
    weights_key, run_key = jax.random.split(jax.random.key(config.seed))
    params = build.initial_params(module, weights_key, info.image_size, info.channels) if start is None else start
    if backbone:
      params = build.put_on(backbone.network.params, params)
    rates = tuple(config.ema.rates)
    averages = dict(ema_rates=rates, ema_widths=tuple(config.ema.widths))
    return state.create(run_key, params, adam, **averages, time_sampler=times.init(), learns=learns, flat=flat)

  train_step = step.make_train_step(
    build.loss(config),
    build.training_network(config, module),
    adam,
    times,
    mesh=mesh,
    accumulate=layout.accumulation(config.train.batch_size, mesh, config.train.per_device_batch),
    ema_warmup=config.ema.warmup,
    label_dropout=config.train.label_dropout,
    null_label=info.num_classes,
    learns=learns,
  )
  return Run(config, source, module, mesh, init, train_step)


def _check_test_split(config: ConfigDict) -> None:
  """Raises UserError if the configured test split does not exist. The default split may be missing."""
  split = config.data.test_split
  if split == fields.FIELDS["data.test_split"].default:
    return
  try:
    dataset(config, split)
  except UserError as error:
    raise UserError(f"data.test_split = {split!r} cannot be opened: {error}") from None


def _starting_weights(config: ConfigDict, module: Any) -> Any:
  """The slowest average of the parameters of the run train.init; None for random weights.

  Raises:
    UserError: if they do not fit this network. The message names the first difference.
  """
  if config.train.init is None:
    return None
  source = load(config.train.init)
  build.check_weights(config, module, source.network.params)
  for section in ("schedule", "prediction"):
    before = source.config[section].to_dict()
    now = config[section].to_dict()
    if before != now:
      log.warning("%s was trained with another %s: %s, not %s.", config.train.init, section, before, now)
  return source.network.params


def train(
  config: ConfigDict, workdir: str | pathlib.Path, *, wandb: bool = False, profile: bool = False
) -> state.TrainState:
  """Trains in `workdir` until config.train.total_steps; the same call continues a run that was interrupted.

  Args:
    wandb: also write metrics to Weights & Biases.
    profile: also write a profile of the steps between the first two rows of metrics to workdir/profile.

  Raises:
    UserError: for a config that cannot work, or one that differs from that of the run in `workdir`.
    loop.Preempted: after SIGTERM or Ctrl-C, with everything saved.
  """
  workdir = pathlib.Path(workdir)
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f"{workdir} is a file: choose another --workdir.")
  with lock.alone(workdir, "training", remedy="choose another --workdir"):
    return _train(config, workdir, wandb, profile)


def _train(config: ConfigDict, workdir: pathlib.Path, wandb: bool, profile: bool) -> state.TrainState:
  atomic.check(workdir / "metrics.jsonl")
  observers.check(wandb)
  with Phase("Opening the data and building the network"):
    run = prepare(config)
  _same_run(workdir, run.config)
  if run.config.network.get("remat") == "auto":
    with Phase("Choosing network.remat by the memory of the devices"):
      run = _with_least_remat(run)
  config = run.config
  log.info("%s", describe(run))
  batches = data.train_batches(
    run.source,
    config.train.batch_size,
    seed=config.seed,
    flip=config.data.flip,
    low_res_size=config.data.low_res_size,
    raw=config.data.low_res_size is None,
    process=jax.process_index(),
    processes=jax.process_count(),
  )
  named = ("image", *build.conditions(config))

  def feed(first: int) -> Iterator[dict]:
    return ({name: batch[name] for name in named} for batch in batches.iterate(first))

  compiling = Phase("Compiling the training step")

  def open_writer(after: int) -> writers.Many:
    compiling.end()
    with atomic.writing(workdir / "data.json") as temporary:
      temporary.write_text(json.dumps(describe_data(run.source), indent=1))
    every_writer = writers.open_all(str(workdir), config.train.total_steps, after)
    if wandb and jax.process_index() == 0:
      every_writer.writers.append(observers.WeightsAndBiases(workdir, config.to_dict()))
    if profile:
      every_writer.writers.append(observers.Profile(workdir / "profile"))
    return every_writer

  every = config.train.checkpoint_every
  keep_every = config.train.keep_every
  kept = checkpoints.Checkpoints(str(workdir / "checkpoints"), keep=config.train.keep, every=every, keep_every=keep_every)
  with contextlib.closing(kept):  # however the run ends, the checkpoint being written is completed
    compiling.begin()
    return loop.fit(
      run.init,
      run.step,
      feed,
      loop.Intervals(
        config.train.total_steps, every, config.train.log_every, config.train.preview_every, config.train.max_skipped
      ),
      mesh=run.mesh,
      checkpoints=kept,
      config=config.to_dict(),
      open_writer=open_writer,
      preview=None if build.is_classifier(config) else _preview(run),
    )


def describe(run: Run) -> str:
  """One line about a run: its data, network, devices and length."""
  info = run.source.info
  parameters = parameter_count(jax.eval_shape(run.init).params)
  return (
    f"{len(run.source):,} images of {info.name} {info.split}, {sizes.text(info.image_size)}x{info.channels}; "
    f"{parameters:,} parameters; {run.mesh.size} devices ({jax.default_backend()}); "
    f"{run.config.train.total_steps:,} steps of {run.config.train.batch_size} images"
  )


def describe_data(source: data.Source) -> dict[str, Any]:
  """A description of the training data for data.json: size, classes with their names, and the lines of the summary."""
  names = source.info.class_names
  return {
    "name": source.info.name,
    "split": source.info.split,
    "images": len(source),
    "image_size": source.info.image_size,
    "channels": source.info.channels,
    "class_names": None if names is None else list(names),
    "summary": list(source.summary),
  }


def with_remat(config: ConfigDict, remat: str) -> ConfigDict:
  """A copy with another network.remat."""
  config = config.copy_and_resolve_references()
  config.network.remat = remat
  return config


def _with_least_remat(run: Run) -> Run:
  """`run` with network.remat="auto" resolved by the memory of the devices; "none" on CPUs, where it is unknown."""
  limit = memory_of(jax.local_devices()[0])
  if limit is None or run.config.network.get("remat") != "auto":
    return run

  def measure(remat: str) -> tuple[Run, int]:
    candidate = prepare(with_remat(run.config, remat), info=run.source.info)
    _, needs = compile_lowered(candidate.step.lower(*candidate.arguments()))
    return candidate, needs.peak

  return dataclasses.replace(least_remat(measure, limit), source=run.source)


def _preview(run: Run) -> Callable[[state.TrainState], dict[str, np.ndarray]]:
  """Grids of samples by the raw and the averaged weights. Both are shown to tell a bad model from a slow average."""
  config = quick_sampling(run.config)
  count = config.train.preview_images
  low_res = config.data.low_res_size and pixels.area(run.source.gather(run.source.some(count))[0], config.data.low_res_size)

  def preview(now: state.TrainState) -> dict[str, np.ndarray]:
    weights = {"raw": now.params} | {f"ema_{rate}": params for rate, params in now.ema.items()}
    grids = {}
    for name, params in weights.items():
      trained = Trained(config, build.network(config, run.module, params), int(now.step), name)
      try:
        images = trained.sample(range(count), low_res=low_res)
      except NotFinite as error:  # training may still recover, so a failed preview does not end it
        log.warning("No preview of %s: %s", name, error)
        continue
      grids[name] = pixels.viewable(pixels.grid(images, scale=_zoom(min(run.source.info.shape[:2]))))
    return grids

  return preview


def quick_sampling(config: ConfigDict) -> ConfigDict:
  """A copy that samples in at most train.preview_steps steps with this network alone, and otherwise as configured.

  A sampler with more steps, or one whose moments are not measured yet, is replaced by DDIM.
  """
  config = config.copy_and_resolve_references()
  most = config.train.preview_steps
  if config.sampling.guidance.kind in ("classifier", "autoguidance"):  # these would load a second network
    with config.ignore_type():
      config.sampling.guidance.update(kind=None, form=None, model=None)
  if build.lacks_moments(config) or len(build.sampler(config).steps.left) > most:
    steps = min(most, build.schedule(config).T)
    return build.configure(config, [], build.Request(sampler="ddim", steps=steps))
  return config


def _same_run(workdir: pathlib.Path, config: ConfigDict) -> None:
  """Raises UserError if the run in `workdir` has other data or another network. Its length and optimizer may change."""
  directory = workdir / "checkpoints"
  if not checkpoints.steps_in(directory):
    return
  stored = configs.from_dict(checkpoints.load_config(str(directory))).to_dict()
  before, now = (tables.as_json(each) for each in (stored, config.to_dict()))
  for field in ("data_dir", "test_split", "corrupt"):
    before["data"][field] = now["data"][field] = None
  if None in (before["data"]["class_names"], now["data"]["class_names"]):  # older runs stored none
    before["data"]["class_names"] = now["data"]["class_names"] = None
  for each in (before, now):
    each["network"].pop("remat", None)  # recomputation does not change results
  for section in ("seed", "data", "schedule", "network", "prediction", "loss", "time_sampler", "ema"):
    if before[section] != now[section]:
      raise UserError(
        f"{workdir} holds a run with another {section}: {before[section]}, not {now[section]}. "
        "Continue it with its own config, or choose another --workdir."
      )


def _zoom(side: int) -> int:
  """The factor by which small images are enlarged for display."""
  return max(1, 64 // side)


def parameter_count(params: Any) -> int:
  """The number of parameters in a tree of arrays or shapes."""
  return sum(int(np.prod(jnp.shape(leaf))) for leaf in jax.tree.leaves(params))
