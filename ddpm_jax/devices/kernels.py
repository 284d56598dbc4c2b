"""The kernels of a compiled GPU program: their number, purpose and memory traffic."""

import collections
import dataclasses
import re

from ddpm_jax.devices import hlo

SMALL = 1e6  # bytes: below this a kernel takes as long as its launch

_NAMES = re.compile(r'%([\w.\-]+) = [^\n]*?op_name="([^"]*)"')
_TARGETS = re.compile(r'%([\w.\-]+) = [^\n]*?custom_call_target="([^"]+)"')


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One kernel.

  Attributes:
    name: of the instruction.
    kind: its purpose; see `kind_of`.
    library: the name of a library call, such as "__cudnn$convForward"; otherwise "".
    moved: bytes read and written.
    operation: the JAX operation that it implements.
  """

  name: str
  kind: str
  library: str
  moved: int
  operation: str


@dataclasses.dataclass(frozen=True)
class Summary:
  """The kernels of a program: of its entry, or of one step of the loop in which it spends its time.

  Attributes:
    count: kernels.
    small: of those, the ones that move less than SMALL bytes.
    moved: bytes by kind, largest first.
    libraries: calls of attention and convolution libraries by name.
    largest: the kernels with the most traffic.
    in_loop: whether this is one step of a loop.
  """

  count: int
  small: int
  moved: dict[str, int]
  libraries: dict[str, int]
  largest: list[Kernel]
  in_loop: bool


def summary(text: str, detail: int = 25) -> Summary:
  """Reads the text of an optimized module; `detail`: how many of the largest kernels to list."""
  computations, entry = hlo.parse(text)
  names = {match[1]: match[2] for match in _NAMES.finditer(text)}
  targets = {match[1]: match[2] for match in _TARGETS.finditer(text)}
  calls = lambda name: sum(i.kind == "custom-call" for i in computations[name].values())
  body = max(_run_as_such(computations, entry), key=lambda name: (calls(name), len(computations[name])))
  found = []
  for name, instruction in computations[body].items():
    if hlo.is_free(instruction):
      continue
    library = targets.get(name, "")
    operation = names.get(name, "")
    moved = hlo.moved_by(instruction, computations[body], computations)
    found.append(Kernel(name, kind_of(instruction.kind, library, operation), library, moved, operation))
  moved = collections.Counter()
  for kernel in found:
    moved[kernel.kind] += kernel.moved
  return Summary(
    count=len(found),
    small=sum(kernel.moved < SMALL for kernel in found),
    moved=dict(moved.most_common()),
    libraries=dict(collections.Counter(k.library for k in found if re.search("conv|fmha", k.library)).most_common()),
    largest=sorted(found, key=lambda kernel: -kernel.moved)[:detail],
    in_loop=body != entry,
  )


def kind_of(instruction: str, library: str, operation: str) -> str:
  """The purpose of a kernel, from its instruction, the library that it calls, and the JAX operation."""
  if instruction.removesuffix("-start") in hlo.COLLECTIVES:
    return "collectives"
  if "fmha" in library or "dot_product_attention" in operation:
    return "attention"
  if "conv" in library or "conv_general_dilated" in operation:
    return "convolutions"
  if re.search(r"group_norm|/norm\d?/", operation):
    return "norms"
  if "matmul" in library or "dot_general" in operation:
    return "products"
  last = operation.rsplit("/", 1)[-1]
  if instruction == "copy" or last in ("concatenate", "split", "slice", "transpose", "pad", "repeat", "broadcast_in_dim"):
    return "copies"
  if "jvp" not in operation and "while" not in operation and "step" in operation:
    return "optimizer"
  return "other"


def _run_as_such(computations: dict, entry: str) -> set[str]:
  """The entry and what it calls, but not what is fused."""
  found = set()

  def visit(name: str) -> None:
    if name in found or name not in computations:
      return
    found.add(name)
    for instruction in computations[name].values():
      if instruction.kind in ("while", "call", "conditional"):
        for called in instruction.calls:
          visit(called)

  visit(entry)
  return found
