"""What TFDS writes beside its shards, checked before TFDS reads it.

TFDS imports whatever class features.json names. Here a description may name the plain features of images only.
"""

import os
import pathlib
from typing import Any

from ddpm_jax.errors import UserError
from ddpm_jax.files import limits, tables
from ddpm_jax.files.limits import shown

_CORE = "tensorflow_datasets.core.features."
CLASSES = frozenset(
  _CORE + name
  for name in (
    "features_dict.FeaturesDict",
    "image_feature.Image",
    "labeled_image.LabeledImage",
    "class_label_feature.ClassLabel",
    "text_feature.Text",
    "tensor_feature.Tensor",
    "scalar.Scalar",
    "bounding_boxes.BBoxFeature",
    "bbox_feature.BBoxFeature",
    "sequence_feature.Sequence",
    "feature.Tensor",
  )
)
_FILE = 2**24  # bytes
_CLASSES = 1_000_000  # labels


def check(folder: str | os.PathLike) -> None:
  """Raises UserError unless features.json and dataset_info.json in `folder` describe plain images and labels."""
  folder = pathlib.Path(folder)
  pending: list[Any] = [tables.read_json(folder / "features.json", most=_FILE)]
  while pending:
    node = pending.pop()
    if isinstance(node, list):
      pending += node
    if not isinstance(node, dict):
      continue
    name = node.get("pythonClassName")
    if name is not None and name not in CLASSES:
      raise UserError(
        f"{shown(folder / 'features.json')} names the class {shown(name)}, which is not one of TFDS's features of images: "
        "prepare the data set again with ddpm-jax data prepare."
      )
    classes = node.get("numClasses")
    if classes is not None and not (str(classes).isdecimal() and 1 <= int(str(classes)[:12]) <= _CLASSES):
      raise UserError(f"{shown(folder / 'features.json')} has {shown(classes)} classes; 1 to {_CLASSES:,} are possible.")
    pending += node.values()
  shard_counts(folder)


def shard_counts(folder: str | os.PathLike) -> dict[str, list[int]]:
  """Images in each shard by split, as dataset_info.json says. Raises UserError if it is damaged."""
  file = pathlib.Path(folder) / "dataset_info.json"
  about = tables.read_json(file, most=_FILE)
  with limits.damaged(file, "description of a data set", "prepare it again"):
    counts = {split["name"]: [int(number) for number in split["shardLengths"]] for split in about.get("splits", [])}
    if any(number < 0 for shards in counts.values() for number in shards):
      raise ValueError("a shard has fewer than 0 images")
  return counts
