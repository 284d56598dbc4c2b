"""Downloads from a server of this process: whole, checked, resumed, and one sentence when they fail."""

import hashlib
import http.server
import threading
import time

import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.files import download

CONTENT = bytes(range(256)) * 5000


class Server(http.server.ThreadingHTTPServer):
  """Serves CONTENT at /file once `gate` is open; `breaks_after` bytes it hangs up once; `ranges` are what was asked for."""

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.breaks_after, self.ranges, self.knows_ranges = None, [], True
    self.gate = threading.Event()
    self.gate.set()
    threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_port}/file"


class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    wanted, start = self.headers.get("Range"), 0
    self.server.ranges.append(wanted)
    self.server.gate.wait(60)
    if self.path == "/garbage":
      return self.wfile.write(b"no HTTP at all\r\n\r\n")
    if self.path != "/file":
      return self.send_error(404)
    if wanted and self.server.knows_ranges:
      start = int(wanted.removeprefix("bytes=").removesuffix("-"))
      if start >= len(CONTENT):
        return self.send_error(416)
      self.send_response(206)
    else:
      self.send_response(200)
    self.send_header("Content-Length", str(len(CONTENT) - start))
    self.end_headers()
    stop, self.server.breaks_after = self.server.breaks_after, None
    self.wfile.write(CONTENT[start:stop])
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
  assert server.ranges == [None] and {file.name for file in path.parent.iterdir()} == {".lock", "weights.bin"}


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
  server.breaks_after, server.knows_ranges = 70_000, knows_ranges
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
  with pytest.raises(UserError, match="but md5:0123 was published"):
    download.fetch(file(server, "md5:0123"), progress=False)
  assert [path.name for path in download.cache_folder().iterdir()] == [".lock"]
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
