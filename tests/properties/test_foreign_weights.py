"""Files that other programs write: what their metadata mean, which of their weights are taken, and what is refused."""

import argparse
import collections
import datetime
import gzip
import json
import pathlib
import pickle
import shutil
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import build, models
from ddpm_jax.convert import (
  architecture,
  convert,
  diffusers,
  diffusers_export,
  diffusers_scheduler,
  formats,
  names,
  weight_files,
)
from ddpm_jax.diffusion import grid, schedule, transforms
from ddpm_jax.diffusion.prediction import Prediction
from ddpm_jax.errors import UserError
from ddpm_jax.files import torch_files

UNET = dict(
  _class_name="UNet2DModel",
  sample_size=16,
  in_channels=3,
  out_channels=3,
  layers_per_block=1,
  block_out_channels=[32, 64],
  down_block_types=["DownBlock2D", "AttnDownBlock2D"],
  up_block_types=["AttnUpBlock2D", "UpBlock2D"],
)
DDPM = dict(_class_name="DDPMScheduler", beta_schedule="linear", beta_start=1e-4, beta_end=0.02, num_train_timesteps=1000)
DDIM = DDPM | {"_class_name": "DDIMScheduler"}


def random_tensors(network, dialect, value=None):
  """Tensors of a network in the words of a codebase; all equal to `value`, if given."""
  x = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  time = jax.ShapeDtypeStruct((1,), jnp.float32)
  tree = jax.eval_shape(network.init, jax.random.key(0), x, time, None)["params"]
  draw = np.random.default_rng(0).standard_normal
  fill = lambda shape: np.full(shape, value, np.float32) if value is not None else np.float32(draw(shape))
  return {key: fill(entry.their_shape) for entry in names.entries(network, tree, dialect) for key in entry.theirs}


@pytest.fixture(scope="module")
def pesser():
  network = models.make("unet_ddpm", channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,))
  return random_tensors(network, "pesser")


@pytest.fixture(scope="module")
def of_diffusers():
  config = diffusers.config(UNET, DDPM)
  return random_tensors(build.model(config, 3, None), "diffusers")


def folder(root, tensors, scheduler=DDPM, unet=UNET):
  for name, content in {"unet/config.json": unet, "scheduler/scheduler_config.json": scheduler}.items():
    (root / name).parent.mkdir(parents=True)
    (root / name).write_text(json.dumps(content))
  weight_files.write_safetensors(root / "unet/diffusion_pytorch_model.safetensors", tensors)
  return root


# ---------------------------------------------------------------- schedulers


def process(**changes):
  return diffusers.config(UNET, DDPM | changes)


@pytest.mark.parametrize(
  "name",
  [
    "FlowMatchEulerDiscreteScheduler",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
    "KarrasVeScheduler",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
    "CMStochasticIterativeScheduler",
    "VQDiffusionScheduler",
    None,
  ],
)
def test_schedulers_without_betas_are_refused_by_class(name):
  with pytest.raises(UserError, match=f"_class_name is {name!r}"):
    process(_class_name=name)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(beta_schedule="laplace"), "beta_schedule='laplace'"),
    (dict(prediction_type="flow_prediction"), "prediction_type='flow_prediction'"),
    (dict(variance_type="fixed_huge"), "variance_type='fixed_huge'"),
    (dict(invented=3), "the field invented=3, which is not known"),
    (dict(use_flow_sigmas=True), "use_flow_sigmas=True; only False"),
    (dict(trained_betas=[0.1, 2.0]), "trained_betas that are not"),
    (dict(trained_betas="0.1"), "trained_betas that are not"),
    (dict(trained_betas=[0.1] * 50), "50 trained_betas but num_train_timesteps=1000"),
    (dict(trained_betas=[0.1, 1.0], num_train_timesteps=2), "ends in pure noise"),
    (dict(beta_start="small"), "beta_start='small'"),
    (dict(beta_start=float("nan")), "beta_start=nan, beta_end=0.02; they should be numbers between 0 and 1"),
    (dict(beta_end=float("inf")), "beta_end=inf"),
    (dict(beta_start=-1e-4, beta_schedule="scaled_linear"), "beta_start=-0.0001"),
    (dict(_class_name=["DDPMScheduler"]), r"_class_name=\['DDPMScheduler'\]; it should be a text"),
    (dict(prediction_type={}), "prediction_type={}; it should be a text"),
    (dict(beta_schedule=["linear"]), "beta_schedule=.*should be a text"),
    (dict(variance_type=[]), "variance_type=.*should be a text"),
    (dict(_class_name="DDIMScheduler", timestep_spacing=["leading"]), "timestep_spacing=.*should be a text"),
    (dict(_class_name="DDIMScheduler", steps_offset="1"), "steps_offset='1'; it should be an integer"),
    (dict(num_train_timesteps=1), "num_train_timesteps=1"),
    (dict(num_train_timesteps=1000.0), "num_train_timesteps=1000.0"),
    (dict(clip_sample="yes"), "clip_sample='yes'; it should be true or false"),
    (dict(clip_sample_range=-1), "clip_sample_range=-1"),
    (dict(thresholding=True, sample_max_value=None), "sample_max_value=None"),
    (dict(rescale_betas_zero_snr=True), "rescale_betas_zero_snr=True and prediction_type='epsilon'"),
    (dict(rescale_betas_zero_snr=True, trained_betas=[0.1]), "trained_betas and rescale_betas_zero_snr"),
    (dict(_class_name="DDIMScheduler", steps_offset=7), "steps_offset=7"),
    (dict(_class_name="DDIMScheduler", timestep_spacing="random"), "timestep_spacing='random'"),
  ],
)
def test_what_a_scheduler_says_and_is_not_known_is_refused_by_name(change, message):
  with pytest.raises(UserError, match=message) as error:
    process(**change)
  assert len(str(error.value)) < 300


def test_a_last_step_that_is_not_taken_over_is_said():
  said = diffusers_scheduler.notes({"_class_name": "DDIMScheduler", "set_alpha_to_one": False})
  assert said == ["set_alpha_to_one=False is ignored: the last step reaches the image, not the first noise level."]
  assert diffusers_scheduler.notes({"_class_name": "DDIMScheduler", "set_alpha_to_one": True}) == []


@pytest.mark.parametrize("kind", diffusers_scheduler.CLASSES)
def test_noise_levels_of_every_known_class(kind):
  config = process(_class_name=kind, solver_order=2, use_karras_sigmas=True, lower_order_final=True)
  np.testing.assert_allclose(build.schedule(config).betas, np.linspace(1e-4, 0.02, 1000), rtol=1e-10)
  said = diffusers_scheduler.notes(DDPM | {"_class_name": kind})
  assert bool(said) == (not kind.startswith(("DDPM", "DDIM", "RePaint")))


def test_every_schedule_is_read():
  betas = lambda **change: build.schedule(process(**change)).betas
  roots = np.linspace(1e-4**0.5, 0.02**0.5, 1000) ** 2
  np.testing.assert_allclose(betas(beta_schedule="scaled_linear"), roots, rtol=1e-10)
  logistic = 1 / (1 + np.exp(-np.linspace(-6, 6, 1000)))
  np.testing.assert_allclose(betas(beta_schedule="sigmoid"), 1e-4 + 0.0199 * logistic, rtol=1e-10)
  cosine = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
  want = np.minimum(1 - cosine(np.arange(1, 1001) / 1000) / cosine(np.arange(1000) / 1000), 0.999)
  np.testing.assert_allclose(betas(beta_schedule="squaredcos_cap_v2"), want, rtol=1e-10)
  np.testing.assert_allclose(betas(num_train_timesteps=3, trained_betas=[0.1, 0.2, 0.5]), [0.1, 0.2, 0.5], rtol=1e-12)
  np.testing.assert_allclose(betas(beta_end=0.01)[-1], 0.01, rtol=1e-10)


def test_zero_terminal_snr_is_lin_et_al_s():
  """Algorithm 1 of "Common diffusion noise schedules and sample steps are flawed", written out."""
  config = process(rescale_betas_zero_snr=True, prediction_type="v_prediction")
  root = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
  first = root[0]
  last = root[-1]
  root = (root - last) * first / (first - last)
  np.testing.assert_allclose(build.schedule(config).alpha_bar[1:], root**2, rtol=1e-10, atol=1e-15)
  assert build.schedule(config).alpha_bar[-1] == 0 and config.prediction.mean == "v"
  with pytest.raises(UserError, match="no zero-terminal form"):
    schedule.zero_snr(base="vp_sde")


def test_clipping_is_the_scheduler_s():
  believed = jnp.asarray(np.random.default_rng(0).normal(0, 2, (2, 4, 4, 3)), jnp.float32)
  net = lambda x, level, cond=None: Prediction(believed, jnp.zeros_like(believed))
  level = schedule.linear(1000).level(np.int32(500))
  out = lambda **change: np.asarray(build.denoiser(process(**change), net)(believed, level).x0)
  np.testing.assert_array_equal(out(), np.clip(believed, -1, 1))
  np.testing.assert_array_equal(out(clip_sample_range=2.0), np.clip(believed, -2, 2))
  np.testing.assert_array_equal(out(clip_sample=False), believed)
  most = np.quantile(np.abs(believed).reshape(2, -1), 0.9, axis=1).clip(1, 1.5).reshape(2, 1, 1, 1)
  dynamic = out(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5)
  np.testing.assert_allclose(dynamic, np.clip(believed, -most, most) / most, rtol=1e-6)
  # diffusers' default sample_max_value = 1 is plain clipping
  np.testing.assert_allclose(out(thresholding=True), np.clip(believed, -1, 1), rtol=1e-6)
  raw = build.denoiser(process(_class_name="DDIMScheduler"), net)(believed, level)
  np.testing.assert_array_equal(raw.eps, 0)  # DDIMScheduler clips x0 and keeps eps
  assert isinstance(build.denoiser(process(thresholding=True), net), transforms.DynamicThreshold)


@pytest.mark.parametrize(
  "change, want",
  [
    # DDIMScheduler.set_timesteps(50), written out; its t is level t + 1 here
    ({}, 1 + np.arange(50)[::-1] * 20),
    ({"steps_offset": 1}, 2 + np.arange(50)[::-1] * 20),
    ({"timestep_spacing": "linspace"}, 1 + np.linspace(0, 999, 50).round()[::-1]),
    ({"timestep_spacing": "trailing"}, np.arange(1000, 0, -20)),
  ],
)
def test_ddim_visits_diffusers_levels(change, want):
  config = process(_class_name="DDIMScheduler", **change)
  np.testing.assert_array_equal(build.grid(config), np.append(want, 0))
  assert config.sampling.eta == 0 and config.sampling.covariance is None


def test_spaced_grids_of_odd_numbers():
  np.testing.assert_array_equal(grid.leading(1000, 7)[:-1], 1 + np.arange(7)[::-1] * 142)
  np.testing.assert_array_equal(grid.trailing(1000, 7)[:-1], np.round(np.arange(1000, 0, -1000 / 7)))
  np.testing.assert_array_equal(grid.sections(30, "3,0,2"), [30, 21, 10, 5, 1, 0])  # OpenAI's sections may be empty
  with pytest.raises(UserError, match="takes no level"):
    grid.sections(30, "0,0")
  with pytest.raises(UserError, match="take fewer steps"):
    grid.leading(10, 10, offset=1)


# ---------------------------------------------------------------- folders


def test_a_lone_network_needs_a_schedule(tmp_path, of_diffusers):
  cosine = DDPM | {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
  pipeline = folder(tmp_path / "pipeline", of_diffusers, cosine)
  made = convert.convert(pipeline / "unet")  # the scheduler of the pipeline that it is a part of
  assert made.config.schedule.name == "cosine" and made.config.prediction.mean == "v"
  shutil.copytree(pipeline / "unet", tmp_path / "alone")
  with pytest.raises(UserError, match="noise levels are unknown.*--config.schedule.name"):
    convert.convert(tmp_path / "alone")
  made = convert.convert(tmp_path / "alone", overrides=["schedule.name=cosine", "schedule.T=100"])
  assert build.schedule(made.config).T == 100 and any("predict eps" in note for note in made.notes)
  shutil.copy(pipeline / "unet/diffusion_pytorch_model.safetensors", tmp_path / "file.safetensors")
  with pytest.raises(UserError, match="do not determine data.image_size, schedule, network.name"):
    convert.convert(tmp_path / "file.safetensors")


def test_the_default_file_comes_before_its_variants(tmp_path, of_diffusers):
  pipeline = folder(tmp_path / "pipeline", of_diffusers)
  zeros = {key: np.zeros_like(tensor) for key, tensor in of_diffusers.items()}
  for variant in ("fp16", "non_ema", "bf16"):
    weight_files.write_safetensors(pipeline / f"unet/diffusion_pytorch_model.{variant}.safetensors", zeros)
  contents = weight_files.read(pipeline)
  assert contents.tensors["conv_in.weight"].any() and "left out bf16, fp16, non_ema" in contents.notes[0]
  for asked in ("fp16", "unet/fp16"):
    assert not weight_files.read(pipeline, asked).tensors["conv_in.weight"].any()
  with pytest.raises(UserError, match="has no weights 'fp8'; it has bf16, fp16, non_ema"):
    weight_files.read(pipeline, "fp8")
  (pipeline / "unet/diffusion_pytorch_model.safetensors").unlink()
  with pytest.raises(UserError, match="several variants of the weights: bf16, fp16, non_ema"):
    weight_files.read(pipeline)


def test_shards_are_those_of_the_index(tmp_path, of_diffusers):
  pipeline = folder(tmp_path / "pipeline", of_diffusers)
  unet = pipeline / "unet"
  keys = list(of_diffusers)
  (unet / "diffusion_pytorch_model.safetensors").unlink()
  where = {key: f"diffusion_pytorch_model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(keys)}
  for name in set(where.values()):
    weight_files.write_safetensors(unet / name, {key: of_diffusers[key] for key in keys if where[key] == name})
  index = unet / "diffusion_pytorch_model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": where}))
  found = weight_files.read(pipeline).tensors
  assert found.keys() == of_diffusers.keys()
  for key, tensor in of_diffusers.items():
    np.testing.assert_array_equal(found[key], tensor)
  for wrong, message in [
    ({"weight_map": where | {keys[0]: "../outside.safetensors"}}, "which is missing"),
    ({"weight_map": {"invented": where[keys[0]]}}, "lists the tensor invented"),
    ({}, "has no weight_map"),
  ]:
    index.write_text(json.dumps(wrong))
    with pytest.raises(UserError, match=message):
      weight_files.read(pipeline)


def test_averages_in_folders_are_taken_and_said(tmp_path, of_diffusers):
  checkpoint = folder(tmp_path / "checkpoint-500", of_diffusers)
  shutil.copytree(checkpoint / "unet", checkpoint / "unet_ema")
  (checkpoint / "unet_ema/config.json").write_text(json.dumps(UNET | {"decay": 0.999, "optimization_step": 500}))
  made = convert.convert(checkpoint)
  assert made.rate == "0.999" and "left out unet" in made.notes[0]
  assert convert.convert(checkpoint, weights="unet").rate is None
  shutil.move(checkpoint / "unet_ema", tmp_path / "renamed")  # the fields of the average say what it is, not its name
  assert convert.convert(tmp_path / "renamed", overrides=["schedule.name=linear"]).rate == "0.999"


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff\xfe{}", b'"text"', b"[" * 100_000])
@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_json_that_is_no_object_is_one_sentence(tmp_path, of_diffusers, name, content):
  pipeline = folder(tmp_path / "pipeline", of_diffusers)
  (pipeline / name).write_bytes(content)
  with pytest.raises(UserError, match="json (is|should hold|does not|cannot)"):
    convert.convert(pipeline)


# ---------------------------------------------------------------- sets of weights in one file


@pytest.mark.parametrize(
  "prefix", ["_orig_mod.", "module.", "_orig_mod.module.", "unet.", "net.", "diffusion.model.", "state.of.my.own.net."]
)
def test_a_prefix_of_all_names_is_a_wrapper(tmp_path, pesser, prefix):
  torch_files.write(tmp_path / "model.pt", {prefix + key: tensor for key, tensor in pesser.items()})
  assert weight_files.read(tmp_path / "model.pt").tensors.keys() == pesser.keys()


@pytest.mark.parametrize("average", ["ema_model.", "model_ema.", "ema.module.", "averaged_model.", "shadow."])
def test_sets_are_told_apart_by_prefix(tmp_path, pesser, average):
  both = {f"model.{key}": tensor + 1 for key, tensor in pesser.items()} | {average + k: t for k, t in pesser.items()}
  torch_files.write(tmp_path / "model.pt", both | {"betas": np.ones(3, np.float32)})
  contents = weight_files.read(tmp_path / "model.pt")
  assert contents.averaged and contents.beside.keys() == {"betas"}
  np.testing.assert_array_equal(contents.tensors["conv_in.weight"], pesser["conv_in.weight"])
  raw = weight_files.read(tmp_path / "model.pt", "model")
  assert raw.averaged is False and raw.tensors["conv_in.bias"][0] == pesser["conv_in.bias"][0] + 1


def test_names_without_dots_are_lightning_s_average(tmp_path, pesser):
  flat = {"model_ema.model" + key.replace(".", ""): tensor for key, tensor in pesser.items()}
  torch_files.write(tmp_path / "model.ckpt", {f"model.{key}": tensor + 1 for key, tensor in pesser.items()} | flat)
  contents = weight_files.read(tmp_path / "model.ckpt")
  assert contents.averaged and contents.which == "model_ema"
  np.testing.assert_array_equal(contents.tensors["conv_in.weight"], pesser["conv_in.weight"])


def test_a_list_of_shadows_is_an_average(pesser):
  shadow = [tensor + 1 for tensor in pesser.values()]
  model = {"sigmas": np.ones(1000, np.float32)} | pesser  # a buffer, which the average does not have
  sets = weight_files._tensor_sets({"model": model, "ema": {"decay": 0.9999, "shadow_params": shadow}}, "checkpoint.pth")
  assert list(sets) == ["model", "ema/shadow_params"] and sets["ema/shadow_params"].averaged
  for key, tensor in pesser.items():
    np.testing.assert_array_equal(sets["ema/shadow_params"].tensors[key], tensor + 1)
  with pytest.raises(UserError, match="fits no model beside it"):
    weight_files._tensor_sets({"model": model, "ema": {"shadow_params": shadow[1:]}}, "checkpoint.pth")


@pytest.mark.parametrize(
  "name, averaged",
  [("cinema/schema.pt", None), ("ema/model.pt", None), ("model_ema.pt", None), ("ema_0.9999_050000.pt", True)],
)
def test_words_in_a_path_are_no_average(tmp_path, pesser, name, averaged):
  (tmp_path / name).parent.mkdir(exist_ok=True)
  torch_files.write(tmp_path / name, pesser)
  assert weight_files.read(tmp_path / name).averaged is averaged


def test_compressed_files_say_how_to_unpack_them(tmp_path, pesser):
  torch_files.write(tmp_path / "model.pt", pesser)
  (tmp_path / "model.pt.gz").write_bytes(gzip.compress((tmp_path / "model.pt").read_bytes()[:999]))
  with pytest.raises(UserError, match="compressed with gzip: unpack it first .gunzip model.pt.gz"):
    weight_files.read(tmp_path / "model.pt.gz")


def test_float8_is_read(tmp_path):
  values = np.array([0.5, -1.5, 448.0])  # exact in E4M3
  header = {"temb.dense.0.weight": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [0, 3]}}
  text = json.dumps(header).encode()
  content = bytes([0x30, 0xBC, 0x7E])  # sign, 4 bits of exponent with bias 7, 3 bits of mantissa
  (tmp_path / "f8.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content)
  found = weight_files.read(tmp_path / "f8.safetensors").tensors["temb.dense.0.weight"]
  np.testing.assert_array_equal(np.float32(found), values)


# ---------------------------------------------------------------- settings beside the weights


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
@pytest.mark.parametrize(
  "thing",
  [
    argparse.Namespace(lr=1e-4, widths=[1, 2]),
    pathlib.PurePosixPath("runs/1"),
    np.float64(3.5),
    np.int64(3),
    collections.defaultdict(list, a=[1]),
    collections.Counter("aab"),
    datetime.datetime(2020, 1, 1),
    types.SimpleNamespace(a=1),
    {1, 2},
    complex(1, 2),
    range(3),
  ],
  ids=lambda thing: type(thing).__name__,
)
def test_settings_beside_weights_are_harmless(tmp_path, thing, protocol):
  with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
    archive.writestr("c/data.pkl", pickle.dumps({"step": 1, "beside": thing}, protocol))
  found = torch_files.read(tmp_path / "c.pt")
  assert found["step"] == 1
  if isinstance(thing, np.generic):
    assert found["beside"] == thing


@pytest.mark.parametrize(
  "name",
  ["os.system", "builtins.eval", "pathlib.PosixPath.unlink", "argparse.ArgumentParser", "numpy.load", f"{'m' * 99}.f"],
)
def test_what_is_not_known_to_be_harmless_is_refused(tmp_path, name):
  module, _, function = name.rpartition(".")
  path = tmp_path / f"{'c' * 100}.pt"  # the sentence is whole whatever the length of the path
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("c/data.pkl", f"c{module}\n{function}\n(S'ls'\ntR.".encode())
  with pytest.raises(UserError, match="only files of plain tensors are read") as error:
    torch_files.read(path)
  assert str(error.value).endswith(' = dict(model.state_dict()); torch.save(weights, "w.pt")')


# ---------------------------------------------------------------- a folder for diffusers


@pytest.mark.parametrize(
  "unet, scheduler",
  [
    (UNET, DDPM),
    (UNET | dict(attention_head_dim=None, norm_eps=1e-6, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1), DDIM),
    (UNET | dict(resnet_time_scale_shift="scale_shift", attn_norm_num_groups=32, num_class_embeds=7), DDPM),
    (UNET | dict(resnet_time_scale_shift="scale_shift", add_attention=False, freq_shift=1), DDIM | dict(steps_offset=1)),
    (UNET | dict(downsample_type="resnet", up_block_types=["AttnUpBlock2D", "ResnetUpsampleBlock2D"]), DDPM),
    (UNET, DDIM | dict(timestep_spacing="trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction")),
    (UNET, DDPM | dict(thresholding=True, sample_max_value=1.5, beta_schedule="squaredcos_cap_v2")),
    (
      UNET,
      DDPM | dict(clip_sample_range=2.0, num_train_timesteps=3, trained_betas=[0.1, 0.2, 0.3], variance_type="fixed_large"),
    ),
    (UNET | dict(sample_size=[16, 24]), DDPM | dict(beta_schedule="sigmoid", clip_sample=False)),
  ],
)
def test_what_is_written_for_diffusers_is_what_is_read(unet, scheduler):
  config = diffusers.config(unet, scheduler)
  config.data.channels = 3
  files = diffusers_export.files(config)
  again = diffusers.config(files["unet/config.json"], files["scheduler/scheduler_config.json"])
  again.data.channels = 3
  network = dict(config.network)
  again.network = {field: again.network[field] for field in network}
  assert again.to_dict() == config.to_dict()
  assert files["model_index.json"]["scheduler"][1] == scheduler["_class_name"]


def test_what_diffusers_does_not_have_is_refused():
  config = diffusers.config(UNET, DDPM)
  config.data.channels = 3
  for section, field, value, message in [
    ("prediction", "time_scale", 0.25, "not support prediction.time_scale = 0.25, only 1.0"),
    ("prediction", "mean", "edm", "not support prediction.mean = 'edm', only eps or x0 or v"),
    ("network", "channel_mult", (2, 2), "not support network.channel_mult"),
  ]:
    changed = config.copy_and_resolve_references()
    changed[section][field] = value
    with pytest.raises(UserError, match=message):
      diffusers_export.files(changed)


# ---------------------------------------------------------------- levels that names leave open


def test_levels_that_tensors_leave_open_can_be_answered():
  fields = dict(channels=32, channel_mult=(1, 1, 1, 1), num_res_blocks=2, attention_resolutions=(), head_channels=32)
  network = models.make("classifier", **fields, resblock_updown=True, pool="adaptive", out_channels=10)
  tensors = random_tensors(network, "openai")
  with pytest.raises(UserError, match="12 input_blocks divide into levels in 5 ways.*num_res_blocks.*--like"):
    architecture.infer(tensors)
  found = architecture.infer(tensors, num_res_blocks=2)
  assert found.network["channel_mult"] == (1, 1, 1, 1) and found.network["num_res_blocks"] == 2
  assert architecture.infer(tensors, levels=4).network == found.network


def test_the_page_of_formats_is_made_from_the_code():
  page = pathlib.Path(__file__).parents[2] / "docs/checkpoints.md"
  assert page.read_text().endswith(formats.tables())
