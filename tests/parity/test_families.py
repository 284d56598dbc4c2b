"""Further families of checkpoints, from their files to samples: the numbers of their authors' code.

families.npz holds what families_index.json describes. Weights are small multiples of powers of two and stored as integers:
"GROUP/sd/KEY|e" is 2^e times the weight.
"""

import json
import pathlib
import pickle
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import Stored, nhwc

from ddpm_jax import build
from ddpm_jax.convert import architecture, convert, diffusers, export, lucidrains, names, weight_files
from ddpm_jax.diffusion import grid, preconditioning, schedule, steps
from ddpm_jax.diffusion.samplers import GaussianSampler, sample
from ddpm_jax.errors import UserError
from ddpm_jax.files import torch_files

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
GROUPS = json.loads((GOLDEN / "families_index.json").read_text())["groups"]


@pytest.fixture(scope="module")
def stored():
  arrays = np.load(GOLDEN / "families.npz")
  return {key.partition("|")[0]: np.ldexp(np.float32(arrays[key]), -int(key.partition("|")[2] or 0)) for key in arrays.files}


def weights(stored, group):
  prefix = f"{group}/sd/"
  return {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}


def file_of(stored, group, tmp_path):
  """The checkpoint of a group as its authors' training writes it."""
  tensors = weights(stored, group)
  if group == "unet_m12":
    tensors = {f"model.{key}": tensor for key, tensor in tensors.items()} | BUFFERS()
  torch_files.write(tmp_path / "weights.pt", tensors)
  return tmp_path / "weights.pt"


def BUFFERS(T=1000, mean="v"):
  """What GaussianDiffusion stores beside its network: schedule "sigmoid", written out, and the weights of an objective."""
  logistic = lambda u: 1 / (1 + np.exp(-u))
  u = np.linspace(0, 1, T + 1) * 6 - 3
  alpha_bar = (logistic(3) - logistic(u)) / (logistic(3) - logistic(-3))
  betas = np.clip(1 - alpha_bar[1:] / alpha_bar[:-1], 0, 0.999)
  snr = np.cumprod(1 - betas) / (1 - np.cumprod(1 - betas))
  weight = {"eps": np.ones(T), "x0": snr, "v": snr / (snr + 1)}[mean]
  return {"betas": np.float32(betas), "loss_weight": np.float32(weight)}


ANSWERS = {
  "unet_m12": ["data.image_size=8"],
  "ddpmpp": ["prediction.mean=edm", "schedule.T=5"],
  "ncsnpp": ["prediction.mean=ve", "schedule.T=5"],
  "unet_classcond": ["data.image_size=16", "network.head_channels=32", "prediction.mean=consistency"],
}
SMALL = ["data.image_size=8", *ANSWERS["unet_classcond"][1:]]  # the images of that network's samples


@pytest.fixture(scope="module")
def made(stored, tmp_path_factory):
  """group -> its conversion, by ANSWERS or other answers."""
  known = {}

  def of(group, answers=None):
    answers = answers or ANSWERS[group]
    if (group, *answers) not in known:
      path = file_of(stored, group, tmp_path_factory.mktemp(group))
      known[group, *answers] = convert.convert(path, overrides=answers)
    return known[group, *answers]

  return of


def network_of(config, params):
  module = build.model(config, config.data.channels, config.data.num_classes)
  return build.network(config, module, params)


def output(module, params, x, time, cond):
  return jax.jit(module.apply)({"params": params}, x, jnp.asarray(time, jnp.float32), cond)


def close(found, want, tolerance=2e-4):
  """The tolerance of families_index.json for networks: 2e-4 of the largest output (float32 against float64: 2e-5)."""
  np.testing.assert_allclose(found, want, rtol=2e-4, atol=tolerance * np.abs(want).max())


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("group", ANSWERS)
def test_networks_and_round_trips(stored, made, group):
  conversion = made(group)
  module = build.model(conversion.config, 3, conversion.config.data.num_classes)
  x = nhwc(stored[f"{group}/x"])
  time = stored.get(f"{group}/t", stored.get(f"{group}/noise_labels"))
  labels = stored.get(f"{group}/y", stored.get(f"{group}/class_labels"))
  label = None if labels is None else np.int32(labels if labels.ndim == 1 else labels.argmax(1))
  cond = None if label is None else {"label": label}
  close(output(module, conversion.params, x, time, cond), nhwc(stored[f"{group}/out"]))
  if f"{group}/out_augment" in stored:
    told = (cond or {}) | {"augment": stored[f"{group}/augment_labels"]}
    close(output(module, conversion.params, x, time, told), nhwc(stored[f"{group}/out_augment"]))

  table = names.entries(module, conversion.params, conversion.dialect, image_size=conversion.config.data.image_size)
  back = names.to_tensors(table, conversion.params)
  theirs = weights(stored, group)
  theirs = {key.removeprefix("model."): tensor for key, tensor in theirs.items()}
  assert {key for key in theirs if not key.endswith("resample_filter")} == back.keys()
  for key, tensor in back.items():
    np.testing.assert_array_equal(tensor, theirs[key])


@pytest.mark.parametrize("group", ["ddpmpp", "ncsnpp"])
def test_export_of_edm_has_its_filters(stored, made, tmp_path, group):
  convert.save(made(group), tmp_path / "run", "weights.pt")
  export.export(tmp_path / "run", tmp_path / "back.pt")
  back = weight_files.read(tmp_path / "back.pt").tensors
  theirs = weights(stored, group)
  assert {f"model.{key}" for key in back} == theirs.keys()
  for key, tensor in back.items():
    np.testing.assert_array_equal(tensor, theirs[f"model.{key}"])


def test_diffusers_network_with_options_of_its_own(stored):
  group = "attn_first_timestepclass"
  options = GROUPS[group]["args"] | {"sample_size": 16, "_class_name": "UNet2DModel"}
  options.pop("cls")
  config = diffusers.config(options, None)
  module = build.model(config, 3, 10)
  x = nhwc(stored[f"{group}/x"])
  cond = {"label": stored[f"{group}/class_labels"]}
  tree = jax.eval_shape(module.init, jax.random.key(0), x, np.zeros(2, np.float32), cond)["params"]
  params, report = names.to_params(names.entries(module, tree, "diffusers"), weights(stored, group))
  assert not report
  for time, out in (("t", "out"), ("t_float", "out_t_float")):
    close(output(module, params, x, stored[f"{group}/{time}"], cond), nhwc(stored[f"{group}/{out}"]))


# ---------------------------------------------------------------- noise levels and preconditioning


def test_schedules_of_lucidrains(stored):
  # float64 tables, except that "sigmoid" takes its ends in float32
  close = lambda mine, name, rtol: np.testing.assert_allclose(mine.betas, stored[f"schedule/{name}/betas64"], rtol=rtol)
  close(schedule.linear(50), "linear_T50", 2e-7)  # stored here as float32
  close(schedule.cosine(50), "cosine_T50", 2e-7)
  close(schedule.logistic(50, tau=0.7), "sigmoid_T50_kw", 3e-6)


@pytest.mark.parametrize("mean", ["eps", "x0", "v"])
@pytest.mark.parametrize("min_snr", [False, True])
def test_the_objective_shows_in_the_loss_weights(mean, min_snr):
  betas = np.float32(schedule.cosine(100).betas)
  snr = np.cumprod(1 - np.float64(betas)) / (1 - np.cumprod(1 - np.float64(betas)))
  weight = (np.minimum(snr, 5) if min_snr else snr) / {"eps": snr, "x0": 1, "v": snr + 1}[mean]
  told = lucidrains.process({"ema_model.betas": betas, "ema_model.loss_weight": np.float32(weight)})
  assert told == {"schedule": {"name": "cosine", "T": 100}, "prediction": {"mean": mean}}
  with pytest.raises(UserError, match="loss_weight is that of no objective"):
    lucidrains.process({"betas": betas, "loss_weight": np.float32(weight) + 1})
  assert lucidrains.process({"betas": betas * 0.5})["schedule"]["name"] == "from_betas"
  assert lucidrains.process({}) is None


@pytest.mark.parametrize(
  "source, group, name, label",
  [
    ("precond/ddpmpp_EDMPrecond", "ddpmpp", "edm", None),
    ("precond/ddpmpp_VPPrecond", "ddpmpp", "vp", None),
    ("precond/ncsnpp_VEPrecond", "ncsnpp", "ve", "class_labels"),
    ("denoise/unet_classcond_edm", "unet_classcond", "edm", "y"),
    ("denoise/unet_classcond_consistency", "unet_classcond", "consistency", "y"),
  ],
)
def test_denoised_images_at_the_authors_noise_levels(stored, made, source, group, name, label):
  """A schedule whose levels are the stored sigmas; x = x_t / alpha."""
  sigma = np.float64(stored[f"{source}/sigma"])
  x = nhwc(stored[f"{source}/x"])
  order = np.argsort(sigma)
  least = [0.002] if name == "consistency" and sigma.min() > 0.002 else []
  levels = schedule.Schedule(np.append(1.0, 1 / (1 + np.append(least, sigma[order]) ** 2)))
  scale = 1000.0 if source == "denoise/unet_classcond_edm" else 1.0  # consistency_models' EDM is told 250 log(sigma)
  parameterization, time = preconditioning.preconditioned(name, levels, time_scale=scale)
  conversion = made(group, SMALL if x.ndim == 5 else None)
  net = network_of(conversion.config, conversion.params).replace(parameterization=parameterization, time=time)
  n = np.empty(len(sigma), np.int32)
  n[order] = 1 + len(least) + np.arange(len(sigma))
  labels = None if label is None else stored[f"{source}/{label}"]
  want = nhwc(stored[f"{source}/denoised"])
  if x.ndim == 5:  # [levels, B, H, W, C], of the same B labels
    labels = np.tile(labels, len(n))
    n = np.repeat(n, x.shape[1])
    x = x.reshape(-1, *x.shape[2:])
    want = want.reshape(-1, *want.shape[2:])
  level = levels.level(n)
  cond = None if labels is None else {"label": np.int32(labels if labels.ndim == 1 else labels.argmax(1))}
  pred = jax.jit(lambda net, x, level: net(x, level, cond))(net, x * level.alpha[:, None, None, None], level)
  close(np.asarray(pred.x0), want)


def test_preconditioning_inverts_itself():
  """decode(target) is x_0, and the noise level's own numbers are EDM's: unit variance in and out."""
  levels = schedule.karras(10)
  x_0 = 0.5 * jax.random.normal(jax.random.key(0), (9, 64, 64, 1))
  eps = jax.random.normal(jax.random.key(1), x_0.shape)
  for name in ("edm", "ve", "vp"):
    parameterization, _ = preconditioning.preconditioned(name, levels)
    level = levels.level(np.arange(2, 11))
    target = parameterization.target(x_0, eps, level)
    x_t = level.diffuse(x_0, eps)
    # float32, x_0 behind noise of 80
    np.testing.assert_allclose(parameterization.decode(target, x_t, level).x0, x_0, atol=1e-4)
    if name == "edm":
      deviation = lambda x: np.asarray(x).std(axis=(1, 2, 3))
      np.testing.assert_allclose(deviation(parameterization.input(x_t, level)), 1, atol=0.03)  # 4096 draws: 3 / sqrt(2 n)
      np.testing.assert_allclose(deviation(target), 1, atol=0.04)
  with pytest.raises(UserError, match="'edn' is unknown"):
    preconditioning.preconditioned("edn", levels)


# ---------------------------------------------------------------- samples


def draw(conversion, x_T, noise=None, label=None, **sampling):
  config = conversion.config.copy_and_resolve_references()
  with config.unlocked(), config.ignore_type():
    config.sampling.update(sampling)
  net = network_of(config, conversion.params)
  cond = None if label is None else {"label": np.int32(label)}
  keys = jax.random.split(jax.random.key(0), len(x_T))
  x, _ = sample(keys, build.denoiser(config, net), build.sampler(config), jnp.asarray(x_T, jnp.float32), cond, noise=noise)
  return np.asarray(x)


def first(conversion, noise):
  """Noise of standard deviation sigma_max is x_T times sigma: 80 or 100 / sqrt(1 + sigma_max^2)."""
  return nhwc(noise) * np.sqrt(1 - build.schedule(conversion.config).alpha_bar[-1])


@pytest.mark.parametrize(
  "source, group", [("edm_sampler/ddpmpp_EDMPrecond", "ddpmpp"), ("edm_sampler/ncsnpp_VEPrecond", "ncsnpp")]
)
def test_heun_of_edm(stored, made, source, group):
  conversion = made(group)
  labels = stored.get(f"{source}/class_labels")
  x = draw(conversion, first(conversion, stored[f"{source}/latents"]), label=None if labels is None else labels.argmax(1))
  want = nhwc(stored[f"{source}/out"])
  # families_index.json: trajectories 1e-3 of the largest value
  np.testing.assert_allclose(x, want, rtol=0, atol=1e-3 * np.abs(want).max())


@pytest.mark.parametrize("name, levels", [("onestep", [40, 0]), ("multistep_0_22_39", [40, 18, 0])])
def test_few_steps_of_a_consistency_model(stored, made, monkeypatch, name, levels):
  source = f"sample/unet_classcond_{name}"
  conversion = made("unet_classcond", SMALL)
  noise = stored[f"{source}/noise"]
  x_T = first(conversion, noise[0] if noise.ndim == 5 else noise)
  draws = nhwc(noise[1:]) if noise.ndim == 5 and len(noise) > 1 else np.zeros((1, *x_T.shape), np.float32)
  draws = np.concatenate([draws, np.zeros_like(draws)])[: len(levels) - 1]
  monkeypatch.setattr(build.samplers, "grid", lambda config: np.array(levels))
  x = draw(conversion, x_T, Stored(draws), stored[f"{source}/y"])
  np.testing.assert_allclose(x, nhwc(stored[f"{source}/out"]), rtol=0, atol=1e-4)  # families_index.json: one step 1e-4


def test_ddim_of_lucidrains(stored, made):
  source = "ddim/pred_v_sigmoid_S7_eta0.8"
  conversion = made("unet_m12")
  assert conversion.config.schedule.to_dict() == {"name": "logistic", "T": 1000} and conversion.config.prediction.mean == "v"
  times = np.int64(stored[f"{source}/times"])
  noise = nhwc(stored[f"{source}/noise"])
  config = conversion.config
  sampler = GaussianSampler(steps.gaussian(build.schedule(config), times + 1, eta=0.8))
  net = build.denoiser(config, network_of(config, conversion.params))
  keys = jax.random.split(jax.random.key(0), 2)
  draws = np.concatenate([noise[1:], np.zeros_like(noise[:1])])
  x, _ = sample(keys, net, sampler, jnp.asarray(noise[0]), noise=Stored(draws))
  want = nhwc(stored[f"{source}/xs"][-1])
  np.testing.assert_allclose(x, want, rtol=0, atol=1e-3 * np.abs(want).max())


# ---------------------------------------------------------------- what is asked, and what is refused


@pytest.mark.torch
def test_a_trainer_s_file_as_pytorch_writes_it(stored, tmp_path):
  """The layout of denoising-diffusion-pytorch's model-N.pt: the average is taken, the step is the file's."""
  torch = pytest.importorskip("torch")
  tensors = {key: torch.from_numpy(np.ascontiguousarray(tensor)) for key, tensor in weights(stored, "unet_m12").items()}
  buffers = {key: torch.from_numpy(tensor) for key, tensor in BUFFERS().items()}
  model = buffers | {f"model.{key}": tensor + 1 for key, tensor in tensors.items()}
  average = {f"ema_model.{key}": tensor for key, tensor in buffers.items()}
  average |= {f"ema_model.model.{key}": tensor for key, tensor in tensors.items()}
  average |= {f"online_model.{key}": tensor for key, tensor in model.items()}
  average |= {"initted": torch.tensor(True), "step": torch.tensor(13)}
  optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))]).state_dict()
  content = {"step": 1300, "model": model, "opt": optimizer, "ema": average, "scaler": None, "version": "2.3.4"}
  torch.save(content, tmp_path / "model-13.pt")
  conversion = convert.convert(tmp_path / "model-13.pt", overrides=["data.image_size=16"])
  assert conversion.rate and conversion.step == 1300 and conversion.which == "ema/ema_model.model"
  np.testing.assert_array_equal(conversion.params["init_conv"]["bias"], tensors["init_conv.bias"].numpy())
  assert conversion.config.schedule.name == "logistic" and conversion.config.prediction.mean == "v"


def test_a_snapshot_of_edm_is_its_average(stored, tmp_path, monkeypatch):
  """network-snapshot-*.pkl: a module that is pickled with its source, which is not run."""
  persistence = types.ModuleType("torch_utils.persistence")

  def rebuild(meta):
    raise AssertionError("the file's code ran")

  rebuild.__module__ = "torch_utils.persistence"
  rebuild.__qualname__ = "_reconstruct_persistent_obj"
  persistence._reconstruct_persistent_obj = rebuild
  monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
  monkeypatch.setitem(sys.modules, "torch_utils.persistence", persistence)

  class Module:
    def __init__(self, state):
      self.state = state

    def __reduce__(self):
      return rebuild, ({"type": "class", "module_src": "raise", "class_name": "EDMPrecond", "state": self.state},)

  tensors = {key.removeprefix("model."): tensor for key, tensor in weights(stored, "ddpmpp").items()}
  model = Module({"_parameters": tensors, "_buffers": {}, "_modules": {}})
  content = {"ema": Module({"_parameters": {}, "_modules": {"model": model}}), "loss_fn": None, "augment_pipe": None}
  (tmp_path / "network-snapshot-001000.pkl").write_bytes(pickle.dumps(content, 4))
  found = weight_files.read(tmp_path / "network-snapshot-001000.pkl")
  assert found.averaged and found.tensors.keys() == tensors.keys()
  np.testing.assert_array_equal(found.tensors["map_layer0.bias"], tensors["map_layer0.bias"])


@pytest.mark.parametrize(
  "group, answers, message",
  [
    ("ddpmpp", [], "do not determine prediction.mean"),
    ("ddpmpp", ["prediction.mean=x0"], "prediction.mean='x0' is not what such a network predicts"),
    ("unet_classcond", [], "do not determine network.num_heads, data.image_size, prediction.mean"),
    ("unet_m12", [], "do not determine data.image_size"),
  ],
)
def test_what_files_do_not_say_is_asked(stored, tmp_path, group, answers, message):
  with pytest.raises(UserError, match=message):
    convert.convert(file_of(stored, group, tmp_path), overrides=answers)


@pytest.mark.parametrize(
  "group, change, message",
  [
    ("unet_m12", lambda t: t.update({"time_mlp.0.weights": np.zeros(8)}), "learned or random sinusoids"),
    ("unet_m12", lambda t: t.update({"init_conv.weight": np.zeros((16, 6, 7, 7))}), "self-conditioning"),
    ("unet_m12", lambda t: t.pop("mid_attn.mem_kv"), "incomplete: there is no mid_attn.mem_kv"),
    ("ddpmpp", lambda t: t.update({"dec.16x16_aux_up.weight": np.zeros(3)}), "aux_up layers"),
    ("ddpmpp", lambda t: t.update({"enc.8x8_down.skip.resample_filter": np.ones((1, 1, 3, 3))}), "other filters"),
  ],
)
def test_options_without_a_network_here_are_refused(stored, group, change, message):
  tensors = {key.removeprefix("model."): tensor for key, tensor in weights(stored, group).items()}
  change(tensors)
  with pytest.raises(UserError, match=message):
    architecture.infer(tensors)


def test_a_consistency_model_is_not_trained(made):
  with pytest.raises(UserError, match="sampled here, not trained"):
    build.training_network(made("unet_classcond").config, None)
  assert np.array_equal(build.grid(made("unet_classcond").config), grid.trailing(40, 1))
