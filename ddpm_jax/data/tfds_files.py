"""TFDS data sets on disk (array_record), read without TensorFlow and without the network."""

import pathlib

from ddpm_jax.data.sources import NO_LABEL, CorruptImage
from ddpm_jax.errors import UserError
from ddpm_jax.files import limits, tfds_metadata


class TfdsRecords:
  """Encoded images and labels (feature "label") of one split of a prepared TFDS data set, in its order."""

  def __init__(self, folder: pathlib.Path, split: str):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    # By directory: by name, TFDS would import the builder's module and try to download what it does not find.
    tfds_metadata.check(folder)
    with limits.damaged(folder, "data set of TFDS", "prepare it again"):
      builder = tfds.builder_from_directory(folder)
      features = dict(builder.info.features)
    if not isinstance(features.get("image"), tfds.features.Image):
      raise UserError(f"{folder} has no feature 'image' of encoded images; it has {', '.join(features)}.")
    try:
      source = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
      self._length = len(source)
    except NotImplementedError:
      raise UserError(
        f"{folder} is stored as {builder.info.file_format.value}, which cannot be read at random: "
        "prepare it again with file_format='array_record'."
      ) from None
    except ValueError as error:
      raise UserError(
        f"{folder} has no split {split!r} ({str(error).splitlines()[0].rstrip('.')}); it has "
        f"{', '.join(f'{name} ({info.num_examples})' for name, info in builder.info.splits.items())}."
      ) from None
    label = features.get("label")
    self.shape = features["image"].shape
    self.num_classes = None
    self.class_names = None
    if isinstance(label, tfds.features.ClassLabel):
      self.num_classes = label.num_classes
      self.class_names = _names(label.names)
    self._records = source.data_source
    self._parse = tf_example_pb2.Example.FromString
    self._title = f"{folder.parent.name} {split}"

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, number: int) -> tuple[bytes, int]:
    try:
      feature = self._parse(self._records[number]).features.feature
      label = NO_LABEL if self.num_classes is None else feature["label"].int64_list.value[0]
      return feature["image"].bytes_list.value[0], label
    except Exception as error:  # of array_record, which checks its own sums, and of protobuf
      reason = str(error)[:120]
      raise CorruptImage(
        f"{self.name(number)} cannot be read ({reason}): a shard is missing or damaged; copy it again."
      ) from error

  def name(self, number: int) -> str:
    return f"image {number} of {self._title}"


def _names(names: list[str]) -> tuple[str, ...] | None:
  """The names of classes; None for those that TFDS makes up, "0", "1", ..."""
  return None if names == [str(number) for number in range(len(names))] else tuple(names)


def find(data_dir: pathlib.Path, name: str) -> pathlib.Path | None:
  """The folder of the newest version of "name", "name/config" or of "name:version"; None when there is none."""
  base, _, version = name.partition(":")
  folders = _versions(data_dir / base)
  return folders.get(version) if version else max(folders.values(), key=_version, default=None)


def available(data_dir: pathlib.Path) -> dict[str, pathlib.Path]:
  """All data sets that are prepared under a folder: names, and the folders of their newest versions."""
  infos = [*data_dir.glob("*/*/dataset_info.json"), *data_dir.glob("*/*/*/dataset_info.json")]
  names = sorted({info.parent.parent.relative_to(data_dir).as_posix() for info in infos})
  return {name: folder for name in names if (folder := find(data_dir, name))}


def counts(folder: pathlib.Path) -> dict[str, int]:
  """Images by split, as the description says."""
  return {split: sum(shards) for split, shards in tfds_metadata.shard_counts(folder).items()}


def _versions(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  return {info.parent.name: info.parent for info in folder.glob("*/dataset_info.json")}


def _version(folder: pathlib.Path) -> list[int]:
  return [int(part) for part in folder.name.split(".") if part.isdigit()]
