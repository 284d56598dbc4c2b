"""Data sets from the files that users hold to array_record that TFDS and `load` read, without TensorFlow.

    <data_dir>/<name>/<version>/<name>-<split>.array_record-00000-of-00012 ...    PNGs in tf.Examples
                                features.json, dataset_info.json                  TFDS's own; written last
                                manifest.json                                     counts and hashes of every shard

Records stand in TFDS's order, by the MD5 of split and key: a part such as "train[:10%]" is a random sample. Each shard
is written under another name and entered in the manifest when it is whole, so that running again after an interruption
continues; running again afterwards verifies every shard and makes anew what is damaged.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import importlib
import json
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL

from ddpm_jax import __version__
from ddpm_jax.data import originals
from ddpm_jax.data.datasets import check_options, data_root, load, summarize, wanted_shape
from ddpm_jax.data.sources import CorruptImage, Decoder, Encoded, Info, Records, Source
from ddpm_jax.errors import UserError
from ddpm_jax.files import lock, tables
from ddpm_jax.files.atomic import writing
from ddpm_jax.sizes import ImageSize, pair

log = logging.getLogger(__name__)

SHARD_IMAGES = 5_000  # a random read takes 15 us in a shard of 5,000, 200 us in one of 60,000
MAX_SHARDS = 128  # each holds a file open


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a published data set is made. `pixels` is the SHA-256 of all its pixels by split, where it is known."""

  read: Callable[[pathlib.Path, str], dict[str, originals.Part]]
  image_size: int
  channels: int = 3
  crop: str = "adm"
  version: str = "1.0.0"
  pixels: dict[str, str] = dataclasses.field(default_factory=dict)


RECIPES = {
  "mnist": Recipe(
    originals.mnist,
    28,
    channels=1,
    version="3.0.1",
    pixels={
      "train": "59edd5ea35c0062957306cacba8ae47e71e2c56261f4ca10230aacc14943dd3b",
      "test": "a85d8dffc6063fb89dcbc2122651701e7bbc18837f940fc9d76df48c224558ca",
    },
  ),
  "cifar10": Recipe(
    originals.cifar10,
    32,
    version="3.0.2",
    pixels={
      "train": "f18582ecd1373bff9c1d140fab5216a27f8a1f6b477e7169deb6e4ed860e0302",
      "test": "82afa4f4f8a69075def88a286829b9a6eaadcf501af77cb9bf832a7b041b9fd1",
    },
  ),
  "celeba64_ddim": Recipe(originals.celeba, 64, crop="celeba"),
  "celeba_hq256": Recipe(originals.folder, 256),
  **{f"lsun_{category}256": Recipe(originals.lsun, 256, crop="lsun") for category in ("bedroom", "church", "cat", "horse")},
  **{f"imagenet{size}_adm": Recipe(originals.folder, size) for size in (64, 128, 256, 512)},
}


def prepare(
  name: str,
  path: str | os.PathLike,
  *,
  data_dir: str | os.PathLike | None = None,
  image_size: ImageSize | None = None,
  channels: int | None = None,
  crop: str = "adm",
  labels: str = "auto",
  corrupt: str = "error",
  background: str = "white",
  value_range: tuple[float, float] | None = None,
  threads: int | None = None,
) -> pathlib.Path:
  """Writes a data set under `data_dir` once, so that `load(name)` finds it, and returns its folder.

  Args:
    name: a key of RECIPES, which then knows size and crop; or a new name of lower-case letters, digits and _,
      for a folder or zip of images of one's own.
    path: the files as they were published, see `originals`.
    data_dir: default as in `load`.
    image_size: as in `load`; for new names only, as are channels and crop.
    channels: 1 to 4.
    crop: how images are fitted.
    labels: as in `load`.
    corrupt: as in `load`.
    background: as in `load`.
    value_range: as in `load`.
    threads: how many shards are written at once; default: one per core, at most 16.

  Raises:
    UserError: for anything that is wrong with the files or the arguments. Finished shards stay, and are kept next time.
  """
  path = pathlib.Path(path).expanduser()
  if not path.exists():
    raise UserError(f"There is no file or folder {path}: check the path.")
  if not name.isidentifier() or name != name.lower() or name == "digits":
    raise UserError(f"{name!r} is not a name for a data set: use lower-case letters, digits and _ (not 'digits').")
  image_size = check_options(image_size, channels, crop, corrupt, background, value_range)
  if crop == "random":
    raise UserError("A data set cannot be prepared with crop 'random': use adm, lsun, ddim or celeba.")
  recipe = RECIPES.get(name)
  if recipe and (image_size, channels, crop) != (None, None, "adm"):
    raise UserError(f"{name} has an image size, channels and crop of its own: leave yours out, or take another name.")
  parts = (recipe.read if recipe else originals.folder)(path, labels)
  first = parts.get("train") or next(iter(parts.values()))
  if recipe:
    decoder = Decoder(recipe.image_size, recipe.channels, recipe.crop, background)
  else:
    size, channels, _ = wanted_shape(name, first.records, image_size, channels)
    decoder = Decoder(size, channels, crop, background, value_range)
  if decoder.channels > 4:
    raise UserError(f"A prepared data set holds PNGs of 1 to 4 channels, not {decoder.channels}: train on the folder.")
  for split, part in parts.items():
    summarize(part.records, _info(name, split, part, decoder), decoder.crop or crop, background)

  root = data_root(data_dir)
  folder = root / name / (recipe.version if recipe else "1.0.0")
  with lock.alone(folder, f"preparing {name}", remedy="choose another data_dir"):
    manifest = _Manifest(folder, decoder, path.name)
    shards = {split: _plan(name, split, part, decoder) for split, part in parts.items()}
    started = time.monotonic()
    importlib.import_module("tensorflow_datasets.proto")  # TFDS replaces the import of all threads meanwhile
    with concurrent.futures.ThreadPoolExecutor(threads or min(16, os.cpu_count() or 1)) as pool:
      stop = threading.Event()
      work = [pool.submit(_make, manifest, shard, corrupt, stop) for split in shards.values() for shard in split]
      try:
        for done, future in enumerate(concurrent.futures.as_completed(work), 1):
          future.result()
          log.info("%s: %d of %d shards, %.0f s", name, done, len(work), time.monotonic() - started)
      except BaseException:
        stop.set()
        pool.shutdown(cancel_futures=True)
        raise
    _finish(name, folder, manifest, shards, decoder, first.records)
    for split, expected in recipe.pixels.items() if recipe else ():
      images = load(name, split, data_dir=root).images  # type: ignore[attr-defined]  # small ones are Arrays
      if hashlib.sha256(images).hexdigest() == expected:
        log.info("%s %s: pixel by pixel what was published", name, split)
      else:
        log.warning("%s %s: these pixels are not what was published; compare the check sum of your file", name, split)
    return folder


def _info(name: str, split: str, part: originals.Part, decoder: Decoder) -> Info:
  records = part.records
  return Info(name, split, decoder.image_size, decoder.channels, records.num_classes, class_names=records.class_names)


@dataclasses.dataclass(frozen=True)
class _Shard:
  """One file in the making: images `source[k]` called ids[k]; `plan` is a hash of what it is made of."""

  file: str
  source: Source
  ids: list[str]
  plan: str


def tfds_order(split: str, keys: Sequence[str]) -> np.ndarray:
  """The order in which TFDS writes a split: by the MD5 of its name and the key."""
  return np.array(sorted(range(len(keys)), key=lambda k: hashlib.md5((split + keys[k]).encode()).digest()), int)


def _plan(name: str, split: str, part: originals.Part, decoder: Decoder) -> list[_Shard]:
  """The shards of a split, its images in TFDS's order."""
  order = tfds_order(split, part.keys)
  if not len(order):
    raise UserError(f"There are no images for the split {split!r} of {name}: give the whole data set.")
  pieces = np.array_split(order, min(MAX_SHARDS, -(-len(order) // SHARD_IMAGES)))
  info = _info(name, split, part, decoder)
  labels = getattr(part.records, "labels", None)  # of files; of other kinds they are part of the record
  numbers = np.array(part.numbers)
  shards = []
  for index, piece in enumerate(pieces):
    ids = [part.ids[k] for k in piece]
    classes = labels and [labels[k] for k in numbers[piece]]
    plan = hashlib.sha256(json.dumps([dataclasses.astuple(decoder), ids, classes]).encode()).hexdigest()
    source = Encoded(info, part.records, decoder, numbers[piece], threads=1)
    shards.append(_Shard(f"{name}-{split}.array_record-{index:05}-of-{len(pieces):05}", source, ids, plan))
  return shards


_ENTRY = {"images": int, "bytes": int, "sha256": str, "skipped": list, "plan": str}


def _entries(found: Any) -> dict[str, dict]:
  """The entries of shards that have what is read of them. Shards with other entries are made again."""
  if not isinstance(found, dict):
    return {}
  sound = lambda entry: isinstance(entry, dict) and all(type(entry.get(key)) is kind for key, kind in _ENTRY.items())
  return {file: entry for file, entry in found.items() if sound(entry)}


class _Manifest:
  """manifest.json: what the data set is made of, and an entry for every shard that is whole."""

  def __init__(self, folder: pathlib.Path, decoder: Decoder, origin: str):
    self.folder = folder
    self._lock = threading.Lock()
    self.file = folder / "manifest.json"
    if not self.file.exists() and (folder / "dataset_info.json").exists():
      raise UserError(f"{folder} holds a data set that was not made by this command: choose another data_dir.")
    old = tables.read_json(self.file) if self.file.exists() else {}
    self.content = {
      "from": origin,
      "decoder": dataclasses.asdict(decoder),
      "made_by": {"ddpm_jax": __version__, "pillow": PIL.__version__},
      "shards": _entries(old.get("shards")),
    }

  def holds(self, shard: _Shard) -> bool:
    """Whether a shard was made of the same images in the same way, and has not changed since."""
    entry = self.content["shards"].get(shard.file)
    file = self.folder / shard.file
    return bool(entry and entry["plan"] == shard.plan and file.exists() and _sha256(file) == entry["sha256"])

  def enter(self, shard: _Shard, entry: dict) -> None:
    with self._lock:
      self.content["shards"][shard.file] = entry
      self.write()

  def write(self) -> None:
    with writing(self.file) as temporary:
      temporary.write_text(json.dumps(self.content, indent=1))


def _make(manifest: _Manifest, shard: _Shard, corrupt: str, stop: threading.Event) -> None:
  """Writes one shard, unless it is there."""
  from array_record.python.array_record_module import ArrayRecordWriter

  if stop.is_set() or manifest.holds(shard):
    return
  pixels = hashlib.sha256()
  labels = collections.Counter()
  skipped = []
  try:
    with writing(manifest.folder / shard.file) as temporary:
      writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
      for index, name in enumerate(shard.ids):
        if stop.is_set():
          raise concurrent.futures.CancelledError
        try:
          example = shard.source[index]
        except CorruptImage as error:
          if corrupt == "error":
            raise
          log.warning("skipped: %s", error)
          skipped.append(name)
          continue
        pixels.update(example["image"])
        labels[example["label"]] += 1
        writer.write(_serialized(example, name, shard.source.info.num_classes is not None))
      writer.close()
      entry = {
        "images": len(shard.ids) - len(skipped),
        "bytes": temporary.stat().st_size,
        "sha256": _sha256(temporary),
        "pixels": pixels.hexdigest(),
        "labels": dict(sorted(labels.items())),
        "skipped": skipped,
        "plan": shard.plan,
      }
  except RuntimeError as error:  # of array_record
    raise UserError(f"{shard.file} cannot be written ({error}): make room, and run again to continue.") from error
  manifest.enter(shard, entry)


def _serialized(example: dict, name: str, labelled: bool) -> bytes:
  """A tf.Example as TFDS writes it."""
  from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

  values = lambda value: tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[value]))
  features = {"id": values(name.encode()), "image": values(originals.encode_png(example["image"]))}
  if labelled:
    features["label"] = tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[example["label"]]))
  proto = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=features))
  return proto.SerializeToString(deterministic=True)


def _finish(name: str, folder: pathlib.Path, manifest: _Manifest, shards: dict, decoder: Decoder, records: Records) -> None:
  """Writes TFDS's description, which makes the data set visible, and removes what other attempts left."""
  import tensorflow_datasets as tfds

  files = {shard.file for split in shards.values() for shard in split}
  entries = manifest.content["shards"] = {file: manifest.content["shards"][file] for file in sorted(files)}
  manifest.write()
  for file in folder.glob(f"*{name}-*.array_record*"):
    if file.name not in files:
      file.unlink()
  shape = (*pair(decoder.image_size), decoder.channels)
  features = {"id": tfds.features.Text(), "image": tfds.features.Image(shape=shape, encoding_format="png")}
  if records.class_names is not None:
    features["label"] = tfds.features.ClassLabel(names=records.class_names)
  elif records.num_classes is not None:
    features["label"] = tfds.features.ClassLabel(num_classes=records.num_classes)
  template = tfds.core.ShardedFileTemplate(folder, dataset_name=name, filetype_suffix="array_record")
  splits = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=[entries[shard.file]["images"] for shard in made],
      num_bytes=sum(entries[shard.file]["bytes"] for shard in made),
      filename_template=template,
    )
    for split, made in shards.items()
  ]
  tfds.folder_dataset.write_metadata(
    data_dir=folder, features=features, split_infos=splits, version=folder.name, check_data=False
  )
  skipped = sum(len(entries[file]["skipped"]) for file in files)
  log.info("%s: %d images, %d skipped, in %s", name, sum(info.num_examples for info in splits), skipped, folder)


def _sha256(file: pathlib.Path) -> str:
  with open(file, "rb") as opened:
    return hashlib.file_digest(opened, "sha256").hexdigest()
