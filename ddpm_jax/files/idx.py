"""The IDX format of MNIST: a magic number with type and number of axes, the axes, then the bytes."""

import math
import struct

import numpy as np

from ddpm_jax.files import archives, limits
from ddpm_jax.files.limits import PathLike

_BYTES = 0x08  # the type unsigned byte, which all of MNIST's files have
_FILE = 2**28  # bytes, unpacked; MNIST has 47 million


def read(path: PathLike, axes: int) -> np.ndarray:
  """The uint8 array of an IDX file, compressed with gzip or not.

  Args:
    path: the file.
    axes: how many it must have.

  Raises:
    UserError: if there is no such file, it is damaged, or of another kind.
  """
  data = archives.read_maybe_gzip(path, _FILE)
  with limits.damaged(path, f"IDX file with {axes} axes", "download it again"):
    if data[:4] != bytes([0, 0, _BYTES, axes]):
      raise ValueError("it does not begin as one")
    shape = struct.unpack_from(f">{axes}I", data, 4)
    if math.prod(shape) != len(data) - 4 - 4 * axes:
      raise ValueError(f"{list(shape)} is not what its {len(data):,} bytes hold")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
