"""The numbers of further families of checkpoints, and networks converted from them.

families.npz holds what families_index.json describes. Weights are small multiples of powers of two and stored as integers:
the array "GROUP/sd/KEY|e" is 2^e times the weight. Images are NCHW, as in their authors' code.
"""

import functools
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from reference import nhwc

from ddpm_jax import build
from ddpm_jax.convert import convert
from ddpm_jax.diffusion import schedule
from ddpm_jax.files import safetensors, torch_files

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
GROUPS = json.loads((GOLDEN / "families_index.json").read_text())["groups"]

ANSWERS = {  # what the files do not say
  "unet_m12": ["data.image_size=8"],
  "unet_m124_learnedvar": ["data.image_size=8", "schedule.name=cosine"],
  "unet_options": ["data.image_size=(12,20)", "schedule.name=cosine"],
  "adm_classcond": ["prediction.mean=edm", "schedule.T=5"],
  "adm_iddpm": ["prediction.mean=eps", "sampling.steps=5"],
  "ddpmpp": ["prediction.mean=edm", "schedule.T=5"],
  "ncsnpp": ["prediction.mean=ve", "schedule.T=5"],
  "unet_classcond": ["data.image_size=16", "network.head_channels=32", "prediction.mean=consistency"],
  "unet_lsunlike": ["data.image_size=16", "network.head_channels=16", "prediction.mean=consistency"],
  "consistency_like": ["schedule.name=linear", "schedule.T=1000", "prediction.mean=eps"],
  "attn_first_timestepclass": ["data.num_classes=10", "schedule.name=linear", "schedule.T=1000", "prediction.mean=eps"],
}


@functools.cache
def _file():
  return np.load(GOLDEN / "families.npz")


@functools.cache
def _names():
  return {key.partition("|")[0]: key for key in _file().files}


def has(name):
  return name in _names()


def stored(name):
  """The array "GROUP/NAME". Weights are float32."""
  key = _names()[name]
  exponent = key.partition("|")[2]
  return np.ldexp(np.float32(_file()[key]), -int(exponent)) if exponent else _file()[key]


@functools.cache
def weights(group):
  """A group's state_dict."""
  prefix = f"{GROUPS[group].get('state_dict_group', group)}/sd/"
  return {name.removeprefix(prefix): stored(name) for name in _names() if name.startswith(prefix)}


def groups(prefix):
  """The names of the groups below "sample/" and the like; for "" those of networks."""
  if prefix:
    return [name for name in GROUPS if name.startswith(prefix)]
  return [name for name in GROUPS if has(f"{name}/out") and "/" not in name]


def file_of(group, folder):
  """The checkpoint of a group as its authors' training writes it."""
  tensors = weights(group)
  if "config_json" in GROUPS[group]:
    options = GROUPS[group]["config_json"] | {"_class_name": "UNet2DModel"}
    (folder / "config.json").write_text(json.dumps(options))
    safetensors.write(folder / "diffusion_pytorch_model.safetensors", tensors)
    return folder
  if group == "unet_m12":
    tensors = {f"model.{key}": tensor for key, tensor in tensors.items()} | buffers()
  torch_files.write(folder / "weights.pt", tensors)
  return folder / "weights.pt"


def buffers(name="sigmoid_T1000", objective="pred_v"):
  """What lucidrains' GaussianDiffusion stores beside its network."""
  loss_weight = stored(f"schedule/{name}/loss_weight.{objective}.min_snr_False")
  return {"betas": stored(f"schedule/{name}/betas"), "loss_weight": loss_weight}


@functools.cache
def conversion(group, *answers):
  """The conversion of a group, by ANSWERS and further answers, which prevail."""
  with tempfile.TemporaryDirectory() as folder:
    return convert.convert(file_of(group, pathlib.Path(folder)), overrides=[*ANSWERS[group], *answers])


@functools.cache
def module(group, *answers):
  config = conversion(group, *answers).config
  return build.model(config, config.data.channels, config.data.num_classes)


@functools.cache
def _program(group, *answers):
  def apply(params, x, time, cond=None):
    return module(group, *answers).apply({"params": params}, x, time, cond)

  return jax.jit(apply, compiler_options={"xla_backend_optimization_level": 0})  # programs that run a few times


def network_of(group, config, *answers):
  """The network of a group behind the parameterization and time of `config`; one program per group and shape."""
  params = conversion(group, *answers).params
  return build.network(config, module(group, *answers), params).replace(apply=_program(group, *answers))


def output(group, x, time, cond):
  """What the network itself returns for images [B, C, H, W], as [B, H, W, C]."""
  return _program(group)(conversion(group).params, nhwc(x), jnp.asarray(time, jnp.float32), cond)


def condition(source):
  """The labels of a group, by either of their names, or None."""
  for name in ("y", "class_labels"):
    if has(f"{source}/{name}"):
      labels = stored(f"{source}/{name}")
      return {"label": labels.argmax(1).astype(np.int32) if labels.ndim == 2 else np.int32(labels)}
  return None


def levels_at(sigma):
  """(schedule, n): levels at the distinct `sigma`, which may include 0, and the level of each."""
  sigma = np.float64(sigma)
  distinct = np.unique(sigma[sigma > 0])
  return schedule.Schedule(np.append(1.0, 1 / (1 + distinct**2))), np.searchsorted(np.append(0, distinct), sigma)


def draw(denoiser, sampler, x_T, draws, cond=None):
  """Images [B, H, W, C] of `sampler`; draws(k) is the noise of row k.

  Rows run one by one, so that a network compiles once for all samplers.
  """
  state = sampler.init(jnp.asarray(x_T, jnp.float32))
  for k in range(len(sampler.steps.left)):
    row = jax.tree.map(lambda column: jnp.asarray(column[k]), sampler.steps)  # noqa: B023
    state, _ = sampler.step(lambda row, x: draws(k), state, row, denoiser, cond)  # noqa: B023
  return np.asarray(sampler.image(state))


def by_row(draws):
  """The noise [K, B, C, H, W] of rows 0, 1, ...; later rows need none."""
  images = np.float32(nhwc(draws))
  return lambda k: images[k] if k < len(images) else np.zeros_like(images[0])


def close(found, want, tolerance=2e-4):
  """The tolerance of families_index.json for networks: 2e-4 of the largest output (float32 against float64: 2e-5)."""
  np.testing.assert_allclose(found, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


def close_image(found, want, tolerance=1e-3):
  """The tolerance of families_index.json for trajectories: 1e-3 of the largest value; 1e-4 for one step."""
  np.testing.assert_allclose(found, want, rtol=0, atol=tolerance * np.abs(want).max())
