"""Every command of the documents runs as it stands, on stand-ins: small networks and data under the names that it gives.

A directory of a run is made when a command first names it, with untrained weights of a small network by the config of that
name. Data sets are the embedded digits, folders hold drawn images, published files are exported stand-ins. Numbers of images
are capped. Programs that are not ours (pip, kubectl, gcloud ...) are replaced by scripts that note their arguments.

Networks have no blocks, except for commands about the network itself, and the published configs are trained with --dry_run.

The suite runs the documents in QUICK; DDPM_JAX_DOCS=all runs every one, which takes minutes.
"""

import contextlib
import functools
import importlib.machinery
import os
import pathlib
import re
import shlex
import subprocess
import sys
from unittest import mock

import documented
import jax
import numpy as np
import pytest
import yaml
from PIL import Image
from weights import save_weights

from ddpm_jax import build, config
from ddpm_jax.cli import main
from ddpm_jax.convert import fetch, registry
from ddpm_jax.data import datasets
from ddpm_jax.features import classifier, inception_weights
from ddpm_jax.models.unet import UNet

ROOT = documented.ROOT
CANNOT = {  # what is not run here, and why
  r"ddpm-jax explore": "opens a page until Ctrl-C; tests/runs/test_explore.py opens and closes it",
  r"python benchmarks/": "takes minutes to hours, and some need PyTorch or a TPU's compiler",
  r"plan .*--topology": "needs libtpu; tests/exact/test_plan.py plans on virtual devices",
  r"--captions": "needs CLIP's weights; tests/exact/test_clip.py has small ones",
  r"data prepare cifar10 ": "needs the published archive; tests/properties/test_data_prepare.py makes a small one",
  r"ms_eps\.pth": "needs the authors' file of moments; tests/properties/test_measurements.py writes one",
  r"^source |^mypy$|^git ": "changes the shell, checks types, or needs the repository's history",
  r"convert (model-100|cd)\.pt": "needs files of other codebases; tests/properties/test_convert.py writes small ones",
  r"convert my\.pt .*num_heads": "needs a network with attention; tests/properties/test_convert.py converts them",
}
PUBLISHED = re.compile(r"--config (cifar10|celeb|imagenet|lsun|ffhq|consistency)")  # stand-ins of all of these are alike
CAP = {"--likelihood": 8, "--distance": 24, "--num_samples": 24, "--images": 16, "--samples": 24, "--ode": 2, "--level": 50}
ALIASES = {"C": "mnist_classifier", "CONDITIONAL": "mnist_cond", "SMALL": "mnist_sr:base", "LARGE": "mnist_sr"}
ALIASES |= {"N": "npr", "runs/mnist_14": "mnist_sr:base", "mnist_sr": "mnist_sr", "digits_hybrid": "digits:hybrid"}
DATA = ("cifar10", "mnist", "my_birds", "celeba64_ddim")
WEIGHTS = re.compile(r"\.(pt|pth|ckpt|safetensors)$")
REAL = re.compile("convert|perturbed_attention|--config.network")  # commands about the network itself
real_load = config.load


@contextlib.contextmanager
def shallow():
  """UNets without blocks: a first convolution, the embedding and a last one. They trace and compile in a blink."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(UNet, "encode", lambda net, h, emb, train: (h, [h]))
    patch.setattr(UNet, "decode", lambda net, h, skips, emb, train: h)
    yield


def small(spec: str):
  """The config of that name with a network that compiles in a second, on the digits, with 100 levels."""
  path, _, variant = spec.partition(":")
  if path.endswith(".py"):
    path = pathlib.Path(path).stem
  smoke = variant if variant.endswith("smoke") else "-".join(filter(None, (variant, "smoke")))
  found = real_load(f"{path}:{smoke}")
  tiny = dict(
    channels=8, channel_mult=(1, 1), num_res_blocks=1, attention_resolutions=(), groups=4, block_size=1, head_channels=8
  )
  found.network.update({name: value for name, value in tiny.items() if name in found.network})
  if found.schedule.name != "vp_sde" and "backbone" not in path:
    found.schedule = dict(name=found.schedule.name, T=100)
  asked = real_load(spec)
  found.data.holdout = asked.data.holdout
  if found.data.image_size is None and asked.data.image_size is not None:
    with found.ignore_type():
      found.data.image_size = 8
  found.train.update(total_steps=1, batch_size=8, checkpoint_every=1, preview_images=1)
  return found


def weights_of(made, folder: pathlib.Path) -> None:
  """A checkpoint of untrained weights; a second head stands on the network of the digits."""
  with made.unlocked(), made.ignore_type():
    made.data.update(image_size=4 if made.data.image_size == 4 else 8, channels=1, num_classes=10)
  module = build.model(made, 1, 10)
  params = build.initial_params(module, jax.random.key(0), made.data.image_size, 1)
  save_weights(str(folder / "checkpoints"), params, made.to_dict(), rate="0.999", step=1)


def stand_in(name: str, folder: pathlib.Path) -> None:
  """The run that a command names: by the config of that name, or of its beginning."""
  stem = ALIASES.get(name) or ALIASES.get(pathlib.Path(name).name, pathlib.Path(name).name)
  known = [key for key in config.available() if stem.split(":")[0].startswith(key)]
  spec = stem if stem.split(":")[0] in config.available() else max(known, key=len, default="digits")
  if spec in ("npr", "sn", "ocm", "mnist_npr", "mnist_sn"):
    backbone = folder.parent / "backbone"
    if not backbone.exists():
      weights_of(small("digits"), backbone)
    kind = spec.removeprefix("mnist_")
    command = ["train", "--config", kind, f"--config.train.backbone={backbone}", "--workdir", str(folder)]
    assert main.run(command) == 0
  else:
    weights_of(small(spec), folder)


def picture(path: pathlib.Path, seed: int) -> None:
  pixels = np.random.default_rng(seed).integers(0, 256, (12 + seed % 3, 12, 3)).astype(np.uint8)
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A working directory like a clone, with everything replaced that is large or not ours."""
  here = tmp_path_factory.mktemp("clone")
  for name in ("launch", "docs", "configs", "benchmarks", "setup.cfg", "pyproject.toml", "README.md"):
    (here / name).symlink_to(ROOT / name)
  for i in range(24):
    picture(here / "photos" / ("cat", "dog")[i % 2] / f"{i}.png", i)
  (here / "pets").symlink_to(here / "photos")
  images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1)).astype(np.uint8)
  np.savez(here / "samples.npz", arr_0=images)
  np.savez(here / "VIRTUAL_imagenet256_labeled.npz", arr_0=images)
  deep = here / "deep"  # where commands about the network itself run
  deep.mkdir()
  for name in ("launch", "docs", "configs", "photos", "images", "samples.npz"):
    (deep / name).symlink_to(here / name)
  tools = here / "tools"
  tools.mkdir()
  note = f'#!/bin/bash\necho "$(basename "$0")$(printf " %q" "$@")" >> {here}/calls\n'
  for name in ("pip", "sbatch", "kubectl", "gcloud", "ddpm-jax", "pre-commit", "mypy", "docker", "python3.12"):
    (tools / name).write_text(note)
    (tools / name).chmod(0o755)
  (here / "runs" / "quickstart").mkdir(parents=True)
  (here / "venv" / "bin").mkdir(parents=True)
  for i in range(24):
    picture(here / "images" / f"{i}.png", i)
  for name in ("python", "ddpm-jax"):
    (here / "venv" / "bin" / name).write_text(note)
    (here / "venv" / "bin" / name).chmod(0o755)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(here)
    patch.setenv("HOME", str(here))
    patch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    patch.setenv("VENV", str(here / "venv"))
    patch.setenv("DDPM_JAX_CACHE", str(here / "cache"))
    patch.setenv("DDPM_JAX_DATA", str(here / "data"))
    patch.setenv("JAX_NUM_CPU_DEVICES", "1")
    patch.setattr(config, "load", small)
    wandb = mock.MagicMock(__spec__=importlib.machinery.ModuleSpec("wandb", None))
    patch.setitem(sys.modules, "wandb", wandb)
    for name in DATA:
      patch.setitem(datasets.SOURCES, name, datasets.SOURCES["digits"])
    recipe = classifier.Recipe(steps=10, num_features=8)
    patch.setattr(classifier.Recipe, "suiting", classmethod(lambda cls, channels: recipe))
    judge = functools.cache(lambda: judge_of(recipe))
    patch.setattr(inception_weights, "load_inception", lambda *args, **options: judge())
    patch.setattr(fetch, "workdir", functools.cache(functools.partial(published, here / "published")))
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield here
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_numpy_rank_promotion", "raise")


def judge_of(recipe):
  train = datasets.SOURCES["digits"]("train", None, None, "adm")
  return classifier.train_classifier(train.images, train.labels, train.images, train.labels, recipe=recipe)


def published(folder: pathlib.Path, name: str) -> pathlib.Path:
  """Stands for the download and conversion of published weights."""
  weights_of(registry.find(name).config(), folder / name)
  return folder / name


def provide(command: list[str], here: pathlib.Path) -> None:
  """Makes the runs and files that a command reads."""
  reads = {"--workdir", "--init", "--weights", "--classifier", "--weaker", "--upsampler", "--npr", "--sn", "--guide"}
  for flag, value in zip(command, command[1:], strict=False):
    if flag in reads and (command[1] != "train" or flag == "--init") and value not in registry.PUBLISHED:
      wanted(value, here)
  for word in command:
    field, _, value = word.partition("=")
    if field in ("--config.train.backbone", "--config.sampling.guidance.model") and value not in registry.PUBLISHED:
      wanted(value, here)
    if field != word and value.startswith("runs/") and not field.startswith("--"):  # study --networks other=runs/other
      wanted(value, here)
    if field == "--config.sampling.moments" and not (here / value).exists():
      assert main.run(["moments", "--workdir", str(pathlib.Path(value).parents[1]), "--images", "4"]) == 0
    if field == "--config.sampling.flow" and not (here / value).exists():
      assert main.run(["moments", "--workdir", str(pathlib.Path(value).parents[1]), "--flow", "--images", "4"]) == 0
  if command[1] == "convert" and command[2].startswith("./") and not (here / command[2]).exists():
    wanted("cifar10_ddpm", here)
    assert main.run(["convert", "--export", command[2], "--workdir", str(here / "cifar10_ddpm")]) == 0
  if "convert" in command and "--export" not in command and WEIGHTS.search(command[2]) and not (here / command[2]).exists():
    like = command[command.index("--like") + 1] if "--like" in command else None
    entry = registry.of_file(command[2])
    source = here / f"source_of_{command[2]}"
    weights_of(entry.config() if entry else small(like or "digits"), source)
    assert main.run(["convert", "--export", command[2], "--workdir", str(source)]) == 0


def wanted(name: str, here: pathlib.Path) -> None:
  folder = here / name
  if not (folder / "checkpoints").exists():
    stand_in(name, folder)


def capped(command: list[str]) -> list[str]:
  """The command with fewer images, and on one device."""
  words = list(command)
  for i, word in enumerate(words[1:], 1):
    if words[i - 1] in CAP and word.isdigit():
      words[i] = str(min(int(word), CAP[words[i - 1]]))
    if word == "--seeds" or (word == "--images" and "-" in words[i + 1]):
      first, _, last = words[i + 1].partition("-")
      words[i + 1] = f"{first}-{min(int(last), int(first) + 7)}" if last.isdigit() else words[i + 1]
    if words[i - 1] == "--steps":
      words[i] = ",".join(str(min(int(K), 6 + k)) for k, K in enumerate(word.split(",")))
  words = [re.sub(r"(--config.mesh.fsdp)=\d+", r"\1=1", word) for word in words]
  words = [word.replace("grid=[250,", "grid=[50,").replace(",100,50,1]", ",20,10,1]") for word in words]  # of 100 levels
  words = [re.sub(r"(--config.train.total_steps)=\d+", r"\1=2", word) for word in words]
  if words[1] == "evaluate" and "--num_samples" not in words and {"--reference", "--make_reference"} & set(words):
    words += ["--num_samples", "24"] if "--make_reference" not in words else []
  if words[1] == "study":  # hundreds of cells otherwise
    words = [word.split(",")[0] if before == "--steps" else word for before, word in zip(["", *words], words, strict=False)]
    words += ["--samples", "24"] if "--samples" not in words else []
    words += ["--likelihood", "2"] if "--likelihood" not in words else []
    words += ["--steps", "5"] if "--steps" not in words else []
  if "--upsampler" in words and words[words.index("--upsampler") + 1] in registry.PUBLISHED:
    words[words.index("--weights") + 1] = "SMALL"  # whose images the stand-ins of published upsamplers enlarge
  if words[1] == "train" and PUBLISHED.search(shlex.join(words)):
    words += ["--dry_run"]
  if words[1] == "sample" and "--seeds" not in words:
    words += ["--seeds", "0-7"]
  return words


def run_ours(command: str, here: pathlib.Path) -> str | None:
  """Runs a ddpm-jax command in this process; what went wrong, or None."""
  words = capped(shlex.split(command))
  if REAL.search(command):
    os.chdir(here / "deep")
    try:
      provide(words, here / "deep")
      code = main.run(words[1:])
    finally:
      os.chdir(here)
  else:
    with shallow():
      provide(words, here)
      code = main.run(words[1:])
  return None if code == 0 else f"exit code {code}"


def run_shell(command: str, here: pathlib.Path) -> str | None:
  """Runs any other command in bash, and what it asked ddpm-jax to do in this process."""
  calls = here / "calls"
  calls.write_text("")
  command = re.sub(r"\[WORKDIR\]|\s{2}default .*|  +arguments go to pytest", "", command).replace(
    "gs://BUCKET", "gs://bucket"
  )
  done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, cwd=here)
  if done.returncode:
    return f"exit code {done.returncode}: {done.stderr[-300:]}"
  if "pip install" in command and (extra := re.search(r"\[(\w+)\]", command)):
    assert re.search(rf"^{extra[1]} =$", (ROOT / "setup.cfg").read_text(), re.M), f"no extra {extra[1]}"
  asked = [line for line in calls.read_text().splitlines() if line.startswith("ddpm-jax ")]
  if "slurm.sbatch" in command or "tpu_vm.sh" in command:
    asked.append("ddpm-jax train" + command.partition(" train")[2].replace("/shared/", ""))
  if "apply -f" in command:
    manifest = next(yaml.safe_load_all((ROOT / "launch" / "gke_jobset.yaml").read_text()))
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    asked.append(shlex.join(["ddpm-jax", *pod["containers"][0]["args"]]).replace("/runs/", "runs/"))
  failed = [f"{line}: {said}" for line in dict.fromkeys(asked) if (said := guarded(run_ours, line, here))]
  return "; ".join(failed) or None


def guarded(run, command: str, here: pathlib.Path) -> str | None:
  try:
    return run(command, here)
  except SystemExit as end:
    return None if end.code == 0 else f"exit code {end.code}"
  except Exception as error:  # one command of many: report them all
    return f"{type(error).__name__}: {error}"


DOCUMENTS = documented.documents()
QUICK = ("README.md", "CONTRIBUTING.md")
RUN = DOCUMENTS if os.environ.get("DDPM_JAX_DOCS") == "all" else QUICK
DONE: set[str] = set()  # by this process, in whatever document


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_commands_of_readme_are_short(page):
  found = [command for command in documented.commands(ROOT / page) if command.startswith("ddpm-jax")]
  assert len(found) >= 30
  assert not [command for command in found if len(command) > 80]


def test_readmes_count_the_published_models_and_show_the_same_commands():
  english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README.zh.md"))
  assert f"({len(registry.PUBLISHED)} models by name)" in english
  assert f"（{len(registry.PUBLISHED)} 个模型）" in chinese
  assert documented.commands(ROOT / "README.md") == documented.commands(ROOT / "README.zh.md")


def test_nearly_every_command_is_run():
  every = {command for found in DOCUMENTS.values() for command in found}
  left_out = {command for command in every if any(re.search(pattern, command) for pattern in CANNOT)}
  assert len(CANNOT) <= 10
  for pattern in CANNOT:
    assert any(re.search(pattern, command) for command in left_out), f"no command is like {pattern!r}: take it out"
  ours = {command for command in every - left_out if command.startswith("ddpm-jax")}
  assert len(ours) > 150 and len(every - left_out) > 170


@pytest.mark.parametrize("document", RUN)
def test_commands_of_a_document_run(document, place, capsys):
  failed = []
  for command in DOCUMENTS[document]:
    words = " ".join(command.split())
    if words in DONE or any(re.search(pattern, command) for pattern in CANNOT):
      continue
    DONE.add(words)
    if said := guarded(run_ours if command.startswith("ddpm-jax") else run_shell, command, place):
      printed = [line for line in capsys.readouterr().err.splitlines() if "ddpm-jax" in line][-1:]
      failed.append(f"{command}\n    {said} {' '.join(printed)}")
  assert not failed, "\n" + "\n".join(failed)
