"""CLIP's tokenizer: byte-pair encoding (Sennrich 2016) of text as 77 tokens, with OpenAI's published vocabulary.

A word's bytes are written as printable letters, and its last one is marked "</w>". Then the adjacent pair that comes first
in the list of merges is joined, repeatedly. Text is lower-cased and its HTML entities are resolved. OpenAI also repairs
wrongly decoded text with ftfy, which leaves correct text unchanged; this is not done here.
"""

import functools
import html
import os
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from ddpm_jax.files import archives, download, limits, tables

CONTEXT = 77  # tokens of a text, with the start and the end
SIZE = 49_408  # of the vocabulary
START = "<|startoftext|>"
END = "<|endoftext|>"

MERGES = download.File(
  "bpe_simple_vocab_16e6.txt.gz",
  "https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz",
  "sha256:924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
)


class Tokenizer:
  """Texts to tokens; `merges` are pairs in order of precedence."""

  def __init__(self, merges: Sequence[tuple[str, str]]):
    letters = list(_letters().values())
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    self.number = {word: index for index, word in enumerate(words)}
    self._rank = {pair: index for index, pair in enumerate(merges)}

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """int32 [N, 77]: the start token, the text, the end token, zeros. A long text is truncated before the end token."""
    tokens = np.zeros((len(texts), CONTEXT), np.int32)
    for row, text in zip(tokens, texts, strict=True):
      numbers = [self.number[START], *self.encode(text)][: CONTEXT - 1] + [self.number[END]]
      row[: len(numbers)] = numbers
    return tokens

  def encode(self, text: str) -> list[int]:
    """The tokens of a text, without start and end."""
    text = " ".join(html.unescape(html.unescape(text)).split()).lower()
    letters = _letters()
    return [
      self.number[part] for word in split(text) for part in self._join("".join(letters[byte] for byte in word.encode()))
    ]

  @functools.lru_cache(maxsize=100_000)  # noqa: B019  (tokenizers live as long as the process)
  def _join(self, word: str) -> tuple[str, ...]:
    """The parts of a word after all merges."""
    parts = [*word[:-1], word[-1] + "</w>"]
    while len(parts) > 1:
      pairs = set(zip(parts, parts[1:], strict=False))
      first = min(pairs, key=lambda pair: self._rank.get(pair, np.inf))
      if first not in self._rank:
        break
      joined = []
      position = 0
      while position < len(parts):
        both = tuple(parts[position : position + 2]) == first
        joined.append("".join(first) if both else parts[position])
        position += 2 if both else 1
      parts = joined
    return tuple(parts)


def load_tokenizer(path: str | os.PathLike | None = None) -> Tokenizer:
  """The published tokenizer, from `path` or from the cache.

  Raises:
    UserError: if the file is missing, damaged, or not a table of pairs.
  """
  path = path or download.fetch(MERGES)
  text = tables.decode(archives.read_maybe_gzip(path), path)
  with limits.damaged(path, "table of merges", "fetch the published one"):
    lines = text.split("\n")[1 : SIZE - 512 - 2 + 1]  # after the title; OpenAI uses this many of 262,000
    return Tokenizer([(first, second) for first, second in map(str.split, lines)])


def split(text: str) -> Iterator[str]:
  """Words: English endings such as 's, runs of letters, single digits, and runs of other characters except spaces.

  Examples:
    >>> list(split("it's 2 cats, naïve!"))
    ['it', "'s", '2', 'cats', ',', 'naïve', '!']
  """
  position = 0
  while position < len(text):
    ending = next((e for e in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if text.startswith(e, position)), None)
    kind = _kind(text[position])
    stop = position + 1
    if ending:
      stop = position + len(ending)
    elif kind in ("letter", "other"):
      while stop < len(text) and _kind(text[stop]) == kind:
        stop += 1
    if kind != "space":
      yield text[position:stop]
    position = stop


def _kind(character: str) -> str:
  if character.isspace():
    return "space"
  return {"L": "letter", "N": "digit"}.get(unicodedata.category(character)[0], "other")


@functools.cache
def _letters() -> dict[int, str]:
  """Every byte as a printable letter: itself if it is one, otherwise one from U+0100 on."""
  printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
  others = [byte for byte in range(256) if byte not in printable]
  return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}
