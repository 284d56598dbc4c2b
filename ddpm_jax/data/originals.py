"""The files of published data sets, as records with the names that TFDS gives them."""

import dataclasses
import io
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ddpm_jax.data.datasets import open_files
from ddpm_jax.data.image_files import FileDataset
from ddpm_jax.data.sources import NO_LABEL, Records
from ddpm_jax.errors import UserError
from ddpm_jax.files import archives, idx, limits, pickles, tables


@dataclasses.dataclass(frozen=True)
class Part:
  """One split: `records[numbers[k]]` is called ids[k]; images are sorted by the hash of keys[k]."""

  records: Records
  numbers: Sequence[int]
  ids: Sequence[str]
  keys: Sequence[str]


def folder(path: pathlib.Path, labels: str = "auto") -> dict[str, Part]:
  """A folder or zip of images, or Parquet files, with all splits."""
  parts = {}
  for split, records in open_files(path, labels).splits().items():
    parts[split] = Part(records, range(len(records)), records.paths, records.paths)
  return parts


def mnist(path: pathlib.Path, labels: str = "auto") -> dict[str, Part]:
  """A folder with LeCun's four idx files, compressed or not."""

  def read(name: str, axes: int) -> np.ndarray:
    files = [path / (name + suffix) for suffix in ("", ".gz")] + [path / (name.replace("-idx", ".idx"))]
    file = next((file for file in files if file.exists()), None)
    if file is None:
      raise UserError(f"{path} holds no {name}(.gz): give the folder with the four idx files of MNIST.")
    return idx.read(file, axes)

  parts = {}
  for split, prefix in (("train", "train"), ("test", "t10k")):
    images = read(f"{prefix}-images-idx3-ubyte", 3)
    classes = read(f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(classes) or images.shape[1:] != (28, 28):
      raise UserError(f"{path} has {images.shape} images and {len(classes)} labels for {split}: download MNIST again.")
    parts[split] = _arrays(split, images[..., None], classes)
  return parts


def cifar10(path: pathlib.Path, labels: str = "auto") -> dict[str, Part]:
  """Krizhevsky's python version: cifar-10-python.tar.gz, or the folder of its six pickles."""

  splits = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
  files = _members(path, splits["train"] + splits["test"])
  parts = {}
  for split, names in splits.items():
    batches = [_cifar_batch(files[name], f"{name} of {path}") for name in names]
    rows, classes = (np.concatenate(each) for each in zip(*batches, strict=True))
    parts[split] = _arrays(split, rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), classes)
  return parts


def _cifar_batch(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
  """(pixels uint8 [N, 3072], labels [N]) of one of CIFAR-10's pickles."""
  with limits.damaged(name, "file of CIFAR-10", "download it again"):
    try:
      batch = pickles.Unpickler(pickles.Bounded.of(data), pickles.NUMPY, encoding="bytes").load()
    except pickles.Forbidden as error:
      raise UserError(f"{limits.shown(name)} names {error}, which could run code: download CIFAR-10 again.") from None
    pixels = np.asarray(batch[b"data"])
    labels = np.asarray(batch[b"labels"])
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3072) or labels.dtype.kind not in "iu":
      raise ValueError(f"it has {pixels.dtype} {list(pixels.shape)} pixels and {len(labels)} labels")
    return pixels, labels


def celeba(path: pathlib.Path, labels: str = "auto") -> dict[str, Part]:
  """A folder with img_align_celeba (a folder or .zip) and list_eval_partition.txt (or .csv)."""
  images = next((path / name for name in ("img_align_celeba", "img_align_celeba.zip") if (path / name).exists()), None)
  table = next(iter(sorted(path.glob("list_eval_partition.*"))), None)
  if images is None or table is None:
    raise UserError(f"{path} holds no img_align_celeba(.zip) or no list_eval_partition.txt: give CelebA's folder.")
  lines = [line.replace(",", " ").split() for line in tables.read_text(table).splitlines()]
  partition = {line[0]: line[1] for line in lines if len(line) == 2}
  records = FileDataset(images, "none").split("all")
  parts = {}
  for split, code in (("train", "0"), ("validation", "1"), ("test", "2")):
    names = [image.rpartition("/")[2] for image in records.paths]
    numbers = [number for number, name in enumerate(names) if partition.get(name) == code]
    ids = [names[number] for number in numbers]
    parts[split] = Part(records, numbers, ids, ids)
  return parts


def lsun(path: pathlib.Path, labels: str = "auto") -> dict[str, Part]:
  """An LSUN lmdb (a folder with data.mdb): "train"; or a folder with ..._train_lmdb and perhaps ..._val_lmdb."""
  parts = {}
  for split in ("train", "val"):
    here = split == "train" and (path / "data.mdb").exists()
    for found in [path] if here else path.glob(f"*_{split}_lmdb"):
      records = LmdbRecords(found)
      parts[split] = Part(records, range(len(records)), records.keys, records.keys)
  if "train" not in parts:
    raise UserError(f"{path} holds no data.mdb and no *_train_lmdb: unpack LSUN's zip and give that folder.")
  return parts


class LmdbRecords:
  """The values of an lmdb, by number, without labels. Needs the package lmdb."""

  shape = (None, None, None)
  num_classes = None
  class_names = None

  def __init__(self, path: pathlib.Path):
    try:
      import lmdb
    except ImportError:
      raise UserError("Reading LSUN needs the package lmdb: pip install 'ddpm_jax[prepare]'.") from None
    try:
      self._lmdb = lmdb.open(str(path), readonly=True, lock=False, readahead=False, max_spare_txns=64)
      with self._lmdb.begin() as transaction:
        self._keys = list(transaction.cursor().iternext(values=False))
    except lmdb.Error as error:
      raise UserError(f"{path} cannot be read as an lmdb ({error}): unpack LSUN's zip again.") from None
    self._path = path
    self.keys = [key.decode() for key in self._keys]

  def __len__(self) -> int:
    return len(self._keys)

  def __getitem__(self, number: int) -> tuple[bytes, int]:
    with self._lmdb.begin() as transaction:
      return transaction.get(self._keys[number]), NO_LABEL

  def name(self, number: int) -> str:
    return f"{self.keys[number]} in {self._path}"


class _ArrayRecords:
  """Arrays of pixels, as PNGs."""

  def __init__(self, images: np.ndarray, labels: np.ndarray, num_classes: int):
    self._images = images
    self._labels = labels
    self.shape = images.shape[1:]
    self.num_classes = num_classes
    self.class_names = None

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, number: int) -> tuple[bytes, int]:
    return encode_png(self._images[number]), int(self._labels[number])

  def name(self, number: int) -> str:
    return f"image {number}"


def encode_png(image: np.ndarray) -> bytes:
  """uint8 [H, W, 1 to 4] as the bytes of a PNG; the mode follows from the channels."""
  buffer = io.BytesIO()
  picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else np.ascontiguousarray(image))
  picture.save(buffer, "PNG", compress_level=4)  # photographs: 1 % larger than 6, in 60 % of the time
  return buffer.getvalue()


def _arrays(split: str, images: np.ndarray, classes: np.ndarray) -> Part:
  if not len(classes) or not 0 <= classes.min() <= classes.max() < 10:
    raise UserError(f"The labels of {split} are not all between 0 and 9: download the data set again.")
  count = range(len(images))
  ids = [f"{split}_{index:05}" for index in count]
  return Part(_ArrayRecords(images, classes, 10), count, ids, [str(index) for index in count])  # TFDS's keys


def _members(path: pathlib.Path, names: list[str]) -> dict[str, bytes]:
  """Files of cifar-10-batches-py, in a tar or a folder."""
  if path.is_file():
    found = archives.tar_members(path, names)
  else:
    inner = path / "cifar-10-batches-py"
    places = {name: (inner if inner.is_dir() else path) / name for name in names}
    found = {name: limits.read_bytes(place, archives.MEMBER) for name, place in places.items() if place.exists()}
  if missing := [name for name in names if name not in found]:
    raise UserError(f"{path} does not hold {', '.join(missing)}: give cifar-10-python.tar.gz or its folder.")
  return found
