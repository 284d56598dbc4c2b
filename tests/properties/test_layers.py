"""The house rules of who may import whom, read from the sources."""

import ast
import pathlib
import subprocess
import sys

import pytest

import ddpm_jax

PACKAGE = pathlib.Path(ddpm_jax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Inside diffusion/ a module imports only smaller numbers. A new module needs a place here.
LAYERS = {
  0: "gaussian schedule noise time_sampling",
  1: "grid",
  2: "steps trajectory",
  3: "prediction loss_weights sde consistency",
  4: "second_heads jacobian transforms covariance guidance preconditioning mixture ode_likelihood lanczos guidance_rules",
  5: "kernel solvers moments",
  6: "samplers likelihood dpm_solver heun unipc adams dpm_solver_v3",
  7: "losses restoring interpolation editing step_costs flow",
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names.split()}


def imports(file: pathlib.Path, top_level: bool = False) -> set[str]:
  """Full names that a file imports: "a.b" for `import a.b`, and "a.b.c" for `from a.b import c`."""
  tree = ast.parse(file.read_text())
  names = set()
  for node in tree.body if top_level else ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{file}: imports are absolute"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def within(prefix: str, names: set[str]) -> set[str]:
  return {name for name in names if name == prefix or name.startswith(f"{prefix}.")}


@pytest.mark.parametrize("file", sorted((PACKAGE / "diffusion").glob("[!_]*.py")), ids=lambda file: file.stem)
def test_the_mathematics_is_layered(file):
  assert file.stem in LAYER, f"give diffusion/{file.name} a place in LAYERS"
  ours = within("ddpm_jax", imports(file)) - within("ddpm_jax.errors", imports(file))
  assert ours == within("ddpm_jax.diffusion", ours), "diffusion/ imports nothing else of the package"
  for name in ours:
    other = name.split(".")[2]
    assert LAYER[other] < LAYER[file.stem], f"{file.stem} (layer {LAYER[file.stem]}) imports {other} (layer {LAYER[other]})"


# The house, from the ground up: a folder (or file) of the package imports only what stands on a lower floor.
FLOORS = (
  "errors",
  "sizes",
  "importable",
  "fields",
  "config",
  "named",
  "diffusion",
  "models",
  "devices",
  "files",
  "metrics",
  "data",
  "training",
  "features",
  "build",
  "convert",
  "evaluation",
  "jobs",
  "explore",
  "cli",
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file):
  """No folder imports one above it, so that no circle between folders can arise."""
  place = file.relative_to(PACKAGE).with_suffix("").parts[0]
  if place in ("__init__", "__main__", "configs"):
    return  # the face of the package, its entry point, and data that config.load reads
  for name in within("ddpm_jax", imports(file)):
    other = name.split(".")[1] if "." in name else "__init__"
    if other in FLOORS and other != place:
      assert FLOORS.index(other) < FLOORS.index(place), f"{place} imports {name}, which is on a higher floor"


def test_models_and_diffusion_do_not_meet():
  for file in (PACKAGE / "models").glob("*.py"):
    assert not within("ddpm_jax.diffusion", imports(file)), file


@pytest.mark.parametrize("folder", ["build", "devices", "diffusion", "files", "metrics"])
def test_every_argument_has_a_type(folder):
  """setup.cfg asks mypy for the same; this is quick."""
  for file in (PACKAGE / folder).rglob("*.py"):
    tree = ast.parse(file.read_text())
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
      given = function.args
      arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, [given.vararg, given.kwarg])]
      bare = [argument.arg for argument in arguments if argument.annotation is None and argument.arg not in ("self", "cls")]
      assert not bare, f"{file}:{function.lineno} {function.name}({', '.join(bare)})"


@pytest.mark.parametrize(
  "library, allowed",
  [
    ("absl", ("cli",)),
    ("tensorflow", ()),  # TFDS reads without it; preparing a data set is TFDS's affair
    ("torch", ("files", "convert")),
  ],
)
def test_libraries_stay_where_they_belong(library, allowed):
  for file in FILES:
    if file.relative_to(PACKAGE).parts[0] not in allowed:
      assert not within(library, imports(file)), f"{file} imports {library}"
    if library != "absl":
      assert not within(library, imports(file, top_level=True)), f"{file} imports {library} when it is imported"


def test_the_package_can_be_imported_where_tensorflow_and_torch_cannot():
  modules = [".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in FILES if file.stem != "__main__"]
  code = f"""
import importlib, sys
sys.modules["tensorflow"] = sys.modules["torch"] = None
for module in {[module.removesuffix(".__init__") for module in modules]}:
  importlib.import_module(module)
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
  assert done.returncode == 0, done.stderr[-2000:]
