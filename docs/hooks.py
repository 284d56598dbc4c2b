"""Hooks of mkdocs: line numbers of code, the tests of each module, and figures from elsewhere in the repository.

In the pages, `diffusion/steps.py` followed by `a piece of code` names one line. Its number is looked up at every build. A
piece that is missing from the file, or is there twice, stops the build and fails tests/properties/test_docs.py.
"""

import ast
import functools
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
CODE = re.compile(r"`((?:[a-z_]+/)*[a-z_]+\.py)` `([^`\n]+)`")
EVERY = re.compile(r"^::: ([\w.]+)\.\*$", re.M)
MODULE = re.compile(r"^::: (ddpm_jax[\w.]*)\n(?:    .*\n?|\n(?=    ))*", re.M)
REFERENCE = ROOT / "docs" / "reference"
FIGURES = "benchmarks/figures"  # pages of docs/methods link there


def line_of(file: str, piece: str) -> int:
  """The number, from 1, of the one line of ddpm_jax/`file` that contains `piece`.

  Raises:
    ValueError: if there is no such line, or more than one.
  """
  path = ROOT / "ddpm_jax" / file
  lines = path.read_text().splitlines() if path.is_file() else []
  found = [number for number, line in enumerate(lines, 1) if piece in line]
  if len(found) != 1:
    raise ValueError(f"ddpm_jax/{file} has {len(found)} lines with {piece!r}; name one line.")
  return found[0]


def modules_of(package: str) -> list[str]:
  """Modules of a package that no page of the reference names by itself, for `::: ddpm_jax.models.*`."""
  named = set(re.findall(r"^::: ([\w.]+)$", "".join(page.read_text() for page in REFERENCE.glob("*.md")), re.M))
  files = sorted((ROOT / package.replace(".", "/")).glob("[a-z]*.py"))
  return [module for module in (f"{package}.{file.stem}" for file in files) if module not in named]


@functools.cache
def tests_by_module() -> dict[str, list[str]]:
  """For each module of the package, the test files that import it, directly or as a name of its package."""
  found: dict[str, list[str]] = {}
  for path in sorted((ROOT / "tests").rglob("test_*.py")):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        imported |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and node.module:
        imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    for module in imported:
      found.setdefault(module, []).append(str(path.relative_to(ROOT)))
  return found


def tested_in(module: str) -> str:
  """The line under a module of the reference; "" where no test imports it."""
  files = ", ".join(f"`{file}`" for file in tests_by_module().get(module, []))
  return f"*Tested in {files}.*\n\n" if files else ""


def on_page_markdown(markdown, **_):
  markdown = EVERY.sub(lambda found: "\n\n".join(f"::: {module}" for module in modules_of(found[1])), markdown + "\n")
  markdown = MODULE.sub(lambda found: f"{found[0].rstrip()}\n\n{tested_in(found[1])}", markdown)
  markdown = CODE.sub(lambda found: f"`{found[1]}:{line_of(found[1], found[2])}` `{found[2]}`", markdown)
  return markdown.replace(f"../../{FIGURES}/", "../figures/")


def on_files(files, config):
  from mkdocs.structure.files import File

  for path in sorted((ROOT / FIGURES).glob("*.png")):
    where = f"figures/{path.name}", str(path.parent.parent), config["site_dir"], config["use_directory_urls"]
    files.append(File(*where))
  return files
