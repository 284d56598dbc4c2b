"""A state of vectors trains as a state of trees, and its checkpoints are the same."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.devices import mesh as layout
from ddpm_jax.diffusion.time_sampling import Uniform
from ddpm_jax.training import flat, optimizer, state
from ddpm_jax.training.step import make_train_step

PARAMS = {"a": {"kernel": jnp.arange(6.0).reshape(2, 3) / 6, "bias": jnp.ones(3)}, "b": jnp.full((3, 1, 1), 0.5)}


def test_a_tree_survives_the_vector():
  vector = flat.flatten(PARAMS)
  assert vector.vector.shape == (12,)
  jax.tree.map(np.testing.assert_array_equal, flat.unflatten(vector), PARAMS)


def test_the_gradient_of_the_vector_is_that_of_the_tree():
  loss = lambda params: jnp.sum(params["a"]["kernel"] ** 3) + jnp.sum(jnp.sin(params["b"]) * params["a"]["bias"].sum())
  by_vector = jax.grad(lambda vector: loss(flat.unflatten(vector)))(flat.flatten(PARAMS))
  jax.tree.map(np.testing.assert_array_equal, flat.unflatten(by_vector), jax.grad(loss)(PARAMS))


def test_a_run_on_vectors_is_a_run_on_trees():
  """With clipping, two averages, weight decay and a skipped step; the norm of the gradient is one sum instead of several."""
  mesh = layout.make_mesh(devices=jax.devices()[:1])
  adam = optimizer.make_optimizer(0.01, clip_norm=1.0, weight_decay=0.1)
  times = Uniform(10)

  def loss(keys, network, x_0, n, cond):
    del keys, n, cond
    out = jnp.tanh(x_0.reshape(len(x_0), 2) @ network["a"]["kernel"] + network["a"]["bias"][None]) @ network["b"][:, 0]
    return jnp.square(out - 2)[:, 0], {}

  ends = []
  for vectors in (False, True):
    step = make_train_step(loss, lambda params, key: params, adam, times, mesh=mesh)
    now = state.create(
      jax.random.key(0),
      jax.tree.map(jnp.copy, PARAMS),
      adam,
      ema_rates=(0.9, 0.99),
      time_sampler=times.init(),
      flat=vectors,
    )
    like = jax.eval_shape(lambda now=now: now)
    for number in range(6):
      scale = jnp.nan if number == 3 else 1.0
      now, metrics = step(now, {"image": scale * jnp.arange(8.0).reshape(4, 1, 2, 1) / 8})
      if number == 2:  # as a checkpoint would
        now = flat.pack(flat.spread(now), like)
    assert metrics["skipped"] == 1
    ends.append(flat.spread(now))
  assert jax.tree.structure(ends[0]) == jax.tree.structure(ends[1])
  # Clipping divides by the norm, whose sum has another order: a unit in the last place
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
  jax.tree.map(close, *(jax.tree.leaves(optax.tree.cast(end.replace(key=jnp.zeros(())), jnp.float32)) for end in ends))
