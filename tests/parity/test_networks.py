"""Every network against the official implementations: outputs, gradients, and weights there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import filled, filler, forward, inputs, jit, ours, shapes
from reference import nhwc

from ddpm_jax import models
from ddpm_jax.convert import names
from ddpm_jax.models import embeddings

# Both sides compute in float32 through 20 to 60 layers; measured here: at most 2e-6 of the largest value.
OUTPUT = 2e-5

GOLDEN = [
  ("unet_ddim", "model0"),
  ("unet_ddim", "model1"),
  ("unet_improved", "unet_scaleshift_learnsigma_class"),
  ("unet_improved", "unet_plain"),
  ("unet_improved", "superres"),
  ("unet_guided", "unet_updown_legacyattn"),
  ("unet_guided", "unet_updown_newattn"),
  ("unet_guided", "unet_halfmult_avgpool"),
  ("unet_guided", "unet_convresample"),
  ("unet_guided", "superres"),
  ("encoder_guided", "encoder_attention"),
  ("encoder_guided", "encoder_adaptive"),
  ("encoder_guided", "encoder_spatial"),
  ("encoder_guided", "encoder_spatial_v2"),
  ("unet_extended", "UNetModel4Pretrained_simple"),
  ("unet_extended", "UNetModel4Pretrained_complex"),
  ("unet_extended", "Model4Pretrained_simple"),
  ("unet_extended", "Model4Pretrained_complex"),
]


def converted(stored, group):
  """(network, params, inputs) of a golden group, after checking that its tensors convert without remainder and back."""
  x, time, cond = inputs(stored, group)
  network, dialect, options = ours(stored.args(group), size=x.shape[1])
  table = names.entries(network, shapes(network, x, time, cond), dialect, **options)
  tensors = stored.state_dict(group) or stored.state_dict("unet_updown_legacyattn")  # "same weights as group ..."
  params, report = names.to_params(table, tensors)
  assert not report, report
  back = names.to_tensors(table, params)
  assert back.keys() == tensors.keys()
  for key, tensor in tensors.items():
    np.testing.assert_array_equal(back[key], tensor, err_msg=key)
  return network, params, (x, time, cond)


def assert_close(got, want, tolerance=OUTPUT):
  np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("file, group", GOLDEN)
def test_output_and_weights_of_every_network(golden, file, group):
  stored = golden(file)
  network, params, (x, time, cond) = converted(stored, group)
  out = stored[f"{group}/out"]
  assert_close(forward(network, params, x, time, cond), nhwc(out) if out.ndim == 4 else out)


def test_hos_tensorflow_network_and_its_variable_names(golden):
  network, params, _ = converted(golden("unet_ddim"), "model0")
  stored = golden("ho_tf")
  x = stored["unet_tf/x"]
  time = stored["unet_tf/t"].astype(np.float32)
  assert_close(forward(network, params, x, time), stored["unet_tf/out"])

  variables = names.to_tensors(names.entries(network, params, "ho_tf"), params)
  tensors = golden("unet_ddim").state_dict("model0")
  same = lambda ours, theirs, *axes: np.testing.assert_array_equal(
    np.squeeze(variables[ours]), np.squeeze(tensors[theirs].transpose(*axes))
  )
  same("temb/dense1/W", "temb.dense.1.weight", 1, 0)
  same("down_1/block_0/conv1/W", "down.1.block.0.conv1.weight", 2, 3, 1, 0)
  same("down_1/attn_0/k/b", "down.1.attn.0.k.bias")
  same("mid/attn_1/norm/gamma", "mid.attn_1.norm.weight")
  same("up_1/upsample/conv/b", "up.1.upsample.conv.bias")
  same("up_0/block_1/nin_shortcut/W", "up.0.block.1.nin_shortcut.weight", 2, 3, 1, 0)
  again, report = names.to_params(names.entries(network, params, "ho_tf"), variables)
  assert not report
  jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize("pool", ["attention", "adaptive"])
def test_gradient_that_guides(golden, pool):
  stored = golden("encoder_guided")
  network, params, (x, time, _) = converted(stored, f"encoder_{pool}")
  label = stored[f"classifier_gradient_{pool}/y"]

  def log_prob(x):
    log_probs = jax.nn.log_softmax(network.apply({"params": params}, x, time))
    chosen = log_probs[jnp.arange(len(label)), label]
    return chosen.sum(), chosen

  grad, chosen = jit(jax.grad(log_prob, has_aux=True))(x)
  assert_close(chosen, stored[f"classifier_gradient_{pool}/selected_log_probs"])
  assert_close(grad, nhwc(stored[f"classifier_gradient_{pool}/grad"]), 1e-4)  # float32 backward; measured 2e-6


@pytest.mark.parametrize("which", ["openai", "ho"])
def test_embeddings_of_time(golden, which):
  stored = golden({"openai": "embeddings_openai", "ho": "ho_tf"}[which])
  group = {"openai": "timestep_embedding", "ho": "get_timestep_embedding"}[which]
  for key in stored.groups[group]["arrays"]:
    if "dim" not in key:
      continue
    kind, dim, *period = key.split("_")
    time = stored[f"{group}/t_{kind}"].astype(np.float32)
    embed = embeddings.cos_sin if which == "openai" else embeddings.sin_cos
    options = {"max_period": float(period[0].removeprefix("mp"))} if period else {}
    got = embed(jnp.asarray(time), int(dim.removeprefix("dim")), **options)
    # one unit in the last place of a float32 phase of up to 4000
    np.testing.assert_allclose(got, stored[f"{group}/{key}"], rtol=0, atol=3e-4, err_msg=key)


# ---------------------------------------------------------------- REFERENCE, appendix A.7

_D1 = dict(name="unet_ddpm", channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,))
_I2 = dict(_D1, name="unet_adm", out_channels=6, num_heads=1, scale_shift=False)
_I1 = dict(_I2, num_heads=2, scale_shift=True, num_classes=10)
_G2 = dict(_I1, head_channels=16, resblock_updown=True)
_E = dict(_G2, name="classifier", out_channels=10, num_classes=None)
_X2 = dict(_I1, out_channels=3, num_classes=None)
_N1 = dict(_D1, name="ncsnpp")


def two(backbone, complex=False):
  return dict(name="two_headed", backbone=backbone, complex=complex)


# id: network, dialect, (parameters, tensors), mean, std, first six and last output in NCHW order
FILLED = {
  "D1": (_D1, "pesser", (702499, 144), -0.223557, 0.585713, "-.36409 -.2754 -.18397 -.29619 -.42037 .36281 -.48838"),
  "D2": (
    dict(_D1, channel_mult=(1, 2, 2), num_res_blocks=2),
    "pesser",
    (1624323, 268),
    -0.217331,
    0.607448,
    ".16697 -.01668 -.17036 .09746 .17656 -.60126 -.10496",
  ),
  "I1": (_I1, "openai", (758310, 129), 0.080802, 0.596290, ".24656 .76791 .79369 .32609 .11989 .70653 -.21047"),
  "I2": (_I2, "openai", (703366, 128), 0.078855, 0.591685, ".25199 .67698 .29459 .15822 .01419 .50837 -.28692"),
  "G2": (_G2, "openai new", (829638, 145), 0.082393, 0.612082, ".07453 .3646 .89124 -.11641 .24062 .70536 -.06561"),
  "G3": (_G2, "openai", (829638, 145), 0.084429, 0.621751, ".13032 .24623 1.0586 .02754 .23795 .69545 -.02886"),
  "G4": (
    dict(_I1, resblock_updown=True, low_res=True),
    "openai",
    (830502, 145),
    0.081944,
    0.595396,
    ".26692 .59708 .10344 .17501 .4044 .78204 -.30352",
  ),
  "Ea": (_E, "openai", (381834, 77), -0.102297, 0.210959, "-.18175 .22507 .27684 .03905 -.04851 -.30453 -.06652"),
  "Eb": (
    dict(_E, pool="adaptive"),
    "openai",
    (365194, 74),
    0.045762,
    0.399735,
    ".107 .1251 -.53325 .08542 -.00594 .59018 -.18078",
  ),
  "Ec": (
    dict(_E, pool="spatial"),
    "openai",
    (845706, 74),
    -0.026425,
    0.505602,
    ".18687 -.9483 -.13648 -.46589 .16004 .22076 .73443",
  ),
  "Ed": (
    dict(_E, pool="spatial_v2"),
    "openai",
    (849802, 76),
    -0.291385,
    0.701493,
    "-.08555 -.17845 .78344 -.61018 -.54759 -1.00066 -.10278",
  ),
  "X1s": (two(_D1), "pesser", (703430, 148), 0.056381, 0.655938, "-.36409 -.2754 -.18397 -.29619 -.42037 .36281 .03323"),
  "X1c": (
    two(_D1, complex=True),
    "pesser",
    (726182, 158),
    0.056786,
    0.660040,
    "-.36409 -.2754 -.18397 -.29619 -.42037 .36281 .11028",
  ),
  "X2s": (two(_X2), "openai", (757094, 132), 0.030960, 0.591030, ".2506 .76647 .83107 .35778 .10647 .70744 .31819"),
  "X2c": (
    two(_X2, complex=True),
    "openai",
    (783974, 142),
    0.160949,
    0.586918,
    ".2506 .76647 .83107 .35778 .10647 .70744 .54714",
  ),
  "N1": (
    two(_N1),
    "ncsnpp",
    (750822, 159 - 1),  # one of the reference's 159 is its buffer `sigmas`
    0.103151,
    0.585256,
    "-.35081 -.48937 -.18309 -.0944 -.62156 -.81369 -.07439",
  ),
}


@pytest.mark.parametrize("id", FILLED)
def test_networks_filled_with_known_numbers(id):
  fields, dialect, size, mean, std, samples = FILLED[id]
  network = models.make(**fields)
  x = nhwc(filler("x", 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)).astype(np.float32)
  cond = {"label": np.array([3, 7], np.int32)}
  cond["low_res"] = nhwc(filler("low_res", 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)).astype(np.float32)
  time = np.array([37, 512], np.float32)
  dialect, _, order = dialect.partition(" ")
  table = names.entries(network, shapes(network, x, time, cond), dialect, attention_order=order or "legacy")
  tensors = filled(table)
  assert (sum(tensor.size for tensor in tensors.values()), len(tensors)) == size
  params, report = names.to_params(table, tensors)
  assert not report, report

  out = np.asarray(forward(network, params, x, time, cond))
  out = out.transpose(0, 3, 1, 2) if out.ndim == 4 else out
  # the reference's table has six digits of the moments and five decimals of the samples
  np.testing.assert_allclose([out.mean(), out.std()], [mean, std], rtol=0, atol=2e-6)
  np.testing.assert_allclose([*out.flat[:6], out.flat[-1]], [float(s) for s in samples.split()], rtol=0, atol=1.2e-5)


def test_cifar10_network_filled_with_known_numbers():
  """D3: all 35.7 million parameters of Ho's CIFAR-10 model."""
  network = models.make("unet_ddpm")
  x = nhwc(filler("x", 3 * 32 * 32).reshape(1, 3, 32, 32)).astype(np.float32)
  time = np.array([500], np.float32)
  table = names.entries(network, shapes(network, x, time), "pesser")
  tensors = filled(table)
  assert (sum(tensor.size for tensor in tensors.values()), len(tensors)) == (35_746_307, 328)
  params, _ = names.to_params(table, tensors)
  out = np.asarray(forward(network, params, x, time)).transpose(0, 3, 1, 2)
  np.testing.assert_allclose([out.mean(), out.std()], [-0.229012, 0.618914], rtol=0, atol=2e-6)
  samples = [-0.4619, -0.399, -0.47635, -1.54825, -0.56862, -0.7717, 0.40807]
  np.testing.assert_allclose([*out.flat[:6], out.flat[-1]], samples, rtol=0, atol=1.2e-5)
