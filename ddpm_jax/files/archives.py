"""Zip, gzip and tar, unpacked into memory with limits that are checked before and while bytes are produced."""

import io
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Collection
from typing import IO

from ddpm_jax.errors import UserError
from ddpm_jax.files import limits
from ddpm_jax.files.limits import PathLike, damaged, shown

MEMBER = 2**28  # bytes of one member of an archive
RATIO = 300  # photographs, tables and weights never compress by this factor; a zip bomb does by 1,000
_ALWAYS = 2**24  # bytes that any file may expand to
_BLOCK = 2**20
_GZIP = b"\x1f\x8b"


class Zip:
  """A zip file whose members are read one at a time, by any number of threads.

  Attributes:
    names: of all members that are files, in the order of the directory.

  Raises:
    UserError: if there is no such file, or it is not a zip file.
  """

  def __init__(self, path: PathLike) -> None:
    limits.check_regular(path)
    self.path = path
    with damaged(path, "zip file", "pack or copy it again"):
      self._zip = zipfile.ZipFile(limits.path_of(path))
    self._lock = threading.Lock()
    self.names = [name for name in self._zip.namelist() if not name.endswith("/")]

  def __enter__(self) -> "Zip":
    return self

  def __exit__(self, *_: object) -> None:
    self._zip.close()

  def info(self, name: str) -> zipfile.ZipInfo:
    """The directory's entry of a member. Raises UserError if there is none."""
    with damaged(self.path, "zip file"):
      return self._zip.getinfo(name)

  def open(self, info: zipfile.ZipInfo) -> IO[bytes]:
    """A member as a stream. Raises whatever zipfile does."""
    return self._zip.open(info)

  def read(self, name: str, most: int = MEMBER) -> bytes:
    """A member's content, checked against its CRC.

    Raises:
      UserError: if it is damaged or encrypted, or larger than `most` bytes or than compression can explain.
    """
    title = f"{shown(name)} in {shown(self.path)}"
    info = self.info(name)
    check_expansion(info.file_size, info.compress_size, title, most)
    with self._lock, damaged(title, "member of a zip file", "pack or copy it again"), self._zip.open(info) as file:
      data = file.read(info.file_size + 1)
      if len(data) != info.file_size:
        raise ValueError("its size is not that of the directory")
      return data


def check_expansion(size: int, compressed: int, what: str, most: int | None = MEMBER) -> None:
  """Raises UserError if `compressed` bytes are said to become `size`, and these are too many."""
  limits.check_size(size, what, most)
  if size > _ALWAYS and size > RATIO * compressed:
    raise UserError(f"{what} would grow from {compressed:,} to {size:,} bytes: this is an archive made to fill memory.")


def gunzip(data: bytes, name: object, most: int = MEMBER) -> bytes:
  """The content of a gzip file with one or more members.

  Raises:
    UserError: if it is damaged or cut short, or has more than `most` bytes or than compression can explain.
  """
  compressed = len(data)
  out = bytearray()
  with damaged(name, "gzip file"):
    while data:
      stream = zlib.decompressobj(wbits=31)
      while not stream.eof:
        if not data:
          raise ValueError("cut short")
        out += stream.decompress(data, _BLOCK)
        data = stream.unconsumed_tail
        check_expansion(len(out), compressed, shown(name), most)
      data = stream.unused_data.lstrip(b"\0")  # padding between members
  return bytes(out)


def read_maybe_gzip(path: PathLike, most: int = MEMBER) -> bytes:
  """The content of a file that may be compressed with gzip, which its first bytes tell. Raises UserError."""
  data = limits.read_bytes(path, most)
  return gunzip(data, path, most) if data[:2] == _GZIP else data


def tar_members(path: PathLike, names: Collection[str], most: int = 2 * MEMBER) -> dict[str, bytes]:
  """The regular files called `names`, in any folder of a .tar or .tar.gz.

  Args:
    path: the archive.
    names: without folders. What is not there is absent from the result.
    most: bytes of the unpacked archive.

  Raises:
    UserError: if it is damaged or larger. Links and sparse files are not followed.
  """
  data = read_maybe_gzip(path, most)
  found = {}
  with damaged(path, "tar file"), tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
    for member in archive:
      name = member.name.rpartition("/")[2]
      if name in names and member.isreg() and not member.issparse() and member.size <= len(data):
        file = archive.extractfile(member)
        assert file is not None  # a regular file has content
        found[name] = file.read()
  return found
