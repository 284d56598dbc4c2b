"""The wheel and the source distribution: complete, and usable outside the clone."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

pytest.importorskip("setuptools", minversion="77")
ROOT = pathlib.Path(__file__).parents[2]
PARTS = ("ddpm_jax", "configs", "docs/examples", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def call(code: str, *arguments, folder, **environment) -> subprocess.CompletedProcess:
  """Runs Python code in a folder, with nothing of the clone on its path."""
  variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
  command = [sys.executable, "-c", code, *map(str, arguments)]
  return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """A folder with the wheel and the source distribution, built from a copy of the clone."""
  source = tmp_path_factory.mktemp("source")
  for part in PARTS:
    path = ROOT / part
    if path.is_dir():
      shutil.copytree(path, source / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
      shutil.copy(path, source / part)
  dist = tmp_path_factory.mktemp("dist")
  code = "import sys; from setuptools import build_meta as b; to = sys.argv[1]; b.build_wheel(to); b.build_sdist(to)"
  done = call(code, dist, folder=source)
  assert done.returncode == 0, done.stderr[-2000:]
  return dist


def test_wheel_and_sdist_hold_the_package_and_its_configs_and_nothing_else(built):
  (wheel,) = built.glob("*.whl")
  inside = zipfile.ZipFile(wheel).namelist()
  assert {name.split("/")[0].split("-")[0] for name in inside} == {"ddpm_jax"}  # the package and its dist-info
  expected = {str(path.relative_to(ROOT)) for path in (ROOT / "ddpm_jax").rglob("*.py")}
  expected |= {f"ddpm_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
  assert {name for name in inside if name.endswith(".py")} == expected
  assert "ddpm_jax/py.typed" in inside
  (sdist,) = built.glob("*.tar.gz")
  with tarfile.open(sdist) as archive:
    files = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
  assert expected <= files


def test_the_wheel_trains_in_an_empty_folder_where_others_have_configs_of_their_own(built, tmp_path):
  (wheel,) = built.glob("*.whl")
  site = tmp_path / "site"
  zipfile.ZipFile(wheel).extractall(site)
  folder = tmp_path / "empty"
  (folder / "configs").mkdir(parents=True)  # must not hide the package's
  (folder / "configs" / "__init__.py").write_text("raise ImportError('not these')\n")
  code = "import sys; from ddpm_jax.cli.main import main; print(sys.modules['ddpm_jax'].__file__); main(sys.argv[1:])"
  arguments = ["train", "--config", "digits:smoke", "--workdir", "run"]
  done = call(code, *arguments, folder=folder, PYTHONPATH=str(site), JAX_PLATFORMS="cpu")
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout.startswith(str(site)) and (folder / "run" / "checkpoints" / "4").is_dir()
