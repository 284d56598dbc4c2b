"""Published weights: what is read, inferred, refused, written, and written back."""

import dataclasses
import hashlib
import json
import pathlib
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from containers import write_bundle
from networks import PUBLISHED, forward, inputs, jit, ours, shapes
from reference import nhwc

import ddpm_jax
from ddpm_jax import build, models
from ddpm_jax.cli import main
from ddpm_jax.convert import architecture, convert, fetch, fingerprint, names, registry, weight_files
from ddpm_jax.errors import UserError
from ddpm_jax.files import tf_bundle, torch_files

HERE = pathlib.Path(__file__).parent


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
  """What cli/environment.py would otherwise choose, too late in a process that has JAX running."""
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
  monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))


# ---------------------------------------------------------------- what tensors tell


def _dialects(fields):
  kind = fields.get("backbone", fields)["name"]
  return {"unet_ddpm": ["pesser", "ho_tf", "diffusers"], "ncsnpp": ["ncsnpp"]}.get(kind, ["openai"])


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_architecture_of_every_published_network_shows_in_its_tensors(model):
  fields, size, _, _ = PUBLISHED[model]
  network = models.make(**fields)
  x = np.zeros((1, size, size, 3), np.float32)
  time = np.zeros(1, np.float32)
  cond = {"label": np.zeros(1, np.int32), "low_res": np.zeros((1, 8, 8, 3), np.float32)}
  tree = shapes(network, x, time, cond)
  for dialect in _dialects(fields):
    table = names.entries(network, tree, dialect)
    theirs = {key: np.broadcast_to(np.float32(0), entry.their_shape) for entry in table for key in entry.theirs}
    found = architecture.infer(theirs)
    assert found.dialect == dialect and found.image_channels == 3 and found.image_size in (None, size)
    told = found.at(size)
    inner = told.get("backbone", told)
    truth = getattr(network, "backbone", network)
    for field, value in inner.items():
      if field not in ("name", "out_channels"):
        assert tuple(np.atleast_1d(getattr(truth, field))) == tuple(np.atleast_1d(value)), field
    assert found.num_classes == (None if "classifier" in model else truth.num_classes)
    assert told["name"] == ("unet_ddpm" if dialect == "diffusers" else fields["name"])


GOLDEN = {
  "unet_ddim": ["model0", "model1"],
  "unet_improved": ["unet_scaleshift_learnsigma_class", "unet_plain", "superres"],
  "unet_guided": ["unet_updown_legacyattn", "unet_halfmult_avgpool", "unet_convresample", "superres"],
  "encoder_guided": ["encoder_adaptive", "encoder_attention", "encoder_spatial", "encoder_spatial_v2"],
  "unet_extended": [f"{net}4Pretrained_{mode}" for net in ("UNetModel", "Model") for mode in ("simple", "complex")],
}


@pytest.mark.parametrize("file, group", [(file, group) for file, groups in GOLDEN.items() for group in groups])
def test_the_architecture_of_stored_networks_shows_in_their_tensors(golden, file, group):
  stored = golden(file)
  size = inputs(stored, group)[0].shape[1]
  network, dialect, _ = ours(stored.args(group), size)
  found = architecture.infer(stored.state_dict(group))
  told = found.at(size)
  inner = told.get("backbone", told)
  truth = getattr(network, "backbone", network)
  assert found.dialect == dialect
  for field, value in inner.items():
    if field != "name":
      assert tuple(np.atleast_1d(getattr(truth, field))) == tuple(np.atleast_1d(value)), field


# ---------------------------------------------------------------- containers


@pytest.fixture
def tensors(golden):
  return golden("unet_ddim").state_dict("model0")


def same(left, right):
  assert left.keys() == right.keys()
  for key in right:
    np.testing.assert_array_equal(left[key], right[key], err_msg=key)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_files_come_back_bit_by_bit(tmp_path, tensors, name):
  odd = tensors | {"scalar": np.float32(3).reshape(()), "empty": np.zeros((0, 2), np.float32)}
  weight_files.write(tmp_path / name, odd)
  same(weight_files.read(tmp_path / name).tensors, odd)


@pytest.mark.torch
def test_torch_and_this_package_read_each_other(tmp_path, tensors):
  torch = pytest.importorskip("torch")
  weight_files.write(tmp_path / "ours.pt", tensors)
  theirs = torch.load(tmp_path / "ours.pt", weights_only=True)
  same({key: tensor.numpy() for key, tensor in theirs.items()}, tensors)
  for zipped in (True, False):  # False: the format before PyTorch 1.6
    odd = dict(theirs, view=torch.arange(12.0).reshape(3, 4).T[1:], half=torch.ones(3).bfloat16())
    torch.save(odd, tmp_path / "theirs.pt", _use_new_zipfile_serialization=zipped)
    found = weight_files.read(tmp_path / "theirs.pt").tensors
    same({key: np.float32(tensor) for key, tensor in found.items()}, {key: t.float().numpy() for key, t in odd.items()})


@pytest.mark.torch
def test_averaged_weights_are_taken_from_training_checkpoints(tmp_path, tensors):
  torch = pytest.importorskip("torch")
  average = {key: torch.from_numpy(tensor) for key, tensor in tensors.items()}
  raw = {key: tensor + 1 for key, tensor in average.items()}
  optimizer = torch.optim.Adam(raw.values()).state_dict()
  ddim = [{f"module.{key}": tensor for key, tensor in raw.items()}, optimizer, 5, 1000, average]
  analytic = {
    "it": 400000,
    "best_val_loss": 1.0,
    "models_states": {"eps_model": raw},
    "optimizers_states": {"eps_model": optimizer},
    "lr_schedulers_states": {},
    "ema_models_states": {"eps_model": average},
  }
  in_analytic = "ema_models_states/eps_model", "models_states/eps_model"
  for content, which, other in [(ddim, "ema", "model"), (analytic, *in_analytic)]:
    torch.save(content, tmp_path / "training.pth")
    found = weight_files.read(tmp_path / "training.pth")
    assert found.which == which and found.averaged
    same(found.tensors, tensors)
    chosen = weight_files.read(tmp_path / "training.pth", other)
    assert not chosen.averaged and chosen.tensors["conv_in.bias"][0] == tensors["conv_in.bias"][0] + 1
  torch.save(raw | {"optimizer": optimizer}, tmp_path / "mixed.pt")
  assert weight_files.read(tmp_path / "mixed.pt").tensors.keys() == raw.keys()  # what lies beside them is left out
  torch.save(optimizer, tmp_path / "opt000100.pt")
  with pytest.raises(UserError, match="is the state of an optimizer, not a model"):
    weight_files.read(tmp_path / "opt000100.pt")
  torch.save({"a": raw, "b": raw}, tmp_path / "two.pt")
  with pytest.raises(UserError, match="several sets of weights: a, b. Choose one with --weights"):
    weight_files.read(tmp_path / "two.pt")


def test_a_checkpoint_that_tensorflow_wrote(tmp_path):
  """tf_bundle/ was written by TensorFlow 2.21's tf.compat.v1.train.Saver, and read by it into expected.npz."""
  expected = np.load(HERE / "tf_bundle/expected.npz")
  found = tf_bundle.read(HERE / "tf_bundle/model.ckpt-790000")
  same(found, {key.replace("|", "/"): expected[key] for key in expected.files})
  for path in ("model.ckpt-790000", "model.ckpt-790000.index", "model.ckpt-790000.data-00000-of-00001"):
    contents = weight_files.read(HERE / "tf_bundle" / path)
    assert contents.which == "ema" and contents.averaged
    assert sorted(contents.tensors)[:2] == ["down_0/block_0/conv1/W", "down_0/block_0/conv1/b"]
  for damaged in ("index", "data-00000-of-00001"):
    for name in ("index", "data-00000-of-00001"):
      data = (HERE / f"tf_bundle/model.ckpt-790000.{name}").read_bytes()
      (tmp_path / f"cut.{name}").write_bytes(data[: len(data) // 2] if name == damaged else data)
    with pytest.raises(UserError, match="cut short"):
      weight_files.read(tmp_path / "cut")


# ---------------------------------------------------------------- from file to samples

ANSWERS = ["data.image_size=16", "schedule.name=linear", "schedule.T=1000"]


def flags(answers):
  return [f"--config.{answer}" for answer in answers]


def families(golden):
  """name -> (file name, write(path), answers, golden file, group): one of every container and kind of network."""
  ddim, improved, guided, extended = (golden(f"unet_{kind}") for kind in ("ddim", "improved", "guided", "extended"))
  torch_file = lambda stored, group: lambda path: torch_files.write(path, stored.state_dict(group))

  def tensorflow(path):
    tensors = ddim.state_dict("model0")
    network, dialect, _ = ours(ddim.args("model0"), 16)
    x, time, _ = inputs(ddim, "model0")
    params, _ = names.to_params(names.entries(network, shapes(network, x, time), dialect), tensors)
    variables = names.to_tensors(names.entries(network, params, "ho_tf"), params)
    raw = {f"model/{name}": tensor + 1 for name, tensor in variables.items()}
    ema = {f"model/{name}/ExponentialMovingAverage": tensor for name, tensor in variables.items()}
    adam = {f"model/{name}/Adam_1": tensor for name, tensor in variables.items()}
    write_bundle(path, raw | ema | adam | {"global_step": np.ones((), np.float32)})

  four_heads = ["network.num_heads=4"]
  by_16 = ["network.head_channels=16"]
  eight = ["data.image_size=8", *ANSWERS[1:]]
  return {
    "pesser": ("model-790000.ckpt", torch_file(ddim, "model0"), ANSWERS, "unet_ddim", "model0"),
    "tensorflow": ("model.ckpt-790000", tensorflow, ANSWERS, "unet_ddim", "model0"),
    "safetensors": (
      "ema_0.9999_100000.safetensors",
      lambda path: weight_files.write_safetensors(path, improved.state_dict("unet_scaleshift_learnsigma_class")),
      [*ANSWERS, *four_heads],
      "unet_improved",
      "unet_scaleshift_learnsigma_class",
    ),
    "adm": (
      "ema_0.9999_100000.pt",
      torch_file(guided, "unet_updown_legacyattn"),
      [*ANSWERS, *by_16],
      "unet_guided",
      "unet_updown_legacyattn",
    ),
    "upsampler": (
      "ema_0.9999_100000.pt",
      torch_file(guided, "superres"),
      [*ANSWERS, *by_16, "data.low_res_size=4"],
      "unet_guided",
      "superres",
    ),
    "classifier": (
      "model000100.pt",
      torch_file(golden("encoder_guided"), "encoder_attention"),
      by_16,
      "encoder_guided",
      "encoder_attention",
    ),
    "two heads": (
      "npr.pth",
      torch_file(extended, "UNetModel4Pretrained_complex"),
      [*eight, "network.backbone.num_heads=2", "prediction.second=residual"],
      "unet_extended",
      "UNetModel4Pretrained_complex",
    ),
  }


@pytest.mark.parametrize("family", ["pesser", "tensorflow", "safetensors", "adm", "upsampler", "classifier", "two heads"])
def test_every_family_from_its_file_to_its_output_and_back(golden, tmp_path, family):
  name, write, answers, file, group = families(golden)[family]
  write(tmp_path / name)
  assert main.run(["convert", str(tmp_path / name), "--out", str(tmp_path / "run"), *flags(answers)]) == 0

  run = ddpm_jax.load(tmp_path / "run")
  averaged = family in ("tensorflow", "safetensors", "adm", "upsampler")  # as the file, or its name, says
  assert run.weights == ("EMA 0.9999" if averaged else "raw parameters")
  assert run.step == {"pesser": 790_000, "tensorflow": 790_000, "classifier": 100, "two heads": 0}.get(family, 100_000)
  stored = golden(file)
  x, time, cond = inputs(stored, group)
  out = forward(run.network.apply.module, run.network.params, x, time, cond)
  want = stored[f"{group}/out"]
  want = nhwc(want) if want.ndim == 4 else want
  np.testing.assert_allclose(out, want, rtol=0, atol=2e-5 * np.abs(want).max())  # as tests/parity/test_networks.py

  back = tmp_path / ("back.pt" if family == "safetensors" else "back.safetensors")
  assert main.run(["convert", "--export", str(back), "--workdir", str(tmp_path / "run")]) == 0
  original = weight_files.read(tmp_path / name)
  same(weight_files.read(back).tensors, original.tensors)


def test_ddim_from_a_converted_file_is_the_reference_s_ddim(golden, tmp_path):
  """Ten steps of DDIM (eq. 12, eta = 0) in NumPy, around the forward pass that the stored outputs verify."""
  name, write, answers, _, _ = families(golden)["safetensors"]
  write(tmp_path / name)
  answers = [*answers, "sampling.grid=uniform", "sampling.steps=10", "sampling.eta=0.0", "sampling.clip=none"]
  assert main.run(["convert", str(tmp_path / name), "--out", str(tmp_path / "run"), *flags(answers)]) == 0
  run = ddpm_jax.load(tmp_path / "run")
  _, visited = run.sample([3, 4], [1, 7], save=lambda x, pred: x)

  alpha_bar = np.append(1.0, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
  rows = build.sampler(run.config).steps  # after the first step
  x = np.float64(visited[0])
  assert len(rows.t.n) == len(visited) == 10
  for t, s, after in zip(rows.t.n[1:], rows.s.n[1:], visited[1:], strict=True):
    time = np.full(2, t - 1, np.float32)
    cond = {"label": np.array([1, 7], np.int32)}
    eps = np.asarray(forward(run.network.apply.module, run.network.params, np.float32(x), time, cond))[..., :3]
    x_0 = (x - np.sqrt(1 - alpha_bar[t]) * eps) / np.sqrt(alpha_bar[t])
    x = np.sqrt(alpha_bar[s]) * x_0 + np.sqrt(1 - alpha_bar[s]) * eps
    np.testing.assert_allclose(after, x, rtol=0, atol=1e-4 * np.abs(x).max())  # float32 through ten networks


# ---------------------------------------------------------------- diffusers

HO = dict(norm_eps=1e-6, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, attention_head_dim=None)
UNET2D = dict(
  _class_name="UNet2DModel",
  sample_size=16,
  in_channels=3,
  out_channels=3,
  block_out_channels=[32, 64],
  layers_per_block=1,
  down_block_types=["DownBlock2D", "AttnDownBlock2D"],
  up_block_types=["AttnUpBlock2D", "UpBlock2D"],
  **HO,
)
SCHEDULER = dict(_class_name="DDPMScheduler", num_train_timesteps=1000, beta_schedule="linear", variance_type="fixed_large")


def write_pipeline(folder, golden, old_names=False, **config):
  """The stored weights of Ho's UNet as a pipeline's folder; `old_names` are diffusers' before 0.14."""
  stored = golden("unet_ddim")
  network, dialect, _ = ours(stored.args("model0"), 16)
  x, time, _ = inputs(stored, "model0")
  params, _ = names.to_params(names.entries(network, shapes(network, x, time), dialect), stored.state_dict("model0"))
  tensors = names.to_tensors(names.entries(network, params, "diffusers"), params)
  if old_names:
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
      tensors = {key.replace(f".{new}.", f".{old}."): tensor for key, tensor in tensors.items()}
  for name, content in {"unet/config.json": UNET2D | config, "scheduler/scheduler_config.json": SCHEDULER}.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
  weight_files.write_safetensors(folder / "unet/diffusion_pytorch_model.safetensors", tensors)


@pytest.mark.parametrize("old_names", [False, True])
def test_a_folder_of_diffusers_needs_no_answers(golden, tmp_path, old_names):
  write_pipeline(tmp_path / "pipeline", golden, old_names)
  made = convert.convert(tmp_path / "pipeline")
  assert made.config.network.name == "unet_ddpm" and made.config.network.attention_resolutions == (8,)
  assert made.config.schedule.to_dict() == dict(name="linear", T=1000, start=1e-4, end=0.02)
  assert made.config.sampling.covariance == "marginal" and made.config.data.image_size == 16
  stored = golden("unet_ddim")
  x, time, _ = inputs(stored, "model0")
  network = build.model(made.config, 3, None)
  want = nhwc(stored["model0/out"])
  np.testing.assert_allclose(forward(network, made.params, x, time), want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize(
  "config, message",
  [
    (dict(resnet_time_scale_shift="spatial"), "resnet_time_scale_shift='spatial'; only 'default' or 'scale_shift'"),
    (dict(act_fn="gelu"), "act_fn='gelu'; only 'silu'"),
    (dict(time_embedding_type="fourier"), "time_embedding_type='fourier'; only 'positional'"),
    (dict(encoder_hid_dim=4), "has the field encoder_hid_dim=4, which is not known here"),
    (dict(sample_size="16"), "sample_size='16': say how large images are with --config.data.image_size=64"),
    (dict(down_block_types=["SkipDownBlock2D", "AttnDownBlock2D"]), "has a SkipDownBlock2D"),
    (dict(up_block_types=["UpBlock2D", "AttnUpBlock2D"]), "attends at other sizes on the way up"),
    (dict(_class_name="UNet2DConditionModel"), "holds a UNet2DConditionModel"),
  ],
)
def test_other_networks_of_diffusers_are_refused(golden, tmp_path, config, message):
  write_pipeline(tmp_path, golden, **config)
  with pytest.raises(UserError, match=message):
    convert.convert(tmp_path)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["ho", "openai"])
def test_ddim_of_diffusers_itself(golden, tmp_path, kind):
  """Ten steps of DDIM by diffusers' own network, scheduler and files, under PyTorch."""
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  config = {key: value for key, value in UNET2D.items() if not key.startswith("_") and key not in HO}
  torch.manual_seed(0)
  network = diffusers.UNet2DModel(**config, **(HO if kind == "ho" else {"attention_head_dim": 16})).eval()
  scheduler = diffusers.DDIMScheduler(num_train_timesteps=1000, clip_sample=False)
  network.save_pretrained(tmp_path / "unet")
  scheduler.save_pretrained(tmp_path / "scheduler")

  made = convert.convert(tmp_path)
  assert made.config.network.name == {"ho": "unet_ddpm", "openai": "unet_adm"}[kind]
  module = build.model(made.config, 3, None)
  x = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
  theirs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
  mine = x
  alpha_bar = np.append(1.0, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
  scheduler.set_timesteps(10)
  for t in scheduler.timesteps.tolist():
    with torch.no_grad():
      theirs = scheduler.step(network(theirs, t).sample, t, theirs).prev_sample
    eps = np.asarray(forward(module, made.params, mine, np.full(2, t, np.float32)))
    now = alpha_bar[t + 1]
    before = alpha_bar[max(t - 100, -1) + 1] if t >= 100 else alpha_bar[1]
    x_0 = (mine - np.sqrt(1 - now) * eps) / np.sqrt(now)
    mine = np.float32(np.sqrt(before) * x_0 + np.sqrt(1 - before) * eps)
    want = nhwc(theirs.numpy())
    np.testing.assert_allclose(mine, want, rtol=0, atol=1e-4 * np.abs(want).max())


@pytest.mark.torch
def test_gradient_of_hos_network_is_that_of_diffusers(golden, tmp_path):
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  write_pipeline(tmp_path, golden)
  theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet").eval()
  made = convert.convert(tmp_path)
  module = build.model(made.config, 3, None)
  x = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
  theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.tensor([3, 700])).sample.square().mean().backward()
  loss = lambda params: jnp.square(module.apply({"params": params}, x, np.array([3.0, 700.0], np.float32))).mean()
  table = names.entries(module, made.params, "diffusers")
  grads = names.to_tensors(table, jit(jax.grad(loss))(made.params))
  largest = max(np.abs(grad).max() for grad in grads.values())
  for key, parameter in theirs.named_parameters():
    want = parameter.grad.numpy()
    # float32 backward on both sides; gradients before a norm of single channels are pure rounding
    np.testing.assert_allclose(grads[key], want, rtol=0, atol=1e-3 * np.abs(want).max() + 1e-6 * largest, err_msg=key)


# ---------------------------------------------------------------- refusals


class Evil:
  def __reduce__(self):
    return (print, ("code ran",))


def write_evil(path):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("model/data.pkl", pickle.dumps({"conv_in.weight": Evil()}, protocol=2))


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


DAMAGE = {
  "cut short": (cut, [], "is damaged or cut short"),
  "a flipped bit": (flip_a_bit, [], "is damaged or cut short"),
  "no file of tensors": (lambda path: path.write_bytes(b"404" * 100), [], "is damaged or cut short"),
  "a web page": (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>404"), [], "is a web page, not weights"),
  "a pointer": (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), [], "git lfs pull"),
  "GGUF": (lambda path: path.write_bytes(b"GGUF\3\0\0\0" * 9), [], "is a GGUF file, not weights .* save the weights as"),
  "HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" * 9), [], "is an HDF5 file, not weights"),
  "empty": (lambda path: path.write_bytes(b""), [], "is damaged or cut short"),
  "code": (
    write_evil,
    [],
    r"names (__builtin__|builtins)\.print, which could run code: only files of plain tensors",
  ),
  "absent": (lambda path: path.unlink(), [], "does not exist"),
  "another family": (lambda path: None, ["--family", "openai"], "is not of the family openai: .* named as in pesser"),
  "unanswered": (lambda path: None, [], "do not determine data.image_size, schedule"),
  "another model": (
    lambda path: None,
    ["--like", "cifar10-ddpm"],
    "tensors have channels=32, but the config has channels=128",
  ),
  "unknown model": (
    lambda path: None,
    ["--like", "cifar10-dpm"],
    "is not a published model or a config; nearest: cifar10-ddpm",
  ),
  "wrong weights": (lambda path: None, ["--weights", "ema"], "has no weights 'ema'"),
  "of another job": (lambda path: None, ["--ema", "raw"], "--ema has no effect on a conversion"),
  "to export too": (lambda path: None, ["--export", "x.pt"], "--out has no effect on --export"),
  "to list too": (lambda path: None, ["--list"], "--out has no effect on --list"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_input_is_one_sentence_and_nothing_is_written(tmp_path, tensors, capsys, damage):
  path = tmp_path / "model.pt"
  torch_files.write(path, tensors)
  spoil, arguments, message = DAMAGE[damage]
  spoil(path)
  assert main.run(["convert", str(path), "--out", str(tmp_path / "out"), *arguments]) == 2
  said = capsys.readouterr()
  assert "code ran" not in said.out
  (line,) = said.err.strip().splitlines()
  assert ("torch.save(weights" in line) == (damage == "code")  # how to save the weights alone
  with pytest.raises(AssertionError, match=message):
    raise AssertionError(line)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda t: t.pop("mid.attn_1.k.bias"), "1 missing: mid.attn_1.k.bias"),
    (lambda t: t.update({"conv_in.bias": np.zeros(31, np.float32)}), r"1 misshapen: conv_in.bias \(31,\), not \(32,\)"),
    (lambda t: t.update({"another.weight": np.zeros(3, np.float32)}), "1 unused: another.weight"),
    (lambda t: [t.pop(key) for key in list(t) if key.startswith("mid")], "30 missing: mid.*and 22 more"),
    (lambda t: [t.pop(key) for key in list(t) if key != "temb.dense.0.weight"], "tensors are incomplete"),
    (lambda t: t.pop("temb.dense.0.weight"), "not from a known codebase"),
  ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, tensors, change, message):
  change(tensors)
  torch_files.write(tmp_path / "model.pt", tensors)
  with pytest.raises(UserError, match=message):
    convert.convert(tmp_path / "model.pt", overrides=ANSWERS)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, tensors, ending, value):
  tensors["mid.attn_1.k.bias"] = np.full_like(tensors["mid.attn_1.k.bias"], value)
  path = tmp_path / f"model.{ending}"
  weight_files.write(path, tensors)
  with pytest.raises(UserError, match="have values that are not finite"):
    convert.convert(path, overrides=ANSWERS)


def test_known_buffers_are_left_out_and_said_so(tmp_path, tensors):
  torch_files.write(tmp_path / "model.pt", tensors | {"logvar": np.zeros(1000, np.float32)})
  assert convert.convert(tmp_path / "model.pt", overrides=ANSWERS).buffers == ("logvar",)


def test_a_checkpoint_is_not_written_over(tmp_path, tensors):
  torch_files.write(tmp_path / "model.pt", tensors)
  made = convert.convert(tmp_path / "model.pt", overrides=ANSWERS)
  convert.save(made, tmp_path / "out", "model.pt")
  with pytest.raises(UserError, match="already holds checkpoints"):
    convert.save(made, tmp_path / "out", "model.pt")


def test_time_scale_is_asked_where_codebases_differ(golden, tmp_path):
  torch_files.write(tmp_path / "model.pt", golden("unet_improved").state_dict("unet_plain"))
  answers = ["data.image_size=16", "network.num_heads=1", "schedule.T=4000", "schedule.name=cosine"]
  with pytest.raises(UserError, match="do not determine prediction.time_scale"):
    convert.convert(tmp_path / "model.pt", overrides=answers)
  made = convert.convert(tmp_path / "model.pt", overrides=[*answers, "prediction.time_scale=0.25"])
  assert made.config.prediction.time_scale == 0.25


# ---------------------------------------------------------------- the registry


@pytest.mark.parametrize("name", registry.PUBLISHED)
def test_every_published_model_has_a_config_that_builds(name):
  entry = registry.PUBLISHED[name]
  config = entry.config()
  classes = 1000 if config.train.class_conditional or build.is_classifier(config) else None
  network = build.model(config, 3, classes)
  network.check_size(config.data.image_size, config.data.image_size)
  build.schedule(config), build.loss(config)
  if entry.file is not None:
    assert registry.of_file(pathlib.Path("/anywhere") / entry.file) is entry


def test_configs_of_published_files_are_the_networks_whose_sizes_are_known():
  plain = dict(dropout=0.0, dtype=np.float32, remat="none", initialization="openai")
  unets = [row for row in PUBLISHED.values() if "backbone" not in row[0]]
  known = {(models.make(**fields).clone(**plain), size) for fields, size, *_ in unets}
  uncounted = ("consistency", "ffhq_p2")  # their forms are tests/parity/test_families.py's
  for entry in registry.PUBLISHED.values():
    if entry.backbone is None and entry.config_name.partition(":")[0] not in uncounted:
      config = entry.config()
      network = build.model(config, 3, 1000).clone(**plain)
      analytic = network.clone(out_channels=6)  # Improved DDPM's network with half of its output
      assert {(network, config.data.image_size), (analytic, config.data.image_size)} & known, entry.name


def test_weights_by_name_say_which_file_to_fetch_and_where_to_put_it(monkeypatch, tmp_path, tensors):
  with pytest.raises(UserError, match="by hand: download https://drive.google.com/.* put it at .*celeba64-ddim.pt"):
    fetch.workdir("celeba64-ddim")
  with pytest.raises(UserError, match="by hand: download https://www.dropbox.com/.* put it at .*model.ckpt-790000.index"):
    fetch.workdir("cifar10-ddpm-tf")
  with pytest.raises(UserError, match="is not a published model or a config; nearest: cifar10-ddpm"):
    fetch.workdir("cifar10-dpm")

  # a small model in the place of a published one, "downloaded" from a file
  source = tmp_path / "model-000790.ckpt"
  torch_files.write(source, tensors)
  md5 = hashlib.md5(source.read_bytes()).hexdigest()
  small = registry.Published(
    "small", "small.ckpt", "nothing", str(tmp_path / "small.py"), "", source.as_uri(), md5, step=790, averaged=True
  )
  (tmp_path / "small.py").write_text(
    "from ddpm_jax.configs import cifar10_ddpm\n\n\ndef get_config(variant=''):\n  config = cifar10_ddpm.get_config()\n"
    "  config.data.image_size = 16\n  config.network.update(channels=32, channel_mult=(1, 2), num_res_blocks=1, "
    "attention_resolutions=(8,))\n  return config\n"
  )
  monkeypatch.setitem(registry.PUBLISHED, "small", small)
  run = ddpm_jax.load("small")
  assert run.weights == "EMA 0.9999" and run.step == 790 and run.config.sampling.covariance == "marginal"
  assert fetch.workdir("small") == tmp_path / "cache/small"  # not converted again

  other = dataclasses.replace(small, name="other", md5="0" * 32)
  monkeypatch.setitem(registry.PUBLISHED, "other", other)
  with pytest.raises(UserError, match="has the checksum md5:.*, and md5:000.* was published"):
    fetch.workdir("other")
  gone = dataclasses.replace(small, name="gone", file="gone.ckpt", url=(tmp_path / "gone").as_uri())
  monkeypatch.setitem(registry.PUBLISHED, "gone", gone)
  with pytest.raises(UserError, match="could not be downloaded .* save that file as .*gone.ckpt"):
    fetch.workdir("gone")


def test_weights_of_another_training_run_are_recognised_by_their_output(monkeypatch, tmp_path, tensors):
  torch_files.write(tmp_path / "model.pt", tensors)
  made = convert.convert(tmp_path / "model.pt", overrides=ANSWERS)
  network = build.model(made.config, 3, None)
  print_of = fingerprint.fingerprint(network, made.params, made.config)
  moved = jax.tree.map(lambda leaf: leaf * 1.01, made.params)
  assert np.abs(fingerprint.fingerprint(network, moved, made.config) - print_of).max() > 1e-2 * np.abs(print_of).max()

  entry = lambda numbers: registry.Published("x", "x.pt", "", str(tmp_path / "x.py"), "", "", fingerprint=tuple(numbers))
  (tmp_path / "x.py").write_text(
    "from ddpm_jax.configs import cifar10_ddpm\n\n\ndef get_config(variant=''):\n  config = cifar10_ddpm.get_config()\n"
    "  config.data.image_size = 16\n  config.network.update(channels=32, channel_mult=(1, 2), num_res_blocks=1, "
    "attention_resolutions=(8,))\n  return config\n"
  )
  monkeypatch.setitem(registry.PUBLISHED, "x", entry(print_of))
  convert.convert(tmp_path / "model.pt", like="x")
  monkeypatch.setitem(registry.PUBLISHED, "x", entry(print_of + 0.1))
  with pytest.raises(UserError, match="weights are not those of x: a forward pass gives"):
    convert.convert(tmp_path / "model.pt", like="x")


def test_the_list_names_every_model(capsys):
  assert main.run(["convert", "--list"]) == 0
  listed = capsys.readouterr().out
  assert all(f"{name}: " in listed for name in registry.PUBLISHED)


def test_the_names_of_the_first_release_remain():
  assert (names.load, names.save) == (names.to_params, names.to_tensors)
  assert (torch_files.load, torch_files.save) == (torch_files.read, torch_files.write)
