"""Files of others are parsed in ddpm_jax/files/ only, where limits come first and every failure is one sentence."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2] / "ddpm_jax"
MODULES = [path for path in sorted(ROOT.rglob("*.py")) if path.parent != ROOT / "files"]

PARSERS = {  # a dotted name, or a module of which every function counts
  *("json.load", "json.loads", "csv", "pickle", "marshal", "shelve", "zipfile", "tarfile", "gzip", "bz2", "lzma", "zlib"),
  *("PIL.Image.open", "eval", "exec", "ast.literal_eval", "yaml", "tomllib", "configparser", "xml"),
  *("struct.unpack", "struct.unpack_from", "struct.iter_unpack", "jax.numpy.load"),
  *(f"numpy.{name}" for name in ("load", "loadtxt", "genfromtxt", "fromfile", "memmap", "fromregex")),
}
ALLOWED = {
  ("config.py", "ast.literal_eval"): "a value of the command line",
  ("data/digits.py", "numpy.loadtxt"): "a file of the installed scikit-learn",
  ("evaluation/study_tables.py", "csv.writer"): "writes",
}


def calls(tree: ast.AST) -> set[str]:
  """The dotted names of what is called, with the aliases of imports resolved."""
  aliases = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      aliases |= {each.asname: each.name for each in node.names if each.asname}
    elif isinstance(node, ast.ImportFrom) and node.module:
      aliases |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      head, dot, rest = ast.unparse(node.func).partition(".")
      found.add(aliases.get(head, head) + dot + rest)
  return found


def parsers(source: str) -> set[str]:
  return {name for name in calls(ast.parse(source)) if name in PARSERS or name.partition(".")[0] in PARSERS}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_parses_files(path):
  file = str(path.relative_to(ROOT))
  wrong = {name for name in parsers(path.read_text()) if (file, name) not in ALLOWED}
  assert not wrong, f"{file} calls {', '.join(sorted(wrong))}: use the reader in ddpm_jax/files/"


def test_the_exceptions_are_needed():
  for file, name in ALLOWED:
    assert name in parsers((ROOT / file).read_text()), f"{file} does not call {name} any more"


@pytest.mark.parametrize(
  "source",
  [
    "import json\njson.loads(text)",
    "import numpy as np\nnp.load(path)",
    "from PIL import Image\nImage.open(path)",
    "import pickle as p\np.Unpickler(file).load()",
    "from json import loads as parse\nparse(text)",
    "eval(text)",
  ],
)
def test_the_kind_is_found(source):
  assert parsers(source)
