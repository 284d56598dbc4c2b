"""What every test shares: strict JAX, and the numbers of the original authors' code."""

import os
import re
import tempfile

# One cache of compiled programs for a run of the suite, shared by its workers and the programs that tests start. It has to
# be chosen before JAX is imported.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  CACHE = tempfile.TemporaryDirectory(prefix="ddpm_jax_compiled_", ignore_cleanup_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import pytest
from stored import Golden

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")  # parity with float32 references

collect_ignore = ["helpers", "programs"]  # modules that tests import, and programs that they start: no tests


@pytest.fixture(scope="session")
def golden():
  """golden("samplers_openai") opens that file once per session."""
  opened: dict[str, Golden] = {}
  return lambda name: opened.setdefault(name, Golden(name))


@pytest.fixture(scope="module", autouse=True)
def _forget():
  """A worker of the whole suite would otherwise hold every program and every trace of it: 5 GB."""
  yield
  jax.clear_caches()


def pytest_runtest_setup(item):
  """A test marked `torch` needs PyTorch. CI runs these alone in a second environment: `-m torch`."""
  if item.get_closest_marker("torch"):
    pytest.importorskip("torch")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
  """No test skips for want of PyTorch without the mark, because CI would never run it."""
  report = yield
  if report.skipped and re.search("could not import '(torch|diffusers)", str(report.longrepr)):
    assert item.get_closest_marker("torch"), f"mark {item.nodeid} with @pytest.mark.torch"
  return report
