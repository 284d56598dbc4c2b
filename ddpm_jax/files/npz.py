"""Arrays and what is known about them in one .npz: no pickle, written whole or not at all, verified when read."""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.files.atomic import writing

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
  """Writes `arrays` and the JSON-able `meta` to `path`; an interruption leaves the old file or none."""
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
  """The same of all `arrays` of the file, read already."""
  if META not in arrays:
    raise UserError(f"{path} was not written by ddpm_jax (it holds {', '.join(arrays)}, but no {META!r}).")
  arrays = dict(arrays)
  try:
    meta = json.loads(str(arrays.pop(META)))
    written = meta.pop(ARRAYS)
  except (ValueError, KeyError, AttributeError):
    raise UserError(f"{path} was not written by ddpm_jax: its {META!r} is something else.") from None
  if digest(arrays) != written:
    raise UserError(f"{path} is damaged: its arrays do not have the SHA-256 it was written with; make it again.")
  return arrays, meta


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """All arrays of any .npz, in memory.

  Raises:
    UserError: if the file is missing, damaged, or holds Python objects.
  """
  if not os.path.isfile(path):
    raise UserError(f"There is no file {path}.")
  if not zipfile.is_zipfile(path):
    raise UserError(f"{path} is no .npz, or was cut short; fetch it or make it again.")
  try:
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, AttributeError) as error:
    raise UserError(f"{path} is not a readable .npz ({error}); fetch it or make it again.") from error
