"""What the documentation says is so: links lead somewhere, lines of code exist, commands parse, examples run."""

import ast
import contextlib
import importlib
import io
import pathlib
import re
import runpy
import shlex
import subprocess
import sys

import jax
import pytest

from ddpm_jax import config
from ddpm_jax.cli import main
from ddpm_jax.convert import registry
from ddpm_jax.data.datasets import SOURCES

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]
WITH_COMMANDS = [*PAGES, *sorted(ROOT.glob("configs/[a-z]*.py")), *sorted(ROOT.glob("ddpm_jax/cli/[a-z]*.py"))]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def name_of(path: pathlib.Path) -> str:
  return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_of_a_page_exist(page):
  inside = [link for link in LINK.findall(page.read_text()) if not re.match(r"[a-z]+:", link)]
  assert [link for link in inside if not (page.parent / link).exists()] == []


def test_lines_of_code_that_pages_name_exist_once():
  hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
  named = [found for page in PAGES for found in hooks["CODE"].findall(page.read_text())]
  assert len(named) > 40
  for file, piece in named:
    hooks["line_of"](file, piece)


def test_every_module_is_in_the_reference():
  hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
  pages = (hooks["on_page_markdown"](page.read_text()) for page in hooks["REFERENCE"].glob("*.md"))
  named = re.findall(r"^::: ([\w.]+)$", "\n".join(pages), re.M)
  files = (path for path in (ROOT / "ddpm_jax").rglob("*.py") if path.stem[0] != "_" and path.parent.name != "cli")
  assert {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files} | {
    "ddpm_jax.models",
    "ddpm_jax.build",
  } == set(named)
  assert len(named) == len(set(named))


def test_the_reference_says_where_a_module_is_tested():
  hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
  page = hooks["on_page_markdown"]((hooks["REFERENCE"] / "steps.md").read_text())
  assert re.search(r"^::: ddpm_jax\.diffusion\.grid\n\n\*Tested in .*`tests/exact/test_tables.py`", page, re.M)


def test_docstrings_have_no_links_by_accident():
  """`table[name](value)` outside of backticks and examples is a link to Markdown, and stops the build."""
  for path in (ROOT / "ddpm_jax").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        prose = re.sub(r"`[^`]*`|^ {4}.*$", "", ast.get_docstring(node) or "", flags=re.M)
        assert not re.search(r"\]\((?!http)", prose), f"{path.name}: {prose}"


def test_the_table_of_published_weights_is_that_of_the_registry():
  published = runpy.run_path(str(ROOT / "docs" / "published.py"))
  assert published["PAGE"].read_text() == published["page"](), "run python docs/published.py"


def test_the_page_of_formats_says_what_the_code_does():
  formats = runpy.run_path(str(ROOT / "docs" / "formats.py"))
  assert formats["PAGE"].read_text() == formats["page"](), "run python docs/formats.py"


IN_TABLE = re.compile(r"`(ddpm-jax [^`]*)`")
BLOCK = re.compile(r"^```bash\n(?P<fenced>.*?)^```|(?P<indented>(?:^ {4}.*\n)+)", re.M | re.S)


def commands(path: pathlib.Path) -> list[str]:
  """The ddpm-jax lines of a page's blocks or a module's docstring, without the words that explain them at the right."""
  text = path.read_text()
  if path.suffix == ".md":
    text = "".join(found[0] for found in BLOCK.finditer(text))
  else:
    text = text.split('"""')[1].replace("\\\\", "\\")
  if path.parent == ROOT and path.name.startswith("README"):  # its table
    text += "\n".join(IN_TABLE.findall(path.read_text()))
  lines = (line.strip() for line in re.sub(r"\\\n\s*", " ", text).splitlines())
  return [re.sub(r"\s{3,}[^-\s].*", "", line) for line in lines if line.startswith("ddpm-jax ")]


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readme_is_short_and_so_are_its_commands(name):
  text = (ROOT / name).read_text()
  assert len(text.splitlines()) < 90
  short = IN_TABLE.findall(text)
  assert len(short) >= 30
  assert [command for command in short if len(command) > 80] == []
  assert short == IN_TABLE.findall((ROOT / "README.md").read_text())


def test_every_command_that_is_written_down_parses(monkeypatch):
  asked = []
  for name in main.COMMANDS:
    monkeypatch.setattr(importlib.import_module(f"ddpm_jax.cli.{name}"), "run", asked.append)
  written = [(path, command) for path in WITH_COMMANDS for command in commands(path)]
  assert len(written) > 80
  for path, command in written:
    errors = io.StringIO()
    try:
      with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        assert main.run(shlex.split(command, comments=True)[1:]) == 0
    except SystemExit as end:
      assert end.code == 0, f"{name_of(path)}: {command}\n{errors.getvalue().splitlines()[-1]}"
      continue
    args = asked.pop()
    published = registry.PUBLISHED.get(getattr(args, "workdir", None))
    changed = published.config() if published else config.default()
    config.override(config.load(args.config) if getattr(args, "config", None) else changed, args.overrides)


def test_the_functions_on_the_python_page_run():
  page = (ROOT / "docs" / "python.md").read_text()
  functions = next(code for code in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "GaussianSampler" in code)
  found: dict = {}
  exec(functions, found)
  assert found["x"].shape == (64, 32, 32, 3) and found["beliefs"].shape == (50, 64, 32, 32, 3)


@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_an_example_is_short_and_runs(path, tmp_path, monkeypatch, capsys):
  whole = path.stem == "ddpm_in_one_file"
  assert len(path.read_text().splitlines()) <= (100 if whole else 30)
  monkeypatch.setattr(sys, "argv", [str(path), *(["--steps", "2"] if whole else [])])
  monkeypatch.chdir(tmp_path)
  promotion = jax.config.jax_numpy_rank_promotion
  jax.config.update("jax_numpy_rank_promotion", "allow")  # as for whoever copies it
  try:
    runpy.run_path(str(path), run_name="__main__")
  finally:
    jax.config.update("jax_numpy_rank_promotion", promotion)
    SOURCES.pop("discs", None)  # which other tests do not know
  assert capsys.readouterr().out


@pytest.mark.parametrize("call", ["import ddpm_jax", "from ddpm_jax.cli import main; main.run(['--help'])"])
def test_importing_and_helping_load_nothing_heavy(call):
  heavy = "{'jax', 'flax', 'numpy', 'ml_collections', 'matplotlib', 'grain', 'orbax'}"
  program = f"import sys\ntry: {call}\nexcept SystemExit: pass\nassert not {heavy} & set(sys.modules), sys.modules.keys()"
  subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, capture_output=True)
