"""Every reader of a foreign format answers any bytes with a value or with one sentence, in little memory and time."""

import gzip
import io
import json
import os
import pathlib
import pickle
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm_jax.errors import LONGEST, UserError
from ddpm_jax.files import (
  archives,
  arrays,
  images,
  limits,
  npz,
  safetensors,
  tables,
  tf_bundle,
  tf_graph,
  torch_files,
  torch_modules,
)

HERE = pathlib.Path(__file__).parent
MEMORY = 64 * 2**20  # bytes that Python may allocate for a small hostile file: TEXT, the largest limit of a text


def packed(**content: bytes) -> bytes:
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, data in content.items():
      archive.writestr(name, data)
  return out.getvalue()


def npy(array) -> bytes:
  out = io.BytesIO()
  np.save(out, array, allow_pickle=True)
  return out.getvalue()


def written(write, *args) -> bytes:
  """The bytes that write(path, *args) puts into a file."""
  import tempfile

  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "file")
    write(path, *args)
    return path.read_bytes()


def tarred(**content: bytes) -> bytes:
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode="w:gz") as archive:
    for name, data in content.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return out.getvalue()


def picture(kind: str) -> bytes:
  out = io.BytesIO()
  Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(out, kind)
  return out.getvalue()


def node(name: str, op: str, *inputs: str) -> bytes:
  fields = [(1, name), (2, op), *((3, each) for each in inputs)]
  body = b"".join(bytes([number << 3 | 2, len(text)]) + text.encode() for number, text in fields)
  return bytes([1 << 3 | 2, len(body)]) + body


TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float32)}
META = np.array(json.dumps({"a": 1, npz.ARRAYS: "0"}))

# reader: (read(path), valid files)
READERS = {
  "json": (tables.read_json, [b'{"a": [1, 2.5, null, {"b": "c"}]}']),
  "csv": (tables.read_csv, ["a.png,1\nb.png,ü\n".encode(), "a.png,1\r\n".encode("utf-16"), b'"a,b",c\r']),
  "npy": (arrays.read_npy, [npy(np.arange(12.0).reshape(3, 4)), npy(np.array("text")), npy(np.asfortranarray(np.eye(3)))]),
  "npz": (npz.read, [packed(**{"a.npy": npy(np.arange(5)), "meta.npy": npy(META)})]),
  "image": (
    lambda path: images.decoded(limits.read_bytes(path), path),
    [picture(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")],
  ),
  "zip": (lambda path: [archives.Zip(path).read(name) for name in archives.Zip(path).names], [packed(a=b"x" * 500, b=b"")]),
  "gzip": (archives.read_maybe_gzip, [gzip.compress(b"abc" * 100), b"plain"]),
  "tar": (lambda path: archives.tar_members(path, ["a", "b"]), [tarred(a=b"1" * 600, b=b"2")]),
  "safetensors": (safetensors.read, [written(safetensors.write, TENSORS)]),
  "torch": (torch_files.read, [written(torch_files.write, TENSORS), pickle.dumps({"a": np.arange(3)}, 2)]),
  "modules": (
    torch_modules.tensors,
    [written(torch_files.write, TENSORS), pickle.dumps({"a": pathlib.PurePosixPath("b")}, 0)],
  ),
  "graph": (tf_graph.read, [node("a", "Identity", "b") + node("b", "Identity", "a")]),
}


def answer(reader: str, data: bytes, path: pathlib.Path):
  """What `reader` makes of `data`: a value, or a UserError. Anything else fails the test."""
  path.write_bytes(data)
  tracemalloc.start()
  try:
    return READERS[reader][0](path)
  except UserError as error:
    message = str(error)
    assert len(message) <= LONGEST and message.isprintable() and message
    return error
  finally:
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MEMORY


quick = settings(
  max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def damaged(draw, data: bytes) -> bytes:
  """`data` with bytes changed, cut off, repeated, or with a length that lies."""
  data = bytearray(data)
  for _ in range(draw(st.integers(1, 4))):
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    kind = draw(st.sampled_from(["set", "cut", "insert", "double", "length"]))
    if kind == "set":
      data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
    elif kind == "cut":
      del data[at:]
    elif kind == "insert":
      data[at:at] = draw(st.binary(max_size=8))
    elif kind == "double":
      data[at:at] = data[at : at + 64]
    else:
      size = draw(st.sampled_from([0, -1, 2**31 - 1, 2**20, 1]))
      data[at : at + 4] = struct.pack(draw(st.sampled_from(["<i", ">i"])), size)
  return bytes(data)


@pytest.mark.parametrize("reader", READERS)
def test_valid_files_are_read(reader, tmp_path):
  for number, data in enumerate(READERS[reader][1]):
    if (reader, number) not in [("npz", 0), ("torch", 1)]:  # a wrong digest; a pickle without PyTorch's magic
      assert not isinstance(answer(reader, data, tmp_path / "file"), UserError)


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_get_a_sentence_or_a_value(reader, tmp_path):
  @quick
  @given(st.one_of([damaged(data) for data in READERS[reader][1]]))
  def check(data):
    answer(reader, data, tmp_path / "file")

  check()


@pytest.mark.parametrize("reader", READERS)
@quick
@given(data=st.binary(max_size=200))
def test_bytes_of_any_kind_get_a_sentence_or_a_value(reader, data, tmp_path):
  answer(reader, data, tmp_path / "file")


@quick
@given(
  value=st.recursive(
    st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
  )
)
def test_json_of_any_shape(value, tmp_path):
  found = answer("json", json.dumps(value).encode(), tmp_path / "file")
  assert found == value if isinstance(value, dict) else isinstance(found, UserError)


# ---------------------------------------------------------------- structured nonsense


def laughs(levels: int) -> bytes:
  """A pickle of lists of the same list twice, `levels` deep: 2^levels parts in a few bytes."""
  return (
    b"\x80\x02]q\x00"
    + b"".join(b"]q" + bytes([n + 1]) + b"(h" + bytes([n]) + b"h" + bytes([n]) + b"e" for n in range(levels))
    + b"."
  )


def zeros(count: int) -> bytes:
  """A .npy header that promises `count` numbers, without them."""
  text = repr({"descr": "<f8", "fortran_order": False, "shape": (count,)}).encode() + b"\n"
  return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def tensor_of(size: str) -> bytes:
  return json.dumps({"a": {"dtype": "F32", "shape": [size], "data_offsets": [0, 0]}}).encode()


def torch_zip(data: bytes) -> bytes:
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w") as archive:
    archive.writestr("a/data.pkl", data)
  return out.getvalue()


HOSTILE = {
  "deep json": ("json", b'{"a":' * 5000 + b"1" + b"}" * 5000),
  "json deeper than readers follow": ("json", b'{"a":' * 100 + b"1" + b"}" * 100),
  "a list": ("json", b"[1]"),
  "a number of 5,000 digits": ("json", b'{"a": ' + b"1" * 5000 + b"}"),
  "csv with a field of 200 kB": ("csv", b"a," + b"x" * 200_000),
  "latin-1": ("csv", b"K\xe4se,1"),
  "a promise of 8 TB": ("npy", zeros(10**12)),
  "a negative shape": ("npy", zeros(-1)),
  "an array of objects": ("npy", npy(np.array([{}], object))),
  "nested brackets": ("npy", b"\x93NUMPY\x01\x00\xd0\x07" + b"(" * 2000),
  "a zip bomb": ("npz", packed(**{"a.npy": zeros(2**24) + bytes(2**27)})),
  "a gzip bomb": ("gzip", gzip.compress(bytes(2**26))),
  "eps": ("image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
  "a png of 10^10 pixels": ("image", picture("PNG").replace(b"\0\0\0\4\0\0\0\4", b"\0\1\x86\xa0\0\1\x86\xa0")),
  "a memo of 2 GB": ("torch", b"\x80\x02Nr\xff\xff\xff\x0f."),
  "a string of 2 GB": ("torch", b"\x80\x04\x8d\xff\xff\xff\x7f\0\0\0\0."),
  "a bytearray of 2 GB": ("torch", b"\x80\x05\x96\xff\xff\xff\x7f\0\0\0\0."),
  "an array of 8 GB": ("torch", torch_zip(b"\x80\x02cnumpy\nndarray\n(J\0\0\0\x40tR.")),
  "billion laughs": ("modules", laughs(60)),
  "billion laughs in a zip": ("torch", torch_zip(laughs(60))),
  "a list of itself": ("torch", torch_zip(b"\x80\x02]q\0h\0a.")),
  "a key that is a deep tuple": ("torch", torch_zip(b"\x80\x02})" + b"\x85" * 20_000 + b"Ns.")),
  "a state for a function": ("torch", torch_zip(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\1\0\0\0aNsb.")),
  "a pickle that calls": ("torch", b"cos\nsystem\n(S'false'\ntR."),
  "a header that promises 2^60 bytes": ("safetensors", struct.pack("<Q", 2**60)),
  "safetensors of a text": ("safetensors", (lambda text: struct.pack("<Q", len(text)) + text)(tensor_of("1"))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name, tmp_path):
  reader, data = HOSTILE[name]
  assert isinstance(answer(reader, data, tmp_path / "file"), UserError)


def test_a_graph_whose_nodes_are_their_own_inputs_has_no_constants(tmp_path):
  (tmp_path / "graph.pb").write_bytes(READERS["graph"][1][0])
  with pytest.raises(ValueError, match="is its own input"):
    tf_graph.read(tmp_path / "graph.pb").constant("a")


@quick
@given(data=damaged((HERE / "tf_bundle/model.ckpt-790000.index").read_bytes()))
def test_damaged_bundles(data, tmp_path):
  for file in (HERE / "tf_bundle").glob("*.data*"):
    (tmp_path / file.name).write_bytes(file.read_bytes())
  (tmp_path / "model.ckpt-790000.index").write_bytes(data)
  try:
    tf_bundle.read(tmp_path / "model.ckpt-790000")
  except UserError as error:
    assert len(str(error)) <= LONGEST


@pytest.mark.parametrize("reader", READERS)
def test_only_regular_files_are_opened(reader, tmp_path):
  read = READERS[reader][0]
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "itself").symlink_to("itself")
  (tmp_path / "dangling").symlink_to("nowhere")
  for place in ("pipe", "itself", "dangling", "absent", ".", "x" * 300, "nul\0"):
    with pytest.raises(UserError, match="There is|is a |cannot be"):
      read(tmp_path / place)
  with pytest.raises(UserError):
    read("~nobody-of-this-name/file")
  with pytest.raises(UserError):
    read("/dev/zero")


def test_utf16_and_every_line_end_are_read():
  for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
    for end in ("\n", "\r", "\r\n"):
      assert tables.parse_csv(f"ä,1{end}b,2{end}".encode(encoding), "table") == [["ä", "1"], ["b", "2"]]


def test_messages_are_printable_and_short():
  error = UserError("\x1b[31m" + "x" * 500 + "\nnext: " + "word " * 100 + "the end")
  assert str(error).startswith("\\x1b[31mxx") and str(error).endswith("the end")
  assert len(str(error)) <= LONGEST and str(error).isprintable()
