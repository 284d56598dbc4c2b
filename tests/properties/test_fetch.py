"""Downloads from a server of this process: whole, checked, resumed, and one sentence when they fail."""

import contextlib
import hashlib
import http.server
import os
import subprocess
import sys
import threading
import time

import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.files import atomic, download, lock

CONTENT = bytes(range(256)) * 5000


class Server(http.server.ThreadingHTTPServer):
  """Serves CONTENT at /file once `gate` is open; `breaks_after` bytes it hangs up once; `ranges` are what was asked for."""

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.breaks_after = None
    self.ranges = []
    self.knows_ranges = True
    self.ignores_start = False
    self.content = CONTENT
    self.headers = {"ETag": '"1"'}
    self.gate = threading.Event()
    self.gate.set()
    threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_port}/file"


MOVED = {"/moved": "/file", "/loop": "/loop", "/local": "file:///etc/passwd", "/nowhere": "http://127.0.0.1:1/x"}


class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    wanted = self.headers.get("Range")
    start = 0
    self.server.ranges.append(wanted)
    self.server.gate.wait(60)
    if self.path == "/garbage":
      return self.wfile.write(b"no HTTP at all\r\n\r\n")
    if target := MOVED.get(self.path):
      self.send_response(302)
      self.send_header("Location", target)
      return self.end_headers()
    if self.path != "/file":
      return self.send_error(404)
    if wanted and self.server.knows_ranges:
      start = int(wanted.removeprefix("bytes=").removesuffix("-"))
      if start >= len(self.server.content):
        return self.send_error(416)
      self.send_response(206)
      start *= not self.server.ignores_start
      self.send_header("Content-Range", f"bytes {start}-{len(self.server.content) - 1}/{len(self.server.content)}")
    else:
      self.send_response(200)
    for name, value in ({"Content-Length": str(len(self.server.content) - start)} | self.server.headers).items():
      if value:
        self.send_header(name, value)
    self.end_headers()
    stop = self.server.breaks_after
    self.server.breaks_after = None
    self.wfile.write(self.server.content[start:stop])
    return None

  def log_message(self, *args):
    pass


@pytest.fixture
def server(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  with Server() as running:
    yield running
    running.shutdown()


def file(server, checksum="sha256:" + hashlib.sha256(CONTENT).hexdigest()):
  return download.File("weights.bin", server.url, checksum)


def test_a_file_is_downloaded_once(server, tmp_path):
  for kind in ("sha256", "md5"):
    path = download.fetch(file(server, f"{kind}:{hashlib.new(kind, CONTENT).hexdigest()}"), progress=False)
  assert path == tmp_path / "ddpm_jax/weights.bin" and path.read_bytes() == CONTENT
  assert server.ranges == [None] and [file.name for file in path.parent.iterdir()] == ["weights.bin"]


def test_of_two_who_want_a_file_one_downloads_it(server):
  server.gate.clear()
  found = []
  two = [threading.Thread(target=lambda: found.append(download.fetch(file(server), progress=False))) for _ in range(2)]
  two[0].start()
  while not server.ranges:
    time.sleep(0.01)
  two[1].start()
  time.sleep(0.1)  # without a lock it would ask the server now
  server.gate.set()
  for thread in two:
    thread.join()
  assert server.ranges == [None] and found[0] == found[1] and found[0].read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_one_sentence(server, tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "file" / "cache"))
  with pytest.raises(UserError, match="cache cannot be written .*set DDPM_JAX_CACHE"):
    download.fetch(file(server), progress=False)


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_download_goes_on_where_it_stopped(server, knows_ranges):
  server.breaks_after = 70_000
  server.knows_ranges = knows_ranges
  with pytest.raises(UserError, match="70000 of 1280000 bytes arrived.*or save that file as .*weights.bin"):
    download.fetch(file(server), progress=False)
  assert not (download.cache_folder() / "weights.bin").exists()
  assert download.fetch(file(server), progress=False).read_bytes() == CONTENT
  assert server.ranges == [None, "bytes=70000-"]


def test_what_was_left_by_a_longer_file_is_thrown_away(server):
  download.cache_folder().mkdir()
  (download.cache_folder() / "weights.bin.partial").write_bytes(CONTENT + b"more")
  assert download.fetch(file(server), progress=False).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused(server):
  with pytest.raises(UserError, match="and md5:0123 was published"):
    download.fetch(file(server, "md5:0123"), progress=False)
  assert not download.cache_folder().exists()
  download.cache_folder().mkdir()
  (download.cache_folder() / "weights.bin").write_bytes(b"put there by hand")
  with pytest.raises(UserError, match="remove it and try again"):
    download.fetch(file(server), progress=False)


def test_an_unknown_checksum_is_said(server, caplog):
  caplog.set_level("INFO")
  download.fetch(file(server, None), progress=False)
  assert hashlib.sha256(CONTENT).hexdigest() in caplog.text


def test_an_absent_file_or_server_is_one_sentence(server):
  with pytest.raises(UserError, match="404.*or save that file as"):
    download.fetch(download.File("a", server.url + "s"), progress=False)
  with pytest.raises(UserError, match="could not be downloaded"):
    download.fetch(download.File("a", server.url.replace("/file", "/garbage")), progress=False)
  server.shutdown()
  server.server_close()
  with pytest.raises(UserError, match="could not be downloaded .*or save that file as"):
    download.fetch(file(server), progress=False, timeout=1)


def test_a_file_without_checksum_is_trusted_once(server):
  path = download.fetch(file(server, None), progress=False)
  assert download.fetch(file(server, None), progress=False).read_bytes() == CONTENT
  path.write_bytes(CONTENT + b"changed")
  with pytest.raises(UserError, match="has changed: its checksum was sha256:"):
    download.fetch(file(server, None), progress=False)
  path.unlink()
  server.content = CONTENT[::-1]
  with pytest.raises(UserError, match="has changed"):
    download.fetch(file(server, None), progress=False)


@pytest.mark.parametrize(
  "content, headers, sentence",
  [
    (b"\xef\xbb\xbf  <!DOCTYPE html><p>quota exceeded", {}, "gives a web page instead"),
    (CONTENT, {"Content-Length": "99999999999999"}, "GiB; 8 are allowed"),
    (CONTENT, {"Content-Length": str(len(CONTENT) + 1)}, "arrived"),
    (CONTENT, {"Content-Length": None}, "does not say how long"),
  ],
)
def test_what_is_not_the_file_is_not_kept(server, content, headers, sentence):
  server.content = content
  server.headers = headers
  with pytest.raises(UserError, match=sentence):
    download.fetch(file(server, None), progress=False)
  assert not (download.cache_folder() / "weights.bin").exists()


def test_a_body_without_end_is_cut_off(server, monkeypatch):
  monkeypatch.setattr(download, "LARGEST", 100_000)
  server.headers = {"Content-Length": None}
  with pytest.raises(UserError, match="more than the 100,000 bytes arrived"):
    download.fetch(file(server), progress=False)


def test_a_part_from_another_place_is_not_appended(server):
  server.breaks_after = 70_000
  server.ignores_start = True  # 206, but from byte 0
  with pytest.raises(UserError, match="70000 of 1280000 bytes arrived"):
    download.fetch(file(server), progress=False)
  with pytest.raises(UserError, match="sent the range 'bytes 0-1279999/1280000', not the one from 70000"):
    download.fetch(file(server), progress=False)
  server.ignores_start = False
  assert download.fetch(file(server), progress=False).read_bytes() == CONTENT


def test_redirections_lead_to_servers_only(server):
  sum_of = file(server).checksum
  moved = lambda path: download.File("weights.bin", server.url.replace("/file", path), sum_of)
  for path in ("/loop", "/local", "/nowhere"):
    with pytest.raises(UserError, match="could not be downloaded"):
      download.fetch(moved(path), progress=False)
    assert not download.cache_folder().exists()
  assert download.fetch(moved("/moved"), progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize("length", ["-5", "x", "1e9", ""])
def test_a_length_that_is_no_length_is_refused(server, length):
  server.headers = {"Content-Length": length or None, "Transfer-Encoding": "chunked"}
  server.content = b"zz\r\nno chunk\r\n"
  with pytest.raises(UserError, match="could not be downloaded"):
    download.fetch(file(server, None), progress=False, timeout=2)


def test_links_in_the_cache_are_not_followed(server, tmp_path):
  folder = download.cache_folder()
  folder.mkdir()
  (tmp_path / "precious").write_text("precious")
  for name in (".lock", "weights.bin.partial", "weights.bin.partial.tag", "weights.bin.sha256"):
    (folder / name).symlink_to(tmp_path / "precious")
    with contextlib.suppress(UserError):
      download.fetch(file(server), progress=False)
    (folder / name).unlink(missing_ok=True)
    assert (tmp_path / "precious").read_text() == "precious"


def test_one_process_at_a_time(tmp_path):
  """The second is told who the first is, or waits; what a killed one leaves behind does not count."""
  hold = """
import sys, time
from ddpm_jax.files import lock
with lock.alone(sys.argv[1], "training"):
  print(1, flush=True)
  time.sleep(60)
"""
  holder = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / "run")], stdout=subprocess.PIPE)
  holder.stdout.readline()
  with (
    pytest.raises(UserError, match=rf"run is in use by process {holder.pid} on .* \(training\)"),
    lock.alone(tmp_path / "run", "b"),
  ):
    pass
  holder.kill()
  holder.wait()
  assert (tmp_path / "run/.lock").exists()
  with lock.alone(tmp_path / "run", "training"):
    assert str(os.getpid()) in (tmp_path / "run/.lock").read_text()
  assert list((tmp_path / "run").iterdir()) == []


def test_files_are_written_where_a_name_means_or_not_at_all(tmp_path):
  (tmp_path / "target").write_text("old")
  (tmp_path / "link").symlink_to("target")
  (tmp_path / "itself").symlink_to("itself")
  os.mkfifo(tmp_path / "pipe")
  with atomic.writing(tmp_path / "link") as temporary:
    temporary.write_text("new")
  assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"
  before = sorted(path.name for path in tmp_path.iterdir())
  for place in (
    "/dev/null",
    tmp_path / "pipe",
    tmp_path / "itself",
    tmp_path,
    tmp_path / "target/inside",
    tmp_path / ("x" * 300),
  ):
    with pytest.raises(UserError, match="is a|cannot be"), atomic.writing(place) as temporary:
      temporary.write_text("new")
    with pytest.raises(UserError, match="is a|cannot be"):
      atomic.check(place)
  with pytest.raises(RuntimeError), atomic.writing(tmp_path / "new/folder/file") as temporary:
    raise RuntimeError
  atomic.check(tmp_path / ("x" * 250))
  assert sorted(path.name for path in tmp_path.iterdir()) == before
