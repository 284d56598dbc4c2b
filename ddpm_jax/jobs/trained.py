"""A trained network, loaded from a checkpoint with its config, to sample from and to evaluate."""

import dataclasses
import difflib
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import build, data, importable, sizes
from ddpm_jax import config as configs
from ddpm_jax.convert import fetch, registry
from ddpm_jax.data import images as pixels
from ddpm_jax.devices import alone
from ddpm_jax.devices import mesh as layout
from ddpm_jax.diffusion import losses, ode_likelihood
from ddpm_jax.diffusion.guidance import Classifier
from ddpm_jax.diffusion.likelihood import BitsPerDim, bits_per_dim
from ddpm_jax.diffusion.noise import PerImage, image_keys, normal
from ddpm_jax.diffusion.prediction import Network
from ddpm_jax.diffusion.samplers import sample
from ddpm_jax.errors import UserError
from ddpm_jax.jobs import analytic
from ddpm_jax.jobs.progress import STEPS
from ddpm_jax.training import checkpoints

_OF_TRAINING = ("optimizer.", "time_sampler.", "ema.", "seed=", "train.total_steps=", "train.batch_size=", "train.init=")


def load(
  workdir: str | pathlib.Path,
  *,
  ema: str | None = None,
  step: int | None = None,
  overrides: Sequence[str] = (),
  trust: bool = False,
  **how: Any,
) -> "Trained":
  """Loads a trained or converted network from `workdir`. Everything that it needs comes from the checkpoint.

  Args:
    workdir: a directory, or the name of published weights (convert.registry), which are downloaded and converted.
    ema: which average: a rate such as "0.9999", or "raw". None: the slowest.
    step: None: the latest sound checkpoint.
    overrides: changes to its config, such as "sampling.eta=0".
    trust: import the code that its config names, if it names any; see importable.py.
    how: short forms of sampling fields, such as sampler="ddim", steps=50; see build.Request.

  Raises:
    UserError: if there is no sound checkpoint, or its weights do not fit the network of the (changed) config.
  """
  for assignment in overrides:
    if assignment.startswith(_OF_TRAINING):
      raise UserError(f"--config.{assignment} is about training and means nothing to a trained network: leave it out.")
  directory = pathlib.Path(workdir)
  if str(workdir) in registry.PUBLISHED and not checkpoints.steps_in(directory / "checkpoints"):
    directory = fetch.workdir(str(workdir))
  elif not directory.exists() and (near := difflib.get_close_matches(str(workdir), registry.PUBLISHED, n=1)):
    raise UserError(f"There is no directory {workdir}; did you mean the published weights {near[0]!r}?")
  if (directory / "checkpoints").is_dir():
    directory /= "checkpoints"
  sharding = layout.replicated(layout.make_mesh())
  weights = checkpoints.load_weights(str(directory), ema=ema, step=step, sharding=sharding)
  importable.trust([assignment.partition("=")[2] for assignment in overrides])
  if trust:
    importable.trust(weights.config)
  config = build.configure(configs.from_dict(weights.config), list(overrides), build.Request(**how))
  module = build.model(config, config.data.channels, config.data.num_classes)
  build.check_weights(config, module, weights.params)
  network = build.network(config, module, weights.params)
  held_out = weights.config["data"]["test_split"]
  return Trained(config, network, weights.step, weights.source, pathlib.Path(workdir), held_out)


def dataset(config: ConfigDict, split: str) -> data.Source:
  """The images of `config.data`."""
  section = dict(config.data)
  arguments = ("data_dir", "image_size", "channels", "crop", "labels", "corrupt", "background", "value_range", "holdout")
  return data.load(section["name"], split, class_names=section["class_names"], **{name: section[name] for name in arguments})


def check_low_res(about: ConfigDict, shape: tuple[int, ...] | None) -> None:
  """Raises UserError unless a network trained with the section `about` enlarges images of this shape [h,w,C]; None: none."""
  size = about.low_res_size
  if size is None and shape is not None:
    raise UserError("This network does not enlarge images: an --upsampler must be a run with data.low_res_size.")
  if size is not None and shape is None:
    raise UserError("This network enlarges small images: sample the stage before it, and name this one --upsampler.")
  if size is not None and shape != (*sizes.pair(size), about.channels):
    raise UserError(
      f"This network enlarges images of {sizes.text(size)} pixels and {about.channels} channels, not of shape {shape}."
    )


class NotFinite(UserError):
  """Samples or scores of a network contain infinities or NaN."""


@dataclasses.dataclass(frozen=True)
class Trained:
  """A network with its weights and the config that they were trained with."""

  config: ConfigDict
  network: Network | Classifier
  step: int
  weights: str  # which ones: "EMA 0.9999" or "raw parameters"
  workdir: pathlib.Path | None = None  # where it was loaded from, and where its measurements are kept
  held_out: str | None = None  # the test split when it was trained; None: that of the config

  @property
  def image_shape(self) -> tuple[int, int, int]:
    return sizes.image_shape(self.config.data)

  @functools.cached_property
  def guide(self) -> Network | Classifier | None:
    """The noisy classifier or the weaker network that sampling.guidance names, or None."""
    section = self.config.sampling.guidance
    if section.kind not in ("classifier", "autoguidance"):
      return None
    if section.model is None:
      raise UserError(f"Guidance of the kind {section.kind!r} needs sampling.guidance.model, the run of the guide.")
    other = load(section.model, ema=section.ema, step=section.step)
    build.check_guide(self.config, other.config)
    return other.network

  def dataset(self, split: str) -> data.Source:
    """A split of the data set that the network was trained on."""
    return dataset(self.config, split)

  def sample(
    self,
    seeds: Sequence[int],
    labels: Sequence[int] | None = None,
    *,
    low_res: np.ndarray | None = None,
    save: Callable | None = None,
    save_every: int = 1,
    progress: bool | Callable[[int, jax.Array], None] = False,
    **how: Any,
  ) -> Any:
    """Images uint8 [N,H,W,C]; with `save`, also what it saved. Image i depends only on seeds[i] and labels[i].

    One compilation serves every N: the last batch is padded, and the padding is removed.

    Args:
      seeds: one per image, 0 to 2^32 - 1.
      labels: one class per image. None: all classes in turn.
      low_res: [N,h,w,C] from 0 to 255, the images that a super-resolution network enlarges.
      save, save_every: see diffusion.samplers.sample.
      progress: show a bar, or call this function after each step; see diffusion.samplers.sample.
      how: such as sampler="ddim", steps=50, eta=0.5, guidance=2; see `using`.

    Raises:
      NotFinite: if samples contain infinities or NaN, which a cast to 8 bits would turn into some grey.
    """
    if how:
      return self.using(**how).sample(seeds, labels, low_res=low_res, save=save, save_every=save_every, progress=progress)
    self = self.with_moments()
    config = self.config.sampling
    build.check_draws(self.config)
    pixels.to_uint8(np.zeros(0), config.rounding)  # refused now, and not after hours of sampling
    denoiser, sampler = build.sampling(self.config, self.network, self.guide)
    labels = self.labels(seeds, labels)
    images = []
    saved = []
    told = STEPS if progress is True else progress or None
    for part in _batches(len(seeds), config.batch_size):
      keys = self._keys(np.asarray(seeds)[part])
      cond = self._cond(keys, *(None if a is None else a[part] for a in (labels, low_res)))
      x_T = PerImage(keys).initial(self.image_shape)
      draw = sample if len(part) > 1 and jax.device_count() > 1 else _sample_alone
      x, kept = draw(keys, denoiser, sampler, x_T, cond, save=save, save_every=save_every, progress=told)
      images.append(self.to_pixels(x, np.asarray(seeds)[part]))
      saved.append(layout.to_host(kept))
    images = np.concatenate(images)[: len(seeds)]
    if save is None:
      return images
    join = lambda *parts: np.concatenate(parts, 1)[:, : len(seeds)]
    return images, jax.tree.map(join, *saved)

  def to_pixels(self, x: jax.Array, seeds: Sequence[int]) -> np.ndarray:
    """Samples x [B,H,W,C] in [-1, 1], drawn from `seeds` [B], as uint8.

    Raises:
      NotFinite: if x contains infinities or NaN, which a cast to 8 bits would turn into some grey.
    """
    x = layout.to_host(x)
    self._check_finite(x, seeds, "samples", "seeds")
    return pixels.to_uint8(x, self.config.sampling.rounding)

  def _check_finite(self, values: np.ndarray, numbers: Sequence[int], what: str, named: str) -> None:
    """Raises NotFinite, with a remedy, unless all values [B,...] are finite. `numbers` [B] name their entries."""
    numbers = np.asarray(numbers)
    bad = np.unique(numbers[~np.isfinite(values).reshape(len(values), -1).all(1)])
    if not len(bad):
      return
    value = values[~np.isfinite(values)].flat[0]
    which = ", ".join(map(str, bad[:5])) + ", ..." * (len(bad) > 5)
    sound = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(self.network.params))
    remedy = (
      "the weights are finite, so lower sampling.guidance.scale, or take more steps or sampling.clip=x0"
      if sound
      else "the weights are not finite either, so take another checkpoint (--step) or average (--ema)"
    )
    raise NotFinite(f"{len(bad)} of {len(np.unique(numbers))} {what} are not finite ({value}; {named} {which}): {remedy}.")

  def bits_per_dim(self, source: data.Source, count: int | None = None, *, progress: bool = False) -> BitsPerDim:
    """The bound on `count` images (None: all; Source.some chooses them) as configured in config.evaluation; NumPy leaves."""
    steps, kernel = build.bound(self.config)
    denoiser = build.denoiser(self.config, self.network, "evaluation")
    chosen = source.some(count)
    bounds = []
    for part in _batches(len(chosen), self.config.evaluation.batch_size):
      numbers = chosen[part]
      keys = self._keys(numbers)
      x_0, cond = self.images(source, numbers)
      bounds.append(
        layout.to_host(bits_per_dim(keys, denoiser, kernel, steps, x_0, cond, progress=STEPS if progress else None))
      )
      self._check_finite(np.asarray(bounds[-1].total), numbers, "bounds", "test images")
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(chosen)], *bounds)

  def ode_bits_per_dim(self, source: data.Source, count: int | None = None) -> ode_likelihood.OdeBits:
    """Bits/dim of `count` images (see bits_per_dim) under the ODE of a network of the schedule vp_sde; NumPy leaves."""
    sde = build.sde(self.config)
    chosen = source.some(count)
    parts = []
    for part in _batches(len(chosen), self.config.evaluation.batch_size):
      numbers = chosen[part]
      x_0, cond = self.images(source, numbers)
      parts.append(layout.to_host(ode_likelihood.ode_bits_per_dim(self._keys(numbers), self.network, sde, x_0, cond)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(chosen)], *parts)

  def images(self, source: data.Source, indices: np.ndarray) -> tuple[jax.Array, dict | None]:
    """(x_0 [B,H,W,C] in [-1, 1], cond) of these images, split over the devices."""
    image, label = source.gather(indices)
    low_res = self.config.data.low_res_size and pixels.area(image, self.config.data.low_res_size)
    cond = self._cond(self._keys(indices), label if self._takes_labels else None, low_res)
    return _put(pixels.to_float(image)), cond

  def using(self, *overrides: str, **how: Any) -> "Trained":
    """The same network with other sampling settings: `using(sampler="dpm++2m", steps=15)`, `using("sampling.clip=none")`.

    Args:
      overrides: assignments to fields of the config; they win over `how`.
      how: fields of build.Request.
    """
    config = build.configure(self.config.copy_and_resolve_references(), overrides, build.Request(**how))
    return dataclasses.replace(self, config=config)

  def with_moments(self) -> "Trained":
    """The same network with the moments that its sampler needs. They are measured now if its directory holds none."""
    if self.workdir is None or not build.lacks_moments(self.config):
      return self
    return self.changed(sampling=dict(moments=str(analytic.own_moments(self))))

  def changed(self, **sections: dict) -> "Trained":
    """The same network with these config fields set as given: `changed(sampling=dict(eta=0.0))`."""
    config = self.config.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
      config.update(sections)
    return dataclasses.replace(self, config=config)

  def accuracy(self, source: data.Source, count: int | None = None) -> dict[str, float]:
    """Accuracy of a noisy classifier: means of the parts of its loss on `count` images (see bits_per_dim), one level each.

    Levels are spread evenly. Names that end in _q0 (the least noisy quarter of the levels) to _q3 are means over a quarter.
    """
    loss = losses.NoisyClassifier(build.chain(self.config))
    T = build.schedule(self.config).T
    parts_of = jax.jit(lambda network, *inputs: loss(inputs[0], network, *inputs[1:])[1])
    chosen = source.some(count)
    found = []
    count = len(chosen)
    n = (1 + np.random.default_rng(0).permutation(count) * T // count).astype(np.int32)
    for part in _batches(count, self.config.evaluation.batch_size):
      image, label = source.gather(chosen[part])
      inputs = (_put(pixels.to_float(image)), _put(n[part]), {"label": _put(label)})
      found.append(layout.to_host(parts_of(self.network, self._keys(chosen[part]), *inputs)))
    means = {}
    for name in ("cross_entropy", "top1", "top5"):
      values = np.concatenate([parts[name] for parts in found])[:count]
      means[name] = float(values.mean())
      means |= {f"{name}_q{q}": float(values[4 * (n - 1) // T == q].mean()) for q in range(4)}
    return means

  def labels(self, seeds: Sequence[int], labels: Sequence[int] | None = None) -> np.ndarray | None:
    """The label of each image, int [N]: `labels`, or all classes in turn. None if neither network nor guide takes labels."""
    if not self._takes_labels:
      if labels is not None:
        raise UserError(
          "This network is unconditional and takes no labels: guide it with a classifier (sampling.guidance), or train it "
          "with train.class_conditional=True."
        )
      return None
    classes = self.config.data.num_classes
    labels = np.arange(len(seeds)) % classes if labels is None else np.asarray(labels)
    if len(labels) != len(seeds):
      raise UserError(f"There must be one label per seed, {len(seeds)}, not {len(labels)}.")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
      raise UserError(f"Class {wrong[0]} does not exist: {self.config.data.name} has classes 0 to {classes - 1}.")
    return labels

  @property
  def _takes_labels(self) -> bool:
    """Whether the network or its guide takes labels."""
    return self.config.train.class_conditional or self.config.sampling.guidance.kind == "classifier"

  def _keys(self, seeds: np.ndarray) -> jax.Array:
    """One key per image [B]. Each stage of a cascade uses different keys, since it sees the noise of the previous stage."""
    keys = jax.jit(image_keys)(_put(checked_seeds(seeds)))
    if self.config.data.low_res_size is None:
      return keys
    height, width = sizes.pair(self.config.data.image_size)
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, height)
    return keys if height == width else jax.vmap(jax.random.fold_in, (0, None))(keys, width)

  def _cond(self, keys: jax.Array, labels: np.ndarray | None = None, low_res: np.ndarray | None = None) -> dict | None:
    """The condition of the network, as in training."""
    cond = {}
    size = self.config.data.low_res_size
    check_low_res(self.config.data, None if low_res is None else low_res.shape[1:])
    if size is not None:
      noise = normal(keys, low_res.shape[1:], build.schedule(self.config).T + 1)  # a stream beyond those of the levels
      cond["low_res"] = _put(pixels.to_float(low_res)) + self.config.train.low_res_noise * noise
    if labels is not None:
      cond["label"] = _put(labels.astype(np.int32))
    return cond or None


def checked_seeds(seeds: Sequence[int]) -> np.ndarray:
  """Seeds as uint32 [N]. Raises UserError for a seed outside that range, which would draw the image of another seed."""
  wrong = [seed for seed in seeds if not 0 <= seed < 2**32]
  if wrong:
    raise UserError(f"Seed {wrong[0]} is not allowed: seeds must be between 0 and {2**32 - 1}.")
  return np.asarray(seeds, np.uint32)


_sample_alone = alone.jitted(sample, static_argnames=("save", "save_every", "progress"))


def _put(array: np.ndarray) -> jax.Array:
  return layout.put_whole(array, layout.make_mesh())


def _batches(count: int, size: int) -> Iterator[np.ndarray]:
  """Indices 0 ... count - 1 in parts of equal size. The last part is padded with the last index.

  All devices share each part, unless there is only one image.
  """
  if size < 1:
    raise UserError(f"batch_size = {size} must be at least 1.")
  devices = jax.device_count() if count > 1 or jax.process_count() > 1 else 1
  size = -(-min(size, count) // devices) * devices
  for start in range(0, count, size):
    yield np.minimum(np.arange(start, start + size), count - 1)
