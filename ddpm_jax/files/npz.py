"""Arrays and their description in one .npz, without pickle. Files are written whole and verified when they are read."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.files import tables
from ddpm_jax.files.arrays import read_npz
from ddpm_jax.files.atomic import writing
from ddpm_jax.files.limits import shown

META = "meta"  # name of the array that holds the JSON text
ARRAYS = "sha256_of_arrays"  # what that text says of the others


def digest(arrays: Mapping[str, Any]) -> str:
  """SHA-256 over names, types, shapes and bytes of `arrays`, in the order of the names."""
  total = hashlib.sha256()
  for name in sorted(arrays):
    array = np.ascontiguousarray(arrays[name])
    total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
    total.update(memoryview(array).cast("B") if array.size else b"")
  return total.hexdigest()


def text_digest(value: Any) -> str:
  """SHA-256 of a JSON-able value, whatever the order of its keys."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write(path: str | os.PathLike, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
  """Writes `arrays` and the JSON-able `meta` to `path`. An interruption leaves the old file or none."""
  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  text = json.dumps({**meta, ARRAYS: digest(arrays)})
  with writing(path) as temporary, open(temporary, "wb") as file:
    np.savez(file, allow_pickle=False, **arrays, **{META: np.array(text)})


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns the arrays and the meta that `write` stored.

  Raises:
    UserError: if the file is missing, damaged or of another kind.
  """
  return verified(path, read_npz(path))


def verified(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """The same for all `arrays` of the file, read already."""
  others = dict(arrays)
  text = others.pop(META, None)
  if text is None or text.ndim or text.dtype.kind != "U":
    held = shown(", ".join(arrays) or "nothing")
    raise UserError(f"{shown(path)} was not written by ddpm_jax: it holds {held}, but no text {META!r}.")
  meta = tables.parse_json(str(text), path)
  written = meta.pop(ARRAYS, None)
  if digest(others) != written:
    raise UserError(f"{shown(path)} is damaged: its arrays do not have the SHA-256 it was written with; make it again.")
  return others, meta
