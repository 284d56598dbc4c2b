"""The exceptions for what a user can cause: errors that can be fixed, and a request to stop."""

import re

LONGEST = 300  # characters of a message
_WORD = 90  # characters of a word, such as a path, in a message that is too long


class UserError(ValueError):
  """One or two sentences for the user: the value, the rule, the remedy. The command line prints it and exits with code 2.

  Values from files and libraries may be part of a message, so it is made fit to print: characters that control a terminal
  are shown as \\x.., line breaks become spaces, and what is longer than 300 characters is shortened.
  """

  def __init__(self, message: object = ""):
    super().__init__(shortened(printable(str(message))))


class Terminated(BaseException):
  """SIGTERM arrived. Like KeyboardInterrupt it unwinds the stack, so that locks and temporary files are removed."""


def printable(text: str) -> str:
  """`text` on one line, with characters that cannot be printed as escapes.

  Examples:
    >>> print(printable("a\\x1b[31m\\nb"))
    a\\x1b[31m b
  """
  text = re.sub(r"[\t\r\n]+ *", " ", text).strip()
  return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def shortened(text: str, longest: int = LONGEST) -> str:
  """`text` in at most `longest` characters: long words lose their middle first, then the whole text does.

  Examples:
    >>> shortened("one two three four", 11)
    'one  … four'
  """
  if len(text) > longest:
    text = re.sub(rf"\S{{{_WORD},}}", lambda word: _without_middle(word[0], _WORD), text)
  return _without_middle(text, longest)


def _without_middle(text: str, longest: int) -> str:
  if len(text) <= longest:
    return text
  tail = (longest - 3) // 2
  return f"{text[: longest - 3 - tail]} … {text[len(text) - tail :]}"
