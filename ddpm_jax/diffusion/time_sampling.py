"""Which levels to train on. A time sampler is a frozen description with pure functions

    init() -> state;    sample(state, key, B) -> (n int32 [B] in 1..T, weight [B]);    update(state, n, loss [B]) -> state

The weight multiplies the loss, so that every sampler estimates the same mean over levels.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct


class _Stateless:
  def init(self):
    return ()

  def update(self, state, n, loss):
    return state


@dataclasses.dataclass(frozen=True)
class Uniform(_Stateless):
  """Independent levels (DDPM, IDDPM)."""

  T: int

  def sample(self, state, key, batch_size):
    return jax.random.randint(key, (batch_size,), 1, self.T + 1), jnp.ones(batch_size)


@dataclasses.dataclass(frozen=True)
class Antithetic(_Stateless):
  """Half of the levels, then their mirror images T + 1 - n (DDIM code)."""

  T: int

  def sample(self, state, key, batch_size):
    n = jax.random.randint(key, (batch_size // 2 + 1,), 1, self.T + 1)
    return jnp.concatenate([n, self.T + 1 - n])[:batch_size], jnp.ones(batch_size)


@dataclasses.dataclass(frozen=True)
class Stratified(_Stateless):
  """One uniform offset for the batch, then equal strides: each batch covers all levels (VDM, appendix I.1)."""

  T: int

  def sample(self, state, key, batch_size):
    u = (jax.random.uniform(key) + jnp.arange(batch_size) / batch_size) % 1.0
    return jnp.minimum(jnp.floor(u * self.T).astype(jnp.int32), self.T - 1) + 1, jnp.ones(batch_size)


@struct.dataclass
class LossHistory:
  """The last losses of every level."""

  losses: jax.Array  # float32 [T, kept], a ring
  count: jax.Array  # int32 [T], how many were ever seen


@dataclasses.dataclass(frozen=True)
class LossSecondMoment:
  """Importance sampling with p_n proportional to sqrt(E[L_n^2]) (IDDPM section 3.3).

  Uniform until every level has been seen `kept` times. `uniform` is the share of uniform sampling that stays. Give
  `update` the losses before weighting; state and update are compiled into the training step.
  """

  T: int
  kept: int = 10
  uniform: float = 0.001

  def init(self) -> LossHistory:
    return LossHistory(jnp.zeros((self.T, self.kept)), jnp.zeros(self.T, jnp.int32))

  def probabilities(self, state: LossHistory) -> jax.Array:
    """p [T] of levels 1..T."""
    p = jnp.sqrt(jnp.mean(state.losses**2, axis=1))
    p = p / jnp.maximum(p.sum(), jnp.finfo(p.dtype).tiny) * (1 - self.uniform) + self.uniform / self.T
    return jnp.where((state.count >= self.kept).all(), p, 1 / self.T)

  def sample(self, state, key, batch_size):
    p = self.probabilities(state)
    index = jax.random.categorical(key, jnp.log(p), shape=(batch_size,))
    return index.astype(jnp.int32) + 1, 1 / (self.T * p[index])

  def update(self, state, n, loss):
    """As if the losses [B] came one by one: the j-th of one level takes the j-th next place in its ring."""
    index = n - 1
    same = index[:, None] == index[None, :]
    before = jnp.tril(same, -1).sum(1)
    after = jnp.triu(same, 1).sum(1)
    place = jnp.where(after < self.kept, (state.count[index] + before) % self.kept, self.kept)  # out of range: dropped
    losses = state.losses.at[index, place].set(jax.lax.stop_gradient(loss), mode="drop")
    return LossHistory(losses, state.count.at[index].add(1))


TIME_SAMPLERS = {
  "uniform": Uniform,
  "antithetic": Antithetic,
  "stratified": Stratified,
  "loss_second_moment": LossSecondMoment,
}
