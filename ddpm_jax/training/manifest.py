"""The manifest of a checkpoint: its config, and the name, shape, type and digest of every array.

The manifest is JSON and contains its own SHA-256. An array's name is the path of its leaf, such as "params/conv_in/kernel"
or "ema/0.9999/conv_in/kernel". A checkpoint can be read, in whole or in part, without the code that wrote it.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.files import limits, tables
from ddpm_jax.files.digest import digests

SCHEMA = 1  # incremented when names or meanings change; MIGRATIONS converts older ones


class CheckpointError(UserError):
  """A checkpoint cannot be used or written. The message says which one, why, and what to do."""


class Mismatch(CheckpointError):
  """The checkpoint is sound but does not match the request, so older ones would not match either."""


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One stored array. `stored` is its name on disk, which a migration never changes."""

  shape: tuple[int, ...]
  dtype: str
  digest: str
  stored: str

  @property
  def kind(self) -> str:
    """Type and shape, for messages."""
    return f"{self.dtype} {list(self.shape)}"

  @property
  def bytes(self) -> int:
    """The size in memory."""
    return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a checkpoint holds.

  Attributes:
    step: batches seen.
    config: of the run; JSON.
    leaves: the arrays by name.
  """

  step: int
  config: dict
  leaves: dict[str, Leaf]

  @property
  def parameter_count(self) -> int:
    """The number of parameters in one set of weights: the raw ones, or an average where only averages are stored."""
    groups = {name.split("/")[1] for name in self.leaves if name.startswith("ema/")}
    prefix = "params/" if any(name.startswith("params/") for name in self.leaves) else f"ema/{min(groups, default='')}/"
    return sum(math.prod(leaf.shape) for name, leaf in self.leaves.items() if name.startswith(prefix))


# ---------------------------------------------------------------------------------------------------------- names


def names(tree: Any) -> list[str]:
  """The paths of the leaves, in the order of jax.tree.leaves."""
  paths, _ = jax.tree.flatten_with_path(tree)
  return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def flatten(tree: Any) -> dict[str, jax.Array]:
  """{path: array}, with random keys as their words."""
  return {name: _words(leaf) for name, leaf in zip(names(tree), jax.tree.leaves(tree), strict=True)}


def unflatten(arrays: dict[str, jax.Array], like: Any) -> Any:
  """The inverse of flatten, for a tree with the structure and leaf types of `like`."""
  leaves = [
    jax.random.wrap_key_data(arrays[name], impl=_impl(leaf.dtype)) if _is_key(leaf) else arrays[name]
    for name, leaf in zip(names(like), jax.tree.leaves(like), strict=True)
  ]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def nest(arrays: dict[str, jax.Array]) -> dict:
  """{"a/b": x} -> {"a": {"b": x}}: a parameter tree from its paths alone."""
  tree: dict = {}
  for name, leaf in arrays.items():
    *path, last = name.split("/")
    node = tree
    for part in path:
      node = node.setdefault(part, {})
      if not isinstance(node, dict):
        raise CheckpointError(f"it has an array and a group that are both called {part}")
    node[last] = leaf
  return tree


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _words(leaf: Any) -> Any:
  if not _is_key(leaf):
    return leaf
  if isinstance(leaf, jax.ShapeDtypeStruct):
    words = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=leaf.sharding)
  return jax.random.key_data(leaf)


def _impl(dtype: Any) -> str:
  return next(impl for impl in ("threefry2x32", "rbg", "unsafe_rbg") if jax.random.key(0, impl=impl).dtype == dtype)


# ---------------------------------------------------------------------------------------------------------- JSON


def describe(arrays: dict[str, jax.Array]) -> dict[str, Leaf]:
  """The leaves that a manifest lists."""
  stamps = digests(arrays)
  return {name: Leaf(x.shape, str(x.dtype), stamps[name], name) for name, x in arrays.items()}


def dump(manifest: Manifest) -> dict:
  """To JSON."""
  content = {
    "schema": SCHEMA,
    "step": manifest.step,
    "config": manifest.config,
    "leaves": {name: [list(leaf.shape), leaf.dtype, leaf.digest] for name, leaf in manifest.leaves.items()},
  }
  return {"content": content, "sha256": _sha256(content)}


def parse(document: dict) -> Manifest:
  """The manifest from JSON of this schema or an older one.

  The checksum shows that the text is intact, but not that it is meaningful, so everything is checked.

  Raises:
    CheckpointError: if the text is damaged or invalid.
    Mismatch: if the schema is newer.
  """
  content = _of_kind(document, "content", dict)
  tables.check_depth(content, "the manifest")
  if document.get("sha256") != _sha256(content):
    raise CheckpointError("its manifest does not match its checksum")
  schema, step = (_of_kind(content, key, int) for key in ("schema", "step"))
  if schema > SCHEMA:
    raise Mismatch(
      f"The checkpoint of step {step} has schema {schema}, but this version of ddpm_jax reads up to {SCHEMA}: update it."
    )
  if schema < 0 or step < 0:
    raise CheckpointError(f"its manifest has schema {schema} and step {step}, which must be at least 0")
  leaves = {name: _leaf(name, entry) for name, entry in _of_kind(content, "leaves", dict).items()}
  limits.check_size(sum(leaf.bytes for leaf in leaves.values()), "the checkpoint")
  for version in range(schema, SCHEMA):
    leaves = MIGRATIONS[version](leaves)
  return Manifest(step, _of_kind(content, "config", dict), leaves)


def _of_kind(content: Any, key: str, kind: type) -> Any:
  """content[key], which must be a `kind`. Raises CheckpointError."""
  value = content.get(key) if isinstance(content, dict) else None
  if type(value) is not kind:
    raise CheckpointError(f"its manifest has no {key}, or one that is not a {kind.__name__}")
  return value


def _leaf(name: str, entry: Any) -> Leaf:
  """One array of a manifest. Raises CheckpointError unless name, shape, type and digest are possible."""
  try:
    shape, dtype, stamp = entry
    sound = all(type(size) is int and 0 <= size < 2**40 for size in shape) and re.fullmatch(r"[0-9a-f]{16}", stamp)
    jnp.dtype(dtype)
  except (TypeError, ValueError):
    sound = None
  if not sound or dtype not in _TYPES or not re.fullmatch(r"[^/]+(/[^/]+)*", name) or ".." in name.split("/"):
    raise CheckpointError(f"its manifest describes the array {limits.shown(name)} as {limits.shown(entry)}")
  return Leaf(tuple(shape), dtype, stamp, name)


_TYPES = frozenset(
  "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64".split()
)


def _sha256(content: dict) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------- versions


def _rename(old: str, new: str) -> Callable[[dict[str, Leaf]], dict[str, Leaf]]:
  """A migration that moves leaves from the path `old` to `new`."""

  def migrate(leaves):
    return {
      new + name.removeprefix(old) if (name + "/").startswith(old + "/") else name: leaf for name, leaf in leaves.items()
    }

  return migrate


MIGRATIONS = {0: _rename("skipped_streak", "skipped_in_row")}  # 0: before the first release
