"""Pieces of a self-contained HTML page: its style, pictures inside it, and tables of values."""

import base64
import html
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

PICTURES = {".png": "image/png", ".gif": "image/gif"}

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent); }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { margin-top: 2.5rem; font-size: 1.25rem; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; opacity: .8; overflow-wrap: anywhere; }
img { display: block; height: auto; }
img.pixels { image-rendering: pixelated; width: min(100%, 32rem); }
img.plot { max-width: 100%; background: white; }
img.table { max-width: 100%; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: normal; opacity: .8; overflow-wrap: anywhere; }
td { overflow-wrap: anywhere; min-width: 9rem; font-variant-numeric: tabular-nums; }
.columns td { min-width: 4rem; white-space: nowrap; }
summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
pre { padding: .75rem; border: 1px solid var(--line); border-radius: .4rem; }
@media (max-width: 30rem) {
  img.plot { max-width: none; width: 36rem; }
  .values tr, .values th, .values td { display: block; border: 0; padding: 0; }
  .values td { padding-bottom: .5rem; font-weight: 600; }
}
"""


def document(title: str, sections: Sequence[tuple[str, str]]) -> str:
  """A whole page of (heading, HTML) sections; empty ones are left out."""
  body = "".join(f"<section><h2>{heading}</h2>{content}</section>\n" for heading, content in sections if content)
  title = html.escape(title)
  return (
    f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
    f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n'
    f"<body>\n<h1>{title}</h1>\n{body}</body>\n</html>\n"
  )


def details(summary: str, content: str) -> str:
  """Content that the reader unfolds."""
  return f"<details><summary>{html.escape(summary)}</summary>{content}</details>\n"


def preformatted(text: str) -> str:
  """Text in a fixed-width font, as it stands."""
  return f"<pre>{html.escape(text)}</pre>\n"


def picture(file: pathlib.Path, caption: str, kind: str) -> str:
  """A figure with the picture inside; `kind` is a class of STYLE, "pixels": enlarged without smoothing."""
  data = base64.b64encode(file.read_bytes()).decode()
  caption = html.escape(caption)
  return (
    f'<figure><div class="wide"><img class="{kind}" alt="{caption}" src="data:{PICTURES[file.suffix]};base64,{data}">'
    f"</div><figcaption>{caption}</figcaption></figure>\n"
  )


def table(rows: Sequence[tuple[str, Any]]) -> str:
  """Two columns: names and values. On a phone each value stands below its name."""
  lines = "".join(f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(show(value))}</td></tr>" for name, value in rows)
  return f'<div class="wide"><table class="values">{lines}</table></div>\n'


def show(value: Any) -> str:
  """A value for reading: numbers to four digits, hashes cut.

  Examples:
    >>> show(3.14159), show(50000), show("0123456789abcdef" * 4), show(True)
    ('3.142', '50,000', '0123456789abcdef…', 'True')
  """
  if isinstance(value, bool) or value is None:
    return str(value)
  if isinstance(value, int):
    return f"{value:,}"
  if isinstance(value, float):
    return f"{value:.4g}"
  text = str(value)
  return f"{text[:16]}…" if len(text) == 64 and " " not in text else text


def flat(node: Any, path: tuple[str, ...] = ()) -> Sequence[tuple[str, Any]]:
  """(dotted name, value) of everything in nested dicts.

  Examples:
    >>> flat({"a": 1, "b": {"c": 2}})
    [('a', 1), ('b.c', 2)]
  """
  if not isinstance(node, Mapping):
    return [(".".join(path), node)]
  return [pair for key, child in node.items() for pair in flat(child, (*path, str(key)))]


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table with a head and any number of columns; it scrolls sideways where it does not fit."""
  line = lambda tag, cells: "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
  body = "".join(line("td", row) for row in rows)
  return f'<div class="wide"><table class="columns">{line("th", head)}{body}</table></div>\n'
