"""Batches by step: deterministic, resumable at any step, sharded by process, prefetched by Grain.

A training run reads *positions* 0, 1, 2, ... of an endless sequence; step k of global batch size B owns the
positions k B .. (k + 1) B - 1, and process p of n the p-th slice of them. Position i lies in epoch e = i // N, and

    Philox(key = [seed, e])  ->  N numbers to sort by (the order of the epoch), N draws (one for each position).

A draw decides everything random about its image: flip, crop, dequantization. So each batch is a pure function of
(seed, step), for every n and after every interruption. Only the raw output of the bit generator is used, which NumPy
promises never to change.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable

import numpy as np

from ddpm_jax.data import images as pixels
from ddpm_jax.data.sources import Source
from ddpm_jax.errors import UserError
from ddpm_jax.sizes import ImageSize, pair


@dataclasses.dataclass(frozen=True)
class Batches:
  """Batches with random access: `batches[step]`, `len(batches)`, `batches.iterate(step)`.

  A batch is a dict of arrays for this process, b = batch_size / processes images:
    image: float32 [b, H, W, C] in [-1, 1]; uint8 when raw.
    label: int32 [b]; -1 in a set without labels.
    low_res: float32 [b, h, w, C] in [-1, 1], the mean over blocks; with low_res_size only.
    mask: bool [b], False for padding; in evaluation only.
  """

  read: Callable[[np.ndarray], dict]  # positions -> batch
  steps: int
  batch_size: int
  process: int
  processes: int

  def __len__(self) -> int:
    return self.steps

  def __getitem__(self, step: int) -> dict:
    local = self.batch_size // self.processes
    start = range(self.steps)[step] * self.batch_size + self.process * local
    return self.read(np.arange(start, start + local))

  def iterate(self, step: int = 0, *, prefetch: int = 2):
    """A Grain iterator from `step` on, with get_state() and set_state(); `prefetch` batches are made ahead."""
    import grain  # 2 s

    # One thread: more of them only wait for each other, and large images have threads of their own.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
    iterator = iter(grain.MapDataset.source(self).to_iter_dataset(options))
    iterator.set_state({"next_index": step})
    return iterator


def train_batches(
  source: Source,
  batch_size: int,
  *,
  seed: int = 0,
  flip: bool = False,
  dequantize: bool = False,
  low_res_size: ImageSize | None = None,
  raw: bool = False,
  process: int = 0,
  processes: int = 1,
) -> Batches:
  """Endless batches of a data set, shuffled in each epoch; every image occurs once in an epoch.

  Args:
    batch_size: global batch size, over all processes.
    seed: for order, flips and crops.
    flip: mirror half of the images, left to right.
    dequantize: uniform noise within a pixel's level, x = (pixel + u) / 128 - 1 (DDIM's option).
    low_res_size: adds "low_res" of this size, N or (height, width), for networks that enlarge images.
    raw: uint8 images, a quarter of the bytes to send to an accelerator, where `images.to_float` converts them.
    process: which slice of each batch to make.
    processes: how many slices a batch has.
  """
  if raw and dequantize:
    raise UserError("Raw batches are uint8 and cannot be dequantized: leave out one of the two options.")
  _check(source, batch_size, process, processes, low_res_size, raw)
  if not 0 <= seed < 2**64:
    raise UserError(f"The seed of the data order must be from 0 to 2**64 - 1, not {seed}.")
  length = len(source)

  @functools.lru_cache(maxsize=2)
  def epoch(number: int) -> tuple[np.ndarray, np.ndarray]:
    bits = np.random.Philox(key=np.array([seed, number], np.uint64)).random_raw(2 * length)
    return bits[:length].argsort(kind="stable"), bits[length:]

  def read(positions: np.ndarray) -> dict:
    numbers, offsets = np.divmod(positions, length)
    index = np.empty(len(positions), np.int64)
    draws = np.empty(len(positions), np.uint64)
    for number in np.unique(numbers):
      here = numbers == number
      order, bits = epoch(int(number))
      index[here] = order[offsets[here]]
      draws[here] = bits[offsets[here]]
    image, label = source.gather(index, draws)
    if flip:
      mirrored = np.flatnonzero(draws & 1)
      image[mirrored] = image[mirrored, :, ::-1]
    if dequantize:
      image = (image + _uniform(draws, image.shape)) / np.float32(128) - 1
    elif not raw:
      image = pixels.to_float(image)
    return _batch(image, label, low_res_size)

  return Batches(read, sys.maxsize // batch_size, batch_size, process, processes)


def eval_batches(
  source: Source,
  batch_size: int,
  *,
  low_res_size: ImageSize | None = None,
  raw: bool = False,
  process: int = 0,
  processes: int = 1,
) -> Batches:
  """Every image once, in order. The last batch is filled up with repetitions of the last image, where `mask` is False.

  Arguments as in `train_batches`.
  """
  _check(source, batch_size, process, processes, low_res_size, raw)
  length = len(source)

  def read(positions: np.ndarray) -> dict:
    image, label = source.gather(positions.clip(max=length - 1))
    batch = _batch(image if raw else pixels.to_float(image), label, low_res_size)
    return batch | {"mask": positions < length}

  return Batches(read, -(-length // batch_size), batch_size, process, processes)


def _check(source: Source, batch_size: int, process: int, processes: int, low_res_size: ImageSize | None, raw: bool) -> None:
  if batch_size < 1 or batch_size % processes:
    raise UserError(f"Batch size {batch_size} cannot be shared evenly by {processes} processes: make it a multiple.")
  if not 0 <= process < processes:
    raise UserError(f"Process {process} must be from 0 to {processes - 1}.")
  if low_res_size and raw:
    raise UserError("Raw batches hold no low_res: leave out raw or low_res_size.")
  if low_res_size and any(large % small for large, small in zip(source.info.shape, pair(low_res_size), strict=False)):
    raise UserError(f"low_res_size {low_res_size} does not divide {source.info.image_size}: choose a divisor.")


def _batch(image: np.ndarray, label: np.ndarray, low_res_size: ImageSize | None) -> dict:
  batch = {"image": image, "label": label}
  return batch | {"low_res": pixels.area(image, low_res_size)} if low_res_size else batch


def _uniform(draws: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """float32 in [0, 1) of a shape [b, H, W, C], image k from draws[k] alone."""
  size = int(np.prod(shape[1:]))
  words = [np.random.Philox(key=np.array([draw, 1], np.uint64)).random_raw(-(-size // 2)) for draw in draws]
  halves = np.stack(words).view(np.uint32)[:, :size].reshape(shape)
  return (halves >> 8).astype(np.float32) * np.float32(2**-24)
