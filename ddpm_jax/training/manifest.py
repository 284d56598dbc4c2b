"""What a checkpoint says about itself: its config and, for every array, name, shape, type and digest.

The manifest is JSON and carries its own SHA-256. Arrays are known by the path of their leaf, such as
"params/conv_in/kernel" or "ema/0.9999/conv_in/kernel", so a checkpoint can be read, wholly or in part, without the
code that wrote it.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.errors import UserError
from ddpm_jax.files.digest import digests

SCHEMA = 1  # raise it when names or meanings change, and say in MIGRATIONS how to read what came before


class CheckpointError(UserError):
  """A checkpoint that cannot be used or written: which one, why, and what to do."""


class Mismatch(CheckpointError):
  """The checkpoint is sound, but not the one that was asked for: an older one will not do either."""


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One stored array. `stored` is its name on disk, which a migration never changes."""

  shape: tuple[int, ...]
  dtype: str
  digest: str
  stored: str

  @property
  def kind(self) -> str:
    return f"{self.dtype} {list(self.shape)}"


@dataclasses.dataclass(frozen=True)
class Manifest:
  step: int
  config: dict
  leaves: dict[str, Leaf]

  @property
  def parameter_count(self) -> int:
    """Numbers in one set of weights: the raw ones, or an average where only averages are stored."""
    groups = {name.split("/")[1] for name in self.leaves if name.startswith("ema/")}
    prefix = "params/" if any(name.startswith("params/") for name in self.leaves) else f"ema/{min(groups, default='')}/"
    return sum(math.prod(leaf.shape) for name, leaf in self.leaves.items() if name.startswith(prefix))


# ---------------------------------------------------------------------------------------------------------- names


def names(tree: Any) -> list[str]:
  """The paths of the leaves, in the order of jax.tree.leaves."""
  paths, _ = jax.tree.flatten_with_path(tree)
  return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def flatten(tree: Any) -> dict[str, jax.Array]:
  """{path: array}; random keys as the words that they consist of."""
  return {name: _words(leaf) for name, leaf in zip(names(tree), jax.tree.leaves(tree), strict=True)}


def unflatten(arrays: dict[str, jax.Array], like: Any) -> Any:
  """The inverse of flatten, for a tree of the structure and leaf types of `like`."""
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


def load(document: dict) -> Manifest:
  """From JSON, of this version or an older one.

  Raises:
    CheckpointError: if the text is damaged.
    Mismatch: if it is of a newer version.
  """
  content = document["content"]
  if document["sha256"] != _sha256(content):
    raise CheckpointError("its manifest does not match its checksum")
  if content["schema"] > SCHEMA:
    raise Mismatch(
      f"The checkpoint of step {content['step']} has schema {content['schema']}, this version of ddpm_jax reads up to "
      f"{SCHEMA}: update it."
    )
  leaves = {name: Leaf(tuple(shape), dtype, stamp, name) for name, (shape, dtype, stamp) in content["leaves"].items()}
  for version in range(content["schema"], SCHEMA):
    leaves = MIGRATIONS[version](leaves)
  return Manifest(content["step"], content["config"], leaves)


def _sha256(content: dict) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------- versions


def _rename(old: str, new: str) -> Callable[[dict[str, Leaf]], dict[str, Leaf]]:
  """Leaves under the path `old` are now under `new`."""

  def migrate(leaves):
    return {
      new + name.removeprefix(old) if (name + "/").startswith(old + "/") else name: leaf for name, leaf in leaves.items()
    }

  return migrate


MIGRATIONS = {0: _rename("skipped_streak", "skipped_in_row")}  # 0: before the first release
