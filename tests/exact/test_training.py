"""Training against known answers: averages, rates, gradients, guards, fingerprints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.devices import mesh as layout
from ddpm_jax.errors import UserError
from ddpm_jax.files import digest
from ddpm_jax.training import checkpoints, ema, manifest, optimizer, power_ema, state, step, trainable

# ---------------------------------------------------------------------------------------------------- averages


def average(params, rate, warmup, start=None):
  """The averages after each of params[1:], [updates, ...]."""
  now = ema.init(params[0] if start is None else start, (rate,))
  out = []
  for n, p in enumerate(params[1:] if start is None else params):
    now = ema.update(now, p, jnp.int32(n), warmup=warmup)
    out.append(np.asarray(now[str(rate)]))
  return np.stack(out)


def test_ema_is_the_ddim_codes(golden):
  ddim = golden("ddim_repo")
  shadow = average(jnp.asarray(ddim["EMAHelper/params"]), ddim.args("EMAHelper")["mu"], warmup=False)
  # float32: both add a difference to a value of order 1
  np.testing.assert_allclose(shadow, ddim["EMAHelper/shadow"][1:], rtol=2e-7, atol=1e-7)


def test_ema_is_openais(golden):
  openai = golden("embeddings_openai")
  targets = average(
    jnp.asarray(openai["update_ema/sources"]),
    openai.args("update_ema")["rate"],
    warmup=False,
    start=jnp.asarray(openai["update_ema/target0"]),
  )
  np.testing.assert_allclose(targets, openai["update_ema/targets"], rtol=2e-7, atol=1e-7)  # as above


def test_warm_ema_weighs_as_its_formula():
  params = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
  exact = params[0].astype(np.float64)
  for n, p in enumerate(params[1:]):
    rate = min(0.99, (1 + n) / (10 + n))
    exact = rate * exact + (1 - rate) * p
  np.testing.assert_allclose(average(params, 0.99, warmup=True)[-1], exact, atol=1e-6)  # float32, 200 sums


def test_warm_ema_forgets_the_initial_weights():
  def initial_left(warmup):
    params = np.append(np.ones(1, np.float32), np.zeros(1000, np.float32))
    return average(params, 0.9999, warmup)[-1]

  assert initial_left(warmup=False) > 0.9  # after 1000 updates still the random start: what users see as noise
  assert initial_left(warmup=True) < 1e-15


def test_ema_of_constant_weights_is_exactly_them():
  params = np.full((50, 4), np.float32(0.1))
  assert (average(params, 0.9999, warmup=True) == np.float32(0.1)).all()


def test_ema_rates_must_be_rates():
  for rates in [(1.0,), (-0.1,), (0.9, 0.9)]:
    with pytest.raises(UserError, match="EMA rates"):
      ema.init({}, rates)


# ---------------------------------------------------------------------------------------------------- optimizer


def test_first_update_of_a_warm_up_has_rate_0_and_the_rest_rise_linearly():
  rate = optimizer.schedule(2e-4, 800_000, warmup_steps=5000)
  np.testing.assert_allclose([rate(n) for n in (0, 1, 2500, 5000, 700_000)], [0, 4e-8, 1e-4, 2e-4, 2e-4], rtol=1e-6)


def test_decays_end_at_0_at_the_last_step():
  linear, cosine = (optimizer.schedule(1.0, 100, warmup_steps=20, decay=decay) for decay in ("linear", "cosine"))
  np.testing.assert_allclose([linear(n) for n in (10, 20, 40, 60, 100)], [0.5, 1, 0.75, 0.5, 0], atol=1e-6)
  np.testing.assert_allclose([cosine(n) for n in (10, 20, 40, 60, 100)], [0.5, 1, 0.8535534, 0.5, 0], atol=1e-6)


def test_adms_classifier_anneal():
  rate = optimizer.schedule(3e-4, 300_000, decay="linear")
  for n in (0, 1000, 299_999):
    np.testing.assert_allclose(rate(n), 3e-4 * (1 - n / 300_000), rtol=2e-2 if n == 299_999 else 1e-6)  # 1 - u in float32


def test_schedules_refuse_what_cannot_be():
  with pytest.raises(UserError, match="'exponential' is unknown; choose one of constant, linear, cosine"):
    optimizer.schedule(1.0, 10, decay="exponential")
  with pytest.raises(UserError, match="warm-up of 10 steps must be shorter than the run's total_steps = 10"):
    optimizer.schedule(1.0, 10, warmup_steps=10)


def test_adam_follows_its_definition():
  b1 = 0.9
  b2 = 0.999
  eps = 1e-8
  rate = 0.01
  grads = np.random.default_rng(0).normal(size=(30, 5)) * 1e-3
  tx = optimizer.make_optimizer(rate, b1=b1, b2=b2, eps=eps)
  params = jnp.zeros(5)
  moments = tx.init(params)
  m = v = exact = np.zeros(5)
  for t, g in enumerate(grads, start=1):
    updates, moments = tx.update(jnp.asarray(g, jnp.float32), moments, params)
    params = optax.apply_updates(params, updates)
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    exact = exact - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
  np.testing.assert_allclose(params, exact, atol=1e-6)  # float32 sums of 30 updates of size 0.01


def test_clipping_scales_the_whole_gradient():
  tx = optimizer.make_optimizer(1.0, b1=0.0, b2=0.0, eps=1e3, clip_norm=1.0)  # with a huge eps Adam is SGD / 1000
  params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
  for g, clipped in (((3.0, 4.0), (0.6, 0.8)), ((0.3, 0.4), (0.3, 0.4))):
    grads = {"a": jnp.full(1, g[0]), "b": jnp.full(1, g[1])}
    updates, _ = tx.update(grads, tx.init(params), params)
    got = [-1e3 * updates["a"][0], -1e3 * updates["b"][0]]
    np.testing.assert_allclose(got, clipped, rtol=2e-3)  # eps + |g| instead of eps: 1e-3


def test_weight_decay_is_decoupled():
  tx = optimizer.make_optimizer(0.1, weight_decay=0.2)
  updates, _ = tx.update(jnp.zeros(1), tx.init(jnp.ones(1)), jnp.ones(1))
  np.testing.assert_allclose(updates, [-0.02], rtol=1e-6)


# ---------------------------------------------------------------------------------------------------- the step


class Fixed:
  """A time sampler for tests: levels 1, 2, 1, 2, … with weights 1, 3, 1, 3, …; remembers the losses it was told."""

  def init(self, size):
    return jnp.zeros(size)

  def sample(self, state, key, size):
    n = jnp.arange(size) % 2 + 1
    return n, 2.0 * n - 1

  def update(self, state, n, loss):
    return loss


def squares(keys, network, x_0, n, cond):
  """|p - x|^2 with a `network` that is the parameters: everything is known in closed form."""
  losses = ((network["p"] * network["frozen"] - x_0) ** 2)[:, 0, 0, 0]
  return losses, {"level": n.astype(jnp.float32)}


def one_step(loss, batch, *, params=None, accumulate=1, tx=None, start=0, skipped=0, **options):
  mesh = layout.make_mesh(devices=jax.devices()[:1])
  params = params or {"p": jnp.float32(1.0), "frozen": jnp.float32(2.0)}
  tx = tx or optax.sgd(0.1)
  learns = options.get("learns")
  before = state.create(
    jax.random.key(0), params, tx, ema_rates=(0.5,), time_sampler=Fixed().init(len(batch["image"])), learns=learns
  )
  before = before.replace(step=jnp.int32(start), skipped=jnp.int32(skipped))
  before = jax.device_put(before, layout.of_state(before, mesh))
  train = step.make_train_step(loss, lambda params, key: params, tx, Fixed(), mesh=mesh, accumulate=accumulate, **options)
  return train(before, jax.tree.map(jnp.asarray, batch))


IMAGES = np.array([0.5, -1.0, 0.0, 1.0], np.float32).reshape(4, 1, 1, 1)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_gradient_is_that_of_the_weighted_mean(accumulate):
  options = dict(accumulate=accumulate, learns=lambda path: path == "p", start=7, skipped=5)
  after, metrics = one_step(squares, {"image": IMAGES}, **options)
  x = IMAGES[:, 0, 0, 0]
  w = np.array([1.0, 3.0, 1.0, 3.0])
  np.testing.assert_allclose(metrics["loss"], np.mean(w * (2 - x) ** 2), rtol=1e-6)
  np.testing.assert_allclose(metrics["level"], np.mean(w * [1, 2, 1, 2]), rtol=1e-6)
  gradient = np.mean(w * 2 * (2 - x) * 2)
  np.testing.assert_allclose(metrics["grad_norm"], gradient, rtol=1e-6)
  np.testing.assert_allclose(after.params["p"], 1 - 0.1 * gradient, rtol=1e-6)
  np.testing.assert_allclose(after.time_sampler, (2 - x) ** 2, rtol=1e-6)  # unweighted, in the batch's order
  gap = max(0.5, 9 / (10 + 7 - 5))  # an average warms up with the updates, not with the steps
  np.testing.assert_allclose(after.ema["0.5"]["p"], 1 + gap * (after.params["p"] - 1), rtol=1e-6)


def test_frozen_parameters_stay_and_have_no_optimizer_state():
  after, _ = one_step(squares, {"image": IMAGES}, learns=lambda path: path == "p", tx=optax.adam(0.1))
  assert after.params["frozen"] == 2.0 and after.ema["0.5"]["frozen"] == 2.0
  assert after.opt_state[0].mu["frozen"] is None
  after, _ = one_step(squares, {"image": IMAGES})
  assert after.params["frozen"] != 2.0


def test_nothing_trainable_is_refused():
  with pytest.raises(UserError, match="No parameter would be trained"):
    trainable.split({"a": jnp.zeros(1)}, lambda path: path == "b")


def test_bytes_are_mapped_to_unit_range():
  pixels = np.array([0, 255, 51, 204], np.uint8).reshape(4, 1, 1, 1)
  read = lambda keys, network, x_0, n, cond: (x_0[:, 0, 0, 0] * network["p"], {})
  after, _ = one_step(read, {"image": pixels})
  np.testing.assert_allclose(after.time_sampler, [-1, 1, -0.6, 0.6], atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_labels_travel_with_their_images_and_drop_at_the_given_rate(accumulate):
  labels = np.arange(4096, dtype=np.int32) % 10
  count = 4096
  seen = lambda keys, network, x_0, n, cond: (cond["label"] + 0.0 * network["p"], {})
  images = np.zeros((count, 1, 1, 1), np.float32)
  after, _ = one_step(seen, {"image": images, "label": labels}, label_dropout=0.25, null_label=10, accumulate=accumulate)
  dropped = np.asarray(after.time_sampler) == 10
  assert (np.asarray(after.time_sampler)[~dropped] == labels[~dropped]).all()
  assert abs(dropped.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / count)  # four standard deviations


def test_images_have_their_own_noise_whatever_the_microbatches():
  def noise(keys, network, x_0, n, cond):
    return jax.vmap(jax.random.normal)(keys) + 0.0 * network["p"], {}

  images = np.zeros((8, 1, 1, 1), np.float32)
  draw = lambda accumulate, step: one_step(noise, {"image": images}, accumulate=accumulate, start=step)[0].time_sampler
  first, *others = (np.asarray(draw(accumulate, 5)) for accumulate in (1, 2, 8))
  assert all((first == other).all() for other in others)
  assert len({*first, *np.asarray(draw(1, 6))}) == 16  # and every step has other noise


def test_what_cannot_be_cut_is_refused_in_a_sentence():
  with pytest.raises(UserError, match="4 images cannot be split into 3 microbatches on 1 devices: choose a multiple of 3"):
    one_step(squares, {"image": IMAGES}, accumulate=3)
  with pytest.raises(UserError, match="label_dropout = 0.1 needs null_label"):
    one_step(squares, {"image": IMAGES}, label_dropout=0.1)


# ---------------------------------------------------------------------------------------------------- layout


def test_automatic_accumulation_keeps_the_batch():
  class Mesh:
    size = 8

  assert [layout.accumulation(512, Mesh, per_device) for per_device in (None, 64, 63, 16, 5, 1)] == [1, 1, 2, 4, 16, 64]
  with pytest.raises(UserError, match="batch of 12 images cannot be shared equally by 8 devices"):
    layout.accumulation(12, Mesh)


def test_meshes_that_do_not_fit_are_refused():
  with pytest.raises(UserError, match="data = 3, fsdp = 2 does not fit"):
    layout.make_mesh(3, 2)


# ---------------------------------------------------------------------------------------------------- digests


@pytest.fixture(params=[0, 2**17], ids=["on the device", "on the host"])
def place(request, monkeypatch):
  monkeypatch.setattr(digest, "_SMALL", request.param)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool", "uint32"])
def test_every_single_bit_counts(dtype, place):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.integers(0, 2, (5, 7)).astype(bool) if dtype == "bool" else rng.normal(size=(5, 7)) * 50, dtype)
  raw = np.asarray(x)
  seen = {digest.digests(x)}
  for trial in range(40):
    flipped = raw.copy()
    bits = flipped.reshape(-1).view(np.uint8)
    bits[rng.integers(len(bits))] ^= 1 if dtype == "bool" else 1 << rng.integers(8)
    seen.add(digest.digests(jnp.asarray(flipped)))
    assert digest.digests(jnp.asarray(flipped)) != digest.digests(x), trial
  assert digest.digests(jnp.asarray(raw.copy())) in seen
  assert digest.digests(x[::-1]) not in seen or dtype == "bool"


def test_digest_is_its_definition(place):
  def mix(h):
    h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
    h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
    return h ^ h >> 16

  x = np.array([[1.5, -2.0, 0.0], [3.0, 1e-9, np.nan]], np.float32)
  words = x.reshape(-1).view(np.uint32).tolist()
  sums = [
    sum(mix(word ^ mix((i * 0x9E3779B1 + seed) % 2**32)) for i, word in enumerate(words)) % 2**32
    for seed in (0x243F6A88, 0x85A308D3)
  ]
  assert digest.digests(jnp.asarray(x)) == f"{sums[0]:08x}{sums[1]:08x}"


def test_few_digests_are_in_the_making_at_a_time(monkeypatch):
  """More than 32 programs that wait for other devices stop the CPU backend for ever (digest.py)."""
  waiting = []
  most = []
  digest_of = digest._digest
  get = jax.device_get

  def start(x):
    waiting.append(x)
    most.append(len(waiting))
    return digest_of(x)

  def finish(arrays):
    waiting.clear()
    return get(arrays)

  arrays = [jnp.full(3, i) for i in range(70)]
  alone = [digest.digests(x) for x in arrays]
  monkeypatch.setattr(digest, "_SMALL", 0)
  monkeypatch.setattr(digest, "_digest", start)
  monkeypatch.setattr(jax, "device_get", finish)
  assert digest.digests(arrays) == alone
  assert len(most) == 70 and max(most) <= 16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8", "bool"])
def test_digests_are_the_same_on_the_device_and_the_host(dtype, monkeypatch):
  rng = np.random.default_rng(1)
  arrays = [jnp.asarray(rng.normal(size=shape) * 9, dtype) for shape in [(), (1,), (3, 5), (2, 3, 4, 5), (0, 3)]]
  here = digest.digests(arrays)
  monkeypatch.setattr(digest, "_SMALL", -1)
  assert digest.digests(arrays) == here


def test_a_state_survives_being_named():
  tree = {"a": [jnp.ones(2), jnp.zeros((), jnp.int32)], "key": jax.random.key(3), "rbg": jax.random.key(1, impl="rbg")}
  flat = manifest.flatten(tree)
  assert list(flat) == ["a/0", "a/1", "key", "rbg"] and flat["key"].dtype == jnp.uint32
  back = manifest.unflatten(flat, jax.eval_shape(lambda: tree))
  assert back["key"] == tree["key"] and back["rbg"] == tree["rbg"] and (back["a"][0] == 1).all()


def test_an_average_of_any_width_from_two_stored_ones(tmp_path):
  """Parameters that drift linearly: a power average of them is known, (gamma + 1) / (gamma + 2) of the way."""
  averages = ema.init({"w": jnp.zeros(2)}, (), (0.05, 0.1))
  stored = checkpoints.Checkpoints(str(tmp_path), keep=100)
  for k in range(64):
    averages = ema.update(averages, {"w": jnp.full(2, k + 1.0)}, jnp.int32(k))
    if (k + 1) % 16 == 0:
      stored.save({"ema": averages}, k + 1, {}, wait=True)
  stored.close()
  for width in (0.05, 0.07, 0.1):
    found = checkpoints.load_weights(str(tmp_path), ema=str(width)).params["w"]
    gamma = power_ema.exponent(width)
    np.testing.assert_allclose(found, 64 * (gamma + 1) / (gamma + 2), atol=0.6)  # a sum, not an integral
  assert checkpoints.load_weights(str(tmp_path), ema="0.07").source == "EMA of relative width 0.07"
