"""What must hold exactly of the networks: sizes of every published one, precision, remat, dropout, refusals."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from networks import PUBLISHED, forward, jit, shapes

from ddpm_jax import models
from ddpm_jax.convert import names
from ddpm_jax.devices import flops
from ddpm_jax.errors import UserError
from ddpm_jax.models import layers
from ddpm_jax.models.kernels import target
from ddpm_jax.models.kernels.attention import implementation


@pytest.mark.parametrize("model", PUBLISHED)
def test_size_of_every_published_network(model):
  fields, size, parameters, tensors = PUBLISHED[model]
  network = models.make(**fields)
  cond = {"label": np.zeros(1, np.int32), "low_res": np.zeros((1, 8, 8, 3), np.float32)}
  tree = shapes(network, np.zeros((1, size, size, 3), np.float32), np.zeros(1, np.float32), cond)
  assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == parameters
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(tree))
  if tensors is not None:
    dialect = {"unet_ddpm": "pesser", "ncsnpp": "ncsnpp", "two_headed": "ncsnpp"}.get(fields["name"], "openai")
    assert sum(len(entry.theirs) for entry in names.entries(network, tree, dialect)) == tensors


# ---------------------------------------------------------------- small networks of every kind

SMALL = dict(channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,))
KINDS = {
  "ddpm": dict(SMALL, name="unet_ddpm"),
  "adm": dict(SMALL, name="unet_adm", head_channels=16, resblock_updown=True),
  "ncsnpp": dict(SMALL, name="ncsnpp"),
  "classifier": dict(SMALL, name="classifier", head_channels=16, out_channels=10),
}
ONE_LEVEL = dict(SMALL, channel_mult=(1,), attention_resolutions=(8,))  # compiles in half the time
X = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
TIME = np.array([3, 700], np.float32)


@functools.cache
def random_params(**fields):
  """Weights of unit-variance layers, the last layer of every branch included."""
  random = np.random.default_rng(1)

  def draw(path, leaf):
    fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 1
    start = 1 if path[-1].key == "scale" else 0
    return np.float32(start + random.standard_normal(leaf.shape) * (fan_in**-0.5 if len(leaf.shape) > 1 else 0.1))

  return jax.tree_util.tree_map_with_path(draw, shapes(models.make(**fields), X, TIME))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_to_float32(kind):
  params = random_params(**KINDS[kind])
  full = forward(models.make(**KINDS[kind]), params, X, TIME)
  half = forward(models.make(**KINDS[kind], dtype="bfloat16"), params, X, TIME)
  assert full.dtype == half.dtype == jnp.float32
  # bfloat16 has 8 bits: 4e-3 a rounding, and a few dozen of them in a row
  assert 0 < np.abs(half - full).max() <= 2e-2 * np.abs(full).max()


def test_cudnn_attention_is_asked_for_when_the_network_is_traced(monkeypatch):
  """Ahead of time for a GPU that is not here: every attention, and none else, is a call of cuDNN's fused kernel.

  It cannot be run here. JAX asks for the library's version already while tracing, which is the one thing replaced.
  """
  params = random_params(**KINDS["adm"])
  attends = sum("attn" in name for name in params)
  library = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(library, "check_cudnn_version", lambda: 91_000)
  for attention, calls in [("cudnn", attends), ("xla", 0)]:
    network = models.make(**KINDS["adm"], attention=attention, dtype="bfloat16")
    loss = lambda params, network=network: network.apply({"params": params}, X, TIME).sum()
    lowered = jax.jit(jax.grad(loss)).trace(params).lower(lowering_platforms=("cuda",)).as_text()
    called = re.findall(r"custom_call @__cudnn\$(\w+)\(", lowered)
    assert sorted(called) == ["fmhaSoftmax"] * calls + ["fmhaSoftmaxBackward"] * calls


@pytest.mark.parametrize(
  ("generation", "dtype", "width", "chosen"),
  [
    (9, jnp.bfloat16, 256, "cudnn"),  # DDPM's single head on CIFAR-10
    (8, jnp.bfloat16, 256, "xla"),
    (8, jnp.bfloat16, 64, "cudnn"),  # ADM's
    (9, jnp.bfloat16, 20, "xla"),
    (9, jnp.float32, 64, "xla"),
    (0, jnp.bfloat16, 64, "xla"),
  ],
)
def test_attention_is_cudnns_where_its_limits_allow(monkeypatch, generation, dtype, width, chosen):
  monkeypatch.setattr(target, "nvidia_generation", lambda: generation)
  assert implementation("auto", dtype, width) == chosen


def test_cudnn_attention_is_never_replaced_in_silence():
  if jax.default_backend() == "gpu":
    pytest.skip("this machine may have cuDNN")
  network = models.make(**KINDS["adm"], attention="cudnn", dtype="bfloat16")
  with pytest.raises(RuntimeError, match="cuDNN is not detected"):
    shapes(network, X, TIME)


REMAT = ("none", "norms", "blocks")  # each recomputes more than the one before


def training_loss(remat, **fields):
  """Of the weights of a network with dropout."""
  network = models.make(**fields, dropout=0.2, remat=remat)
  rngs = {"dropout": jax.random.key(0)}
  return lambda params: jnp.square(network.apply({"params": params}, X, TIME, train=True, rngs=rngs)).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_remat_changes_no_parameter(kind):
  trees = [shapes(models.make(**KINDS[kind], remat=remat), X, TIME, {}) for remat in REMAT]
  assert trees[0] == trees[1] == trees[2]


def test_remat_changes_no_gradient():
  fields = dict(KINDS["adm"], **ONE_LEVEL)
  params = random_params(**fields)
  kept, *recomputed = (jit(jax.grad(training_loss(remat, **fields)))(params) for remat in REMAT)
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(kept))
  close = lambda a, b: np.testing.assert_allclose(b, a, rtol=0, atol=1e-6 * largest)  # sums in another order
  for gradient in recomputed:
    jax.tree.map(close, kept, gradient)


@pytest.mark.parametrize("kind", ["ddpm", "adm", "ncsnpp"])
def test_remat_keeps_less_and_only_blocks_repeats_convolutions(kind):
  """By the arrays that wait for the backward pass, and by the products and convolutions of a gradient."""
  params = jax.eval_shape(lambda: random_params(**KINDS[kind]))
  kept = []
  operations = []
  for remat in REMAT:
    loss = training_loss(remat, **KINDS[kind])
    waiting = jax.tree.leaves(jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p)[1], params))
    weights = {(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params)}
    kept.append(sum(x.size for x in waiting if (x.shape, x.dtype) not in weights))
    operations.append(flops.count(jax.make_jaxpr(jax.grad(loss))(params)))
  none, norms, blocks = kept
  assert blocks < 0.7 * norms and norms < 0.3 * none
  none, norms, blocks = operations
  assert none <= norms < 1.01 * none  # logits of attention
  assert blocks > 1.15 * none


def test_remat_as_configs_said_it_before_and_as_nobody_says_it():
  make = lambda remat: models.make(**KINDS["ddpm"], remat=remat)
  assert make(True) == make("blocks") and make(False) == make("auto") == make("none")
  with pytest.raises(UserError, match="remat='all' is unknown; use \"auto\", 'none', 'norms', 'blocks'"):
    shapes(make("all"), X, TIME)
  with pytest.raises(UserError, match="remat = 3 of 'unet_ddpm' has to be a text"):
    make(3)


def test_dropout_only_when_training():
  fields = dict(KINDS["ddpm"], **ONE_LEVEL)
  params = random_params(**fields)
  network = models.make(**fields, dropout=0.5)
  np.testing.assert_array_equal(forward(network, params, X, TIME), forward(models.make(**fields), params, X, TIME))
  train = jit(lambda key: network.apply({"params": params}, X, TIME, train=True, rngs={"dropout": key}))
  one = train(jax.random.key(1))
  two = train(jax.random.key(2))
  assert np.abs(one - two).max() > 0.1
  np.testing.assert_array_equal(one, train(jax.random.key(1)))


def test_a_second_head_leaves_the_output_of_its_backbone_as_it_is():
  backbone = dict(KINDS["ddpm"], dropout=0.5, **ONE_LEVEL)
  fields = dict(name="two_headed", complex=True, initialization="torch")
  network = models.make(**fields, backbone=backbone)
  params = random_params(**fields, backbone=FrozenDict(backbone))
  assert params.keys() == {"backbone", "head"}
  out = forward(network, params, X, TIME)
  assert out.shape == (2, 8, 8, 6)
  np.testing.assert_allclose(out[..., :3], forward(models.make(**backbone), params["backbone"], X, TIME), rtol=0, atol=1e-9)

  def loss(params, network):
    rngs = {"dropout": jax.random.key(3)}
    out = network.apply({"params": params}, X, TIME, train=True, rngs=rngs)
    return jnp.square(out).mean(), out

  grads, dropped = jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, network)
  assert all(leaf.any() for leaf in jax.tree.leaves(grads["head"]))
  assert (dropped[..., :3] != out[..., :3]).any()  # as the published heads were trained

  _, kept = jit(loss, static_argnums=1)(params, models.make(**fields, backbone=backbone, backbone_dropout=False))
  np.testing.assert_allclose(kept[..., :3], out[..., :3], rtol=0, atol=1e-9)


@pytest.mark.parametrize("initialization, last", [("ho", 1e-4), ("openai", 0.0), ("torch", 0.2)])
def test_initial_weights(initialization, last):
  """Uniform within sqrt(6 / (fan_in + fan_out)) (Ho) or 1 / sqrt(fan_in) (torch); last layers tiny, zero, or as torch."""
  style = layers.Style(initialization)
  ho = initialization == "ho"
  start = lambda layer, *inputs: jit(layer.init, static_argnums=3)(jax.random.key(0), *inputs)["params"]
  features = np.ones((1, 4, 4, 32), np.float32)
  emb = np.ones((1, 8), np.float32)
  block = start(layers.ResBlock(style, 64), features, emb, False)
  attention = start(layers.Attention(style), np.ones((1, 4, 4, 64), np.float32))
  out = start(layers.Readout(style, 3), features, emb, False)

  def bounded(kernel, fan_in, fan_out):
    bound = np.sqrt(6 / (fan_in + fan_out)) if ho else fan_in**-0.5
    assert 0.95 * bound < np.abs(kernel).max() <= bound

  bounded(block["conv1"]["kernel"], 9 * 32, 9 * 64)
  for kernel in np.split(attention["qkv"]["kernel"], 3, axis=1):
    bounded(kernel, 64, 64)
  bounded(block["shortcut"]["kernel"], 32, 64)
  assert block["conv1"]["bias"].any() == (not ho)
  for layer in (block["conv2"], attention["out"], out["conv"]):
    assert np.abs(layer["kernel"]).max() <= last
    assert layer["bias"].any() == (initialization == "torch")
    assert layer["kernel"].any() == (initialization != "openai")


# ---------------------------------------------------------------- conditions


def test_null_label_is_one_more_label():
  fields = dict(KINDS["ddpm"], num_classes=10, null_label=True)
  table = shapes(models.make(**fields), X, TIME, {"label": np.zeros(2, np.int32)})["label_embed"]["embedding"]
  assert table.shape == (11, 128)


@pytest.mark.parametrize("fields", [dict(num_classes=10), dict(low_res=True)])
def test_network_says_which_condition_is_absent(fields):
  with pytest.raises(ValueError, match='cond has no "(label|low_res)"'):
    shapes(models.make(**dict(KINDS["adm"], **fields)), X, TIME)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
  "size, fields, message",
  [
    (28, dict(channel_mult=(1, 2, 2, 2)), "28x28 cannot be halved 3 times.*multiples of 8.*at most 3 entries.*32x32"),
    (8, dict(attention_resolutions=(16,)), "attention_resolutions has 16.*8x8.*choose from 8, 4"),
    (8, dict(channels=48), "48 channels do not divide into 32 norm groups"),
    (8, dict(name="unet_adm", num_heads=5, attention_resolutions=(4,)), "64 channels do not divide into 5 attention heads"),
  ],
)
def test_sizes_that_do_not_fit(size, fields, message):
  network = models.make(**dict(KINDS["ddpm"], **{"attention_resolutions": (), **fields}))
  with pytest.raises(UserError, match=message):
    shapes(network, np.zeros((1, size, size, 3), np.float32), TIME)


def test_check_size_needs_no_tracing():
  with pytest.raises(UserError, match="cannot be halved"):
    models.make("unet_ddpm").check_size(28, 28)
  models.make("unet_ddpm", channel_mult=(1, 2, 2), attention_resolutions=(14,)).check_size(28, 28)


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(name="unet_dpm"), "did you mean 'unet_ddpm'"),
    (dict(name="unet_ddpm", chanels=3), "no field 'chanels'; did you mean 'channels'"),
    (dict(name="unet_ddpm", dtype="bfloat17"), "dtype 'bfloat17'"),
    (dict(KINDS["ddpm"], initialization="zeros"), "initialization='zeros' is unknown; use one of ho, openai, torch"),
    (dict(KINDS["ddpm"], attention="flash"), "attention='flash' is unknown"),
    (dict(KINDS["ddpm"], attention="cudnn"), "computes in half precision"),
    (dict(KINDS["classifier"], pool="max"), "pool='max' is unknown"),
  ],
)
def test_unknown_words(fields, message):
  with pytest.raises(UserError, match=message):
    shapes(models.make(**fields), X, TIME)


def test_average_pool_and_nearest_are_what_they_say():
  x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
  np.testing.assert_array_equal(layers.average_pool(x)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
  np.testing.assert_array_equal(layers.average_pool(layers.nearest(x)), x)
