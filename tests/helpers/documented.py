"""Finds the commands of the documents: README, docs/, --help, configs, script headers and notebooks."""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]
DOCSTRINGS = [
  *sorted((ROOT / "configs").glob("[a-z]*.py")),
  *sorted((ROOT / "ddpm_jax" / "cli").glob("[a-z]*.py")),
  *sorted((ROOT / "benchmarks").glob("*.py")),
]
SCRIPTS = sorted(path for path in (ROOT / "launch").iterdir() if path.is_file())
NOTEBOOKS = sorted((ROOT / "launch" / "colab").glob("*.ipynb"))

SETTING = r"(?:[A-Z_]+=(?:\"[^\"]*\"|\S+) )*"
PROGRAMS = r"(?:ddpm-jax|bash|python3?|pip|mypy|source|cp|git|pre-commit|sbatch|kubectl|docker|launch/\S+)"
COMMAND = re.compile(rf"^(?:{SETTING}{PROGRAMS} .*|ddpm-jax|mypy)$")
BLOCK = re.compile(r"^```bash\n(?P<fenced>.*?)^```|(?P<indented>(?:^ {4}.*\n)+)", re.M | re.S)
IN_TABLE = re.compile(r"`(ddpm-jax [^`…]*|bash launch/[^`…]*|python (?:benchmarks|docs)/[^`…]*)`")


def _text(path: pathlib.Path) -> str:
  """The part of a file that holds commands, a command per line."""
  text = path.read_text()
  if path in NOTEBOOKS:
    lines = [line for cell in json.loads(text)["cells"] for line in cell["source"]]
    return "\n".join(line.strip().lstrip("!") for line in lines if line.startswith("!")) + "\n"
  if path.suffix == ".md":
    blocks = "".join(found[0] for found in BLOCK.finditer(text))
    table = "\n".join(IN_TABLE.findall(text)) if path.parent == ROOT and path.name.startswith("README") else ""
    return blocks + table
  if path.suffix == ".py":
    return "\n".join(text.split('"""')[1::2]).replace("\\\\", "\\")
  return "\n".join(line[1:] for line in text.splitlines() if line.startswith("#"))


def commands(path: pathlib.Path) -> list[str]:
  """The commands of one document, without line breaks and without the words that explain them at the right."""
  lines = (line.strip() for line in re.sub(r"\\\n\s*", " ", _text(path)).splitlines())
  found = (re.sub(r"\s{3,}[^-\s'\"].*|\s+#\s.*", "", line).strip() for line in lines if COMMAND.match(line))
  return [command for command in dict.fromkeys(found) if not command.endswith((".", "ddpm-jax"))]


def documents() -> dict[str, list[str]]:
  """The commands of every document that has some."""
  files = [*PAGES, *DOCSTRINGS, *SCRIPTS, *NOTEBOOKS]
  return {str(path.relative_to(ROOT)): found for path in files if (found := commands(path))}
