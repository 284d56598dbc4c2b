"""Memory traffic and collectives of a compiled program, read from its text.

XLA's own cost analysis counts the body of a loop once. Here every instruction counts as often as it runs.
"""

import collections
import dataclasses
import math
import re

# Bytes that cross a chip's links per byte of an array, at best, on many chips (ring algorithms)
COLLECTIVES = {
  "all-gather": 1,  # of the result
  "reduce-scatter": 1,  # of the operand
  "all-reduce": 2,  # one of each
  "all-to-all": 1,
  "ragged-all-to-all": 1,
  "collective-permute": 1,
  "collective-broadcast": 1,
}

# Instructions that only rename the results of others, or whose bodies are counted instead
_FREE = {
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "while",
  "call",
  "conditional",
  "after-all",
  "partition-id",
  "replica-id",
  "iota",
  "opt-barrier",
  "copy-done",
  "async-start",
  "async-done",
  "async-update",
}

_SLICES = ("slice", "dynamic-slice")

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-0-9]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_ARRAY = re.compile(r"\b([a-z]+[0-9]+[a-z0-9]*|pred)\[([0-9,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:body|calls|to_apply|branch_computations|called_computations)=\{?([^,}\s]+(?:, %[^,}\s]+)*)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Traffic:
  """The traffic of one chip in one run of a program.

  Attributes:
    moved: bytes that the instructions read from and write to memory; each operand and result counts once.
    collectives: kind -> (how many, bytes of their arrays).
  """

  moved: int
  collectives: dict[str, tuple[int, int]]

  @property
  def sent(self) -> int:
    """Bytes that must cross the chip's links, at least."""
    return sum(COLLECTIVES[kind] * size for kind, (_, size) in self.collectives.items())


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction of a module's text."""

  name: str
  kind: str
  result: str  # its type
  operands: list[str]
  calls: list[str]
  trips: int | None  # of a loop, if its text contains them
  condition: str  # of a loop, the computation that ends it
  constant: int | None  # of a constant its value, of a parameter its number


def traffic(text: str) -> Traffic:
  """Reads the text of an optimized module, `compiled.as_text()`."""
  computations, entry = parse(text)
  total = 0
  found = collections.defaultdict(lambda: [0, 0])

  def visit(name: str, times: int, fused: bool) -> None:
    nonlocal total
    instructions = computations.get(name, {})
    for instruction in instructions.values():
      operands = [instructions[o].result for o in instruction.operands if o in instructions]
      kind = instruction.kind.removesuffix("-start")
      if kind in COLLECTIVES:
        counted = found[kind]
        counted[0] += times
        counted[1] += times * _moved_between_chips(kind, instruction, operands)
      if not fused and not is_free(instruction):
        total += times * moved_by(instruction, instructions, computations)
      turns = _turns(instruction, computations) if kind == "while" else 1
      for called in instruction.calls:
        visit(called, times * turns, fused or kind not in ("while", "call", "conditional"))

  visit(entry, 1, False)
  return Traffic(total, {kind: (count, size) for kind, (count, size) in sorted(found.items())})


def is_free(instruction: Instruction) -> bool:
  """Whether an instruction moves nothing itself."""
  return instruction.kind in _FREE or instruction.kind.endswith("-done")


def moved_by(
  instruction: Instruction, among: dict[str, Instruction], computations: dict[str, dict[str, Instruction]]
) -> int:
  """Bytes that an instruction of the computation `among` reads and writes: each operand and result once.

  A fusion that only slices an operand reads the slices, and one that updates a slice in place writes the slice.
  """
  given = [among[o] if o in among else None for o in instruction.operands]
  if instruction.kind in _SLICES:
    return 2 * _in_memory(instruction.result)
  read = [0 if x is None or x.kind == "tuple" else _in_memory(x.result) for x in given]
  written = _in_memory(instruction.result)
  body = computations.get(instruction.calls[0], {}) if instruction.kind == "fusion" and instruction.calls else {}
  for parameter in body.values():
    if parameter.kind == "parameter" and parameter.constant is not None and parameter.constant < len(read):
      read[parameter.constant] = min(read[parameter.constant], _read(parameter, body))
  return sum(read) + written


def _read(parameter: Instruction, fusion: dict[str, Instruction]) -> int:
  """Bytes that a fusion reads of an operand: its slices, if nothing else uses it."""
  whole = _in_memory(parameter.result)
  count = _elements(parameter.result)
  sliced = 0
  found = [parameter]
  while found:
    name = found.pop().name
    users = [i for i in fusion.values() if name in i.operands]
    if not users or any(i.kind not in (*_SLICES, "convert", "bitcast") for i in users):
      return whole
    sliced += sum(_elements(i.result) for i in users if i.kind in _SLICES)
    found += [i for i in users if i.kind not in _SLICES]
  return min(whole, sliced * whole // max(count, 1))


def _turns(loop: Instruction, computations: dict[str, dict[str, Instruction]]) -> int:
  """The trip count of a loop. The TPU compiler states it only in the condition, counter < constant."""
  if loop.trips is not None:
    return loop.trips
  condition = computations.get(loop.condition, {}).values()
  return max((i.constant for i in condition if i.kind == "constant" and i.constant is not None), default=1)


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
  """(computation -> its instructions by name, name of the entry)."""
  computations: dict[str, dict[str, Instruction]] = {}
  current = {}
  entry = ""
  for line in text.splitlines():
    if header := _COMPUTATION.match(line):
      current = computations.setdefault(header[2], {})
      entry = header[2] if header[1] else entry
    elif match := _INSTRUCTION.match(line):
      name, result, kind, rest = match.groups()
      inside, attributes = _split(rest)
      names = [part.strip().lstrip("%") for group in _CALLED.findall(attributes) for part in group.split(",")]
      trips = _TRIPS.search(attributes)
      current[name] = Instruction(
        name,
        kind,
        result,
        re.findall(r"%([\w.\-]+)", inside),
        names,
        int(trips[1]) if trips else None,
        condition[1] if (condition := _CONDITION.search(attributes)) else "",
        int(inside) if kind in ("constant", "parameter") and inside.isdigit() else None,
      )
  return computations, entry


def _split(rest: str) -> tuple[str, str]:
  """The text between the parentheses of an instruction, and the rest."""
  depth = 1
  for i, character in enumerate(rest):
    depth += (character == "(") - (character == ")")
    if not depth:
      return rest[:i], rest[i + 1 :]
  return rest, ""


def _moved_between_chips(kind: str, instruction: Instruction, operands: list[str]) -> int:
  result = _size(instruction.result)
  given = sum(map(_size, operands))
  if kind == "reduce-scatter":
    return given
  if instruction.kind.endswith("-start") and kind in ("all-gather", "collective-permute") and result > given:
    return result - given  # the type of these repeats the operands
  return result


def _in_memory(kind: str) -> int:
  """Bytes of an array type in main memory; the layout S(1) is on-chip memory of a TPU."""
  return sum(size for size, layout in _arrays(kind) if "S(" not in layout)


def _size(kind: str) -> int:
  return sum(size for size, _ in _arrays(kind))


def _elements(kind: str) -> int:
  return sum(math.prod(map(int, filter(None, shape.split(",")))) for _, shape, _ in _ARRAY.findall(kind))


def _arrays(kind: str) -> list[tuple[int, str]]:
  """(bytes, layout) of each array of a type.

  >>> _arrays("(bf16[4,8]{1,0:T(8,128)S(1)}, f32[])")
  [(64, '{1,0:T(8,128)S(1)}'), (4, '')]
  """
  found = []
  for name, shape, layout in _ARRAY.findall(kind):
    bits = 8 if name == "pred" else int(re.search(r"\d+", name)[0])
    found.append((math.prod(map(int, filter(None, shape.split(",")))) * bits // 8, layout))
  return found
