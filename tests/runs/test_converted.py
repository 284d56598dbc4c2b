"""Checkpoints of every family, from the authors' container over the command line to ten steps of DDIM.

The weights are those of the golden networks. The states visited by the command line's sampler are compared with those of the
authors' DDIM loops, run in float64 under PyTorch with the networks of tests/helpers/torch_networks.py. The golden outputs
verify those networks. x_T and the noise are ours, reproduced from the seeds.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest
from containers import write_bundle
from networks import filled, ours, shapes
from reference import nhwc

from ddpm_jax import models
from ddpm_jax.cli import main
from ddpm_jax.convert import names
from ddpm_jax.diffusion import noise
from ddpm_jax.jobs import trained

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
torch_networks = pytest.importorskip("torch_networks")

SEEDS = [3, 4]
LABELS = [1, 7]

# float32 through ten networks and as many steps, relative to the largest value of a state; measured: 2e-5
TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def _environment():
  """What cli/environment.py would otherwise choose, too late in a process that has JAX running; and quick compilation."""
  jax.config.update("jax_disable_most_optimizations", True)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_NUM_CPU_DEVICES", "1")
    yield
  jax.config.update("jax_disable_most_optimizations", False)


# ---------------------------------------------------------------- the authors' DDIM


LINEAR = np.append(1.0, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
VP = np.exp(-(0.1 * np.linspace(0, 1, 1001) + 19.9 * np.linspace(0, 1, 1001) ** 2 / 2))
_f = np.cos((np.arange(4001) / 4000 + 0.008) / 1.008 * np.pi / 2) ** 2
COSINE = np.append(1.0, np.cumprod(1 - np.minimum(1 - _f[1:] / _f[:-1], 0.999)))  # IDDPM eq. 17, 4000 levels

STRIDE_100 = range(901, 0, -100)
STRIDE_400 = range(3601, 0, -400)
EVEN = [round(1 + 111 * k) for k in reversed(range(10))]  # 1000, 889, ..., 1: Analytic-DPM's


def ddim(network, x, *, alpha_bar, levels, draw=None, clip=True, keep_eps=False, eps_var=None, score=None, through=None):
  """Every state after a step of DDIM with eta = 0 along `levels` and to 0; network(x, n) -> eps, perhaps with a second head.

  As ermongroup/ddim does it with clip=False, OpenAI with clip=True, which then re-derives eps, Analytic-DPM and
  Extended-Analytic-DPM with keep_eps, and a variance that follows from eps_var(n, eps, head), at most one grey level in
  the step before the last. score(x, n) is ADM's guidance, algorithm 2. With `through`, states on the way, each step begins
  where they are.
  """
  states = []
  for k, (t, s) in enumerate(itertools.pairwise([*levels, 0])):
    x = x if through is None or k == 0 else through[k - 1]
    eps, *head = network(x, t).split(x.shape[1], 1)
    at = alpha_bar[t]
    before = alpha_bar[s]
    x_0 = (x - (1 - at) ** 0.5 * eps) / at**0.5
    if clip:
      x_0 = x_0.clamp(-1, 1)
      eps = eps if keep_eps else (x - at**0.5 * x_0) / (1 - at) ** 0.5
    if score:
      eps = eps - (1 - at) ** 0.5 * score(x, t)
      x_0 = (x - (1 - at) ** 0.5 * eps) / at**0.5
    x = before**0.5 * x_0 + (1 - before) ** 0.5 * eps
    if eps_var and s > 0:
      x_0_var = ((1 - at) / at * eps_var(t, eps, *head)).clamp(0, 1)
      variance = (before**0.5 - ((1 - before) * at / (1 - at)) ** 0.5) ** 2 * x_0_var
      x = x + variance.clamp(max=(2 / 255) ** 2 * np.pi / 2 if s == levels[-1] else np.inf).sqrt() * draw(t)
    states.append(x)
  return states


# ---------------------------------------------------------------- from a file to the states on the way


@pytest.fixture
def visited(monkeypatch):
  """The states that the samplers of the command line pass through: an array [10,B,H,W,C] for each."""
  states = []

  def spy(*args, sample, save=None, **options):
    x, kept = sample(*args, save=_state, **options)
    states.append(np.asarray(kept))
    return x, kept

  for name in ("sample", "_sample_alone"):
    monkeypatch.setattr(trained, name, functools.partial(spy, sample=getattr(trained, name)))
  return states


def _state(x, pred):
  return x


def flags(answers):
  return [f"--config.{answer}" for answer in answers.split()]


def convert(path, run, answers, *more):
  assert main.run(["convert", str(path), "--out", str(run), *flags(answers), *more]) == 0


def sample(run, *more):
  """uint8 images by the command line."""
  seeds = ",".join(map(str, SEEDS))
  assert main.run(["sample", "--workdir", str(run), "--seeds", seeds, "--formats", "npz", "--out", f"{run}/npz", *more]) == 0
  return np.load(run / "npz/samples.npz")["arr_0"]


def drawn(size, fold=None):
  """(x_T, noise of level n) [B,3,size,size]: the standard normals of our seeds."""
  keys = noise.image_keys(np.uint32(SEEDS))
  keys = keys if fold is None else jax.vmap(jax.random.fold_in, (0, None))(keys, fold)
  draw = lambda n: _tensor(np.moveaxis(np.asarray(noise.normal(keys, (size, size, 3), n)), -1, 1))
  return draw(0), draw


def _tensor(array):
  return torch.tensor(np.asarray(array, np.float64))


def in_torch(tensors):
  return {key: _tensor(tensor) for key, tensor in tensors.items()}


def quantized(x):
  """uint8, as OpenAI's scripts do it."""
  return np.clip(127.5 * (x + 1), 0, 255).astype(np.uint8)


def check(states, theirs, images, rounding):
  assert len(states) == len(theirs) == 10
  for got, want in zip(states, theirs, strict=True):
    want = nhwc(want.numpy())
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max())
  last = nhwc(theirs[-1].numpy())
  grey = np.clip(127.5 * (last + 1), 0, 255)
  slack = 127.5 * TOLERANCE * np.abs(last).max()
  start = {"truncate": 0.0, "round": 0.5}[rounding]
  assert (np.floor(np.maximum(grey - slack, 0) + start) <= images).all()
  assert (images <= np.floor(np.minimum(grey + slack, 255) + start)).all()


# ---------------------------------------------------------------- families


class Family(NamedTuple):
  file: str  # of golden weights
  group: str
  name: str  # of the checkpoint
  write: Callable  # (path, tensors)
  size: int
  answers: str  # what tensors do not tell, and how to sample
  network: Callable  # (tensors in torch, x, n) -> output
  loop: dict  # of ddim
  rounding: str = "truncate"
  labels: bool = False
  more: tuple[str, ...] = ()  # arguments of convert
  head: str = ""  # the bias of its second head


def torch_file(content):
  """A writer of content(tensors), as torch.save does it."""
  return lambda path, tensors: torch.save(content({key: torch.tensor(value) for key, value in tensors.items()}), path)


def training_of_ddim(average):
  raw = {f"module.{key}": tensor + 1 for key, tensor in average.items()}
  return [raw, torch.optim.Adam(raw.values()).state_dict(), 5, 300_000, average]


def training_of_analytic_dpm(average):
  raw = {key: tensor + 1 for key, tensor in average.items()}
  optimizer = {"eps_model": torch.optim.Adam(raw.values()).state_dict()}
  models = {"models_states": {"eps_model": raw}, "ema_models_states": {"eps_model": average}}
  return {"it": 400_000, "best_val_loss": 1.0, "optimizers_states": optimizer, "lr_schedulers_states": {}} | models


def tensorflow(path, tensors):
  """Ho's variables, raw and averaged, with Adam's."""
  network, dialect, _ = ours(dict(ch=32, out_ch=3, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[8]), 16)
  tree = shapes(network, np.zeros((1, 16, 16, 3), np.float32), np.zeros(1, np.float32))
  params, _ = names.to_params(names.entries(network, tree, dialect), tensors)
  variables = {
    f"model/{name}": value for name, value in names.to_tensors(names.entries(network, tree, "ho_tf"), params).items()
  }
  write_bundle(
    path,
    {name: value + 1 for name, value in variables.items()}
    | {f"{name}/ExponentialMovingAverage": value for name, value in variables.items()}
    | {f"{name}/Adam_1": value for name, value in variables.items()}
    | {"global_step": np.ones((), np.float32)},
  )


def full(x, n):
  return torch.full((len(x),), float(n))


def of_ho(tensors, x, n):
  return torch_networks.ho(tensors, x, full(x, n - 1))


def of_openai(tensors, x, n, scale=1.0, shift=1, **options):
  return torch_networks.openai(tensors, x, full(x, (n - shift) * scale), **{"num_res_blocks": 1} | options)


MS_EPS = np.float32(1 - 0.9 * np.exp(-np.arange(1001) / 200))
LABELLED = dict(label=torch.tensor(LABELS))
EIGHT, SIXTEEN = (f"data.image_size={size} schedule.name=linear schedule.T=1000 sampling.eta=0" for size in (8, 16))
DDIM = f"{SIXTEEN} sampling.grid=ddim sampling.steps=10 sampling.clip=none sampling.rounding=round"
OPTIMAL = "sampling.grid=uniform sampling.steps=10 sampling.covariance=optimal sampling.cap_pixels=1 "
OPTIMAL += "sampling.keep_eps=True sampling.rounding=round"
OF_DDIM, OF_OPENAI = (dict(alpha_bar=LINEAR, levels=STRIDE_100, clip=clip) for clip in (False, True))
OF_EXTENDED = dict(alpha_bar=LINEAR, levels=EVEN, keep_eps=True)
FAMILIES = {
  "DDIM": Family("unet_ddim", "model0", "ckpt_300000.pth", torch_file(training_of_ddim), 16, DDIM, of_ho, OF_DDIM, "round"),
  "DDPM in TensorFlow": Family("unet_ddim", "model0", "model.ckpt-790000", tensorflow, 16, DDIM, of_ho, OF_DDIM, "round"),
  "Improved DDPM": Family(
    "unet_improved",
    "unet_scaleshift_learnsigma_class",
    "ema_0.9999_500000.pt",
    torch_file(dict),
    16,
    "data.image_size=16 schedule.name=cosine schedule.T=4000 prediction.time_scale=0.25 network.num_heads=4 "
    "sampling.grid=ddim10 sampling.eta=0",
    functools.partial(of_openai, scale=0.25, num_heads=4, **LABELLED),
    dict(alpha_bar=COSINE, levels=STRIDE_400),
    labels=True,
  ),
  "ADM, new order of attention": Family(
    "unet_guided",
    "unet_updown_newattn",
    "ema_0.9999_500000.pt",
    torch_file(dict),
    8,
    f"{EIGHT} network.head_channels=16 sampling.grid=ddim10",
    functools.partial(of_openai, num_head_channels=16, use_new_attention_order=True, **LABELLED),
    OF_OPENAI,
    labels=True,
    more=("--attention_order", "new"),
  ),
  "Analytic-DPM": Family(
    "unet_improved",
    "unet_plain",
    "400001.ckpt.pth",
    torch_file(training_of_analytic_dpm),
    8,
    f"{EIGHT} network.num_heads=1 prediction.time_shift=0 {OPTIMAL} sampling.moments=ms_eps.pth",
    functools.partial(of_openai, shift=0, num_res_blocks=2),
    OF_EXTENDED | dict(eps_var=lambda n, eps, *_: 1 - MS_EPS[n] + 0 * eps),
    "round",
  ),
  "NPR-DPM on CelebA": Family(
    "unet_extended",
    "Model4Pretrained_complex",
    "npr.pth",
    torch_file(dict),
    8,
    f"{EIGHT} prediction.second=residual {OPTIMAL}",
    of_ho,
    OF_EXTENDED | dict(eps_var=lambda n, eps, head: head),
    "round",
    head="conv_out2.bias",
  ),
  "SN-DPM on CIFAR-10": Family(
    "unet_extended",
    "UNetModel4Pretrained_simple",
    "sn.pth",
    torch_file(dict),
    8,
    f"{EIGHT} prediction.second=second_moment prediction.time_shift=0 network.backbone.num_heads=2 {OPTIMAL}",
    functools.partial(of_openai, shift=0, num_heads=2),
    OF_EXTENDED | dict(eps_var=lambda n, eps, head: head - eps**2),
    "round",
    head="out2.2.bias",
  ),
  "SN-DPM on VP-SDE": Family(
    "",
    "",
    "sn.pth",
    torch_file(lambda tensors: tensors | {"sigmas": torch.ones(1000)}),
    8,
    f"data.image_size=8 schedule.name=vp_sde sampling.eta=0 prediction.second=second_moment {OPTIMAL}",
    lambda tensors, x, n: torch_networks.ncsnpp(tensors, x, full(x, 0.999 * n), levels=2, num_res_blocks=1),
    dict(alpha_bar=VP, levels=EVEN, keep_eps=True, eps_var=lambda n, eps, head: head - eps**2),
    "round",
    head="conv_out2.bias",
  ),
}


def tensors_of(golden, file, group):
  if file:
    return golden(file).state_dict(group) or golden(file).state_dict("unet_updown_legacyattn")  # the same weights
  backbone = dict(name="ncsnpp", channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,))
  network = models.make("two_headed", backbone=backbone)
  return filled(names.entries(network, shapes(network, np.zeros((1, 8, 8, 3)), np.zeros(1)), "ncsnpp"))


@pytest.mark.parametrize("name", FAMILIES)
def test_ten_steps_of_ddim_are_those_of_pytorch(golden, tmp_path, monkeypatch, visited, name):
  family = FAMILIES[name]
  tensors = tensors_of(golden, family.file, family.group)
  if family.head:  # mostly positive: the deviation is its root, which at 0 would make much of rounding
    tensors[family.head] = tensors[family.head] + 1
  monkeypatch.chdir(tmp_path)
  torch.save(MS_EPS, "ms_eps.pth")
  family.write(tmp_path / family.name, tensors)
  convert(tmp_path / family.name, tmp_path / "run", family.answers, *family.more)
  images = sample(tmp_path / "run", *(["--classes", ",".join(map(str, LABELS))] if family.labels else []))
  x_T, draw = drawn(family.size)
  with torch.no_grad():
    # noise of a random head's variance makes rounding grow threefold a step, so these steps are compared one by one
    through = [_tensor(np.moveaxis(x, -1, 1)) for x in visited[0]] if "eps_var" in family.loop else None
    states = ddim(functools.partial(family.network, in_torch(tensors)), x_T, draw=draw, through=through, **family.loop)
  check(visited[0], states, images, family.rounding)


# ---------------------------------------------------------------- ADM's pairs of networks


ADM_ANSWERS = "schedule.name=linear schedule.T=1000 network.head_channels=16 sampling.grid=ddim10 sampling.eta=0"


def adm(golden, folder, group, answers):
  """(the run of a converted checkpoint, its network under PyTorch)."""
  tensors = golden("unet_guided").state_dict(group)
  torch_file(dict)(folder / f"{group}.pt", tensors)
  convert(folder / f"{group}.pt", folder / group, f"{ADM_ANSWERS} {answers}")
  return folder / group, functools.partial(of_openai, in_torch(tensors), num_head_channels=16)


def test_ddim_of_a_cascade_is_that_of_pytorch(golden, tmp_path, visited):
  base, small_network = adm(golden, tmp_path, "unet_updown_legacyattn", "data.image_size=8")
  upsampler, network = adm(golden, tmp_path, "superres", "data.image_size=16 data.low_res_size=8")
  images = sample(base, "--classes", ",".join(map(str, LABELS)), "--upsampler", str(upsampler))
  small = quantized(visited[0][-1])
  low_res = _tensor(np.moveaxis(small, -1, 1)) / 127.5 - 1
  with torch.no_grad():
    first = ddim(functools.partial(small_network, **LABELLED), drawn(8)[0], **OF_OPENAI)
    second = ddim(functools.partial(network, low_res=low_res), drawn(16, fold=16)[0], **OF_OPENAI)
  check(visited[0], first, small, "truncate")
  check(visited[1], second, images, "truncate")


def test_guided_ddim_is_that_of_pytorch(golden, tmp_path, visited):
  run, network = adm(golden, tmp_path, "unet_updown_legacyattn", "data.image_size=16")
  tensors = golden("encoder_guided").state_dict("encoder_attention")
  torch_file(dict)(tmp_path / "model000100.pt", tensors)
  convert(tmp_path / "model000100.pt", tmp_path / "guide", "network.head_channels=16")
  guidance = flags(f"sampling.guidance.kind=classifier sampling.guidance.scale=3 sampling.guidance.model={tmp_path}/guide")
  images = sample(run, "--classes", ",".join(map(str, LABELS)), *guidance)
  guide = functools.partial(torch_networks.classifier, in_torch(tensors), num_res_blocks=1, num_head_channels=16)

  def score(x, n):
    with torch.enable_grad():
      x = x.detach().requires_grad_()
      log_p = guide(x, full(x, n - 1)).log_softmax(1)[[0, 1], LABELS].sum()
      return 3 * torch.autograd.grad(log_p, x)[0]

  with torch.no_grad():
    states = ddim(functools.partial(network, **LABELLED), drawn(16)[0], score=score, **OF_OPENAI)
  check(visited[0], states, images, "truncate")
