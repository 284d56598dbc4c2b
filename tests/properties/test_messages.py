"""What the sources say to users: every UserError is short, and is written as ENGLISH.md asks."""

import ast
import pathlib
import re

import pytest

import ddpm_jax
from ddpm_jax.errors import LONGEST

PACKAGE = pathlib.Path(ddpm_jax.__file__).parent
WORDS = 12  # characters that a value in a message counts
ARCHAIC = re.compile(r"\b(anew|whoever|whatsoever|nobody|for ever|weights_only=False|allow_pickle)\b")


def messages() -> list[tuple[str, str]]:
  """(place, text with its values as ~) of every UserError that the package raises with a literal."""
  found = []
  for file in sorted(PACKAGE.rglob("*.py")):
    for node in ast.walk(ast.parse(file.read_text())):
      name = getattr(getattr(node, "func", None), "id", None)
      if isinstance(node, ast.Call) and name in ("UserError", "CheckpointError", "Mismatch", "CorruptImage") and node.args:
        if text := _text(node.args[0]):
          found.append((f"{file.relative_to(PACKAGE)}:{node.lineno}", text))
  return found


def _text(node: ast.AST) -> str:
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    return node.value
  if isinstance(node, ast.JoinedStr):
    return "".join(_text(part) if isinstance(part, ast.Constant) else "~" * WORDS for part in node.values)
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
    return _text(node.left) + _text(node.right)
  return ""


MESSAGES = messages()


def test_there_are_messages():
  assert len(MESSAGES) > 300


@pytest.mark.parametrize("rule", ["short", "printable", "English"])
def test_messages_follow_the_rules(rule):
  broken = {
    "short": lambda text: len(text) > LONGEST,
    "printable": lambda text: not text.isprintable(),
    "English": lambda text: bool(ARCHAIC.search(text)),
  }[rule]
  assert [(place, text) for place, text in MESSAGES if broken(text)] == []
