"""One statement per line, read from the sources."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = ("ddpm_jax", "configs", "benchmarks", "tests", "docs")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py") if not file.is_symlink())


def hidden_statements(source: str) -> list[str]:
  """Assignments of a tuple to a tuple, such as `a, b = f(x), []`, that are not a swap.

  In a swap every value is also a target: `a, b = b, a`. One value unpacked, `a, b = f(x)`, is one statement.
  """
  found = []
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
      continue
    for target in node.targets:
      if isinstance(target, ast.Tuple) and {*map(ast.unparse, target.elts)} != {*map(ast.unparse, node.value.elts)}:
        found.append(f"line {node.lineno}: {ast.unparse(node)}")
  return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_assignment_is_one_statement(folder):
  files = [file for file in FILES if file.is_relative_to(ROOT / folder)]
  assert files
  assert not [f"{file.relative_to(ROOT)} {line}" for file in files for line in hidden_statements(file.read_text())]


@pytest.mark.parametrize(
  "source, count",
  [("a, b = f(x), []", 1), ("a, b = b, a", 0), ("a, b = f(x)", 0), ("a = b = 1, 2", 0), ("x.a, y[0] = 1, 2", 1)],
)
def test_what_counts_as_several_statements(source, count):
  assert len(hidden_statements(source)) == count
