"""Time samplers: the distribution of training levels. A time sampler is a frozen dataclass with pure functions

    init() -> state;    sample(state, key, B) -> (n int32 [B] in 1..T, weight [B]);    update(state, n, loss [B]) -> state

The weight multiplies the loss, so that every time sampler but Uncertainty estimates the same mean over levels.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct


class _Stateless:
  def init(self) -> tuple[()]:
    return ()

  def update(self, state: tuple[()], n: jax.Array, loss: jax.Array) -> tuple[()]:
    return state


@dataclasses.dataclass(frozen=True)
class Uniform(_Stateless):
  """Independent levels (DDPM, IDDPM)."""

  T: int

  def sample(self, state: tuple[()], key: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    return jax.random.randint(key, (batch_size,), 1, self.T + 1), jnp.ones(batch_size)


@dataclasses.dataclass(frozen=True)
class Antithetic(_Stateless):
  """Independent levels n for half of the batch and their mirror images T + 1 - n for the other half (DDIM code)."""

  T: int

  def sample(self, state: tuple[()], key: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    n = jax.random.randint(key, (batch_size // 2 + 1,), 1, self.T + 1)
    return jnp.concatenate([n, self.T + 1 - n])[:batch_size], jnp.ones(batch_size)


@dataclasses.dataclass(frozen=True)
class Stratified(_Stateless):
  """Equal strides from one uniform offset, so that each batch covers all levels (VDM, appendix I.1)."""

  T: int

  def sample(self, state: tuple[()], key: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    u = (jax.random.uniform(key) + jnp.arange(batch_size) / batch_size) % 1.0
    return jnp.minimum(jnp.floor(u * self.T).astype(jnp.int32), self.T - 1) + 1, jnp.ones(batch_size)


@struct.dataclass
class LossHistory:
  """The most recent losses of every level."""

  losses: jax.Array  # float32 [T, kept], a ring buffer
  count: jax.Array  # int32 [T], the number of losses seen


@dataclasses.dataclass(frozen=True)
class LossSecondMoment:
  """Importance sampling with p_n proportional to sqrt(E[L_n^2]) (IDDPM section 3.3).

  Sampling is uniform until every level has been seen `kept` times. `uniform` is the share of uniform sampling that remains.
  `update` takes the losses before weighting. State and update are part of the compiled training step.
  """

  T: int
  kept: int = 10
  uniform: float = 0.001

  def init(self) -> LossHistory:
    return LossHistory(jnp.zeros((self.T, self.kept)), jnp.zeros(self.T, jnp.int32))

  def probabilities(self, state: LossHistory) -> jax.Array:
    """The probabilities [T] of levels 1..T."""
    p = jnp.sqrt(jnp.mean(state.losses**2, axis=1))
    p = p / jnp.maximum(p.sum(), jnp.finfo(p.dtype).tiny) * (1 - self.uniform) + self.uniform / self.T
    return jnp.where((state.count >= self.kept).all(), p, 1 / self.T)

  def sample(self, state: LossHistory, key: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    p = self.probabilities(state)
    index = jax.random.categorical(key, jnp.log(p), shape=(batch_size,))
    return index.astype(jnp.int32) + 1, 1 / (self.T * p[index])

  def update(self, state: LossHistory, n: jax.Array, loss: jax.Array) -> LossHistory:
    """The state after the losses [B], as if they arrived one by one in each level's ring."""
    index = n - 1
    same = index[:, None] == index[None, :]
    before = jnp.tril(same, -1).sum(1)
    after = jnp.triu(same, 1).sum(1)
    place = jnp.where(after < self.kept, (state.count[index] + before) % self.kept, self.kept)  # out of range: dropped
    losses = state.losses.at[index, place].set(jax.lax.stop_gradient(loss), mode="drop")
    return LossHistory(losses, state.count.at[index].add(1))


@struct.dataclass
class LossMeans:
  """Running means of the loss."""

  losses: jax.Array  # float32 [buckets]
  weight: jax.Array  # float32 [buckets], of all that were seen, at most 1


@dataclasses.dataclass(frozen=True)
class Uncertainty:
  """Uniform levels, each loss divided by its mean at that level (EDM2, Karras et al. 2024, section 2.3).

  EDM2 learns u(n) in loss / e^u + u with a small network. Its minimum is e^u = E[loss | n], so running means over `buckets`
  of neighboring levels take the network's place. All levels then contribute to the gradient alike, and the reported loss
  is close to 1.
  """

  T: int
  buckets: int = 32
  rate: float = 0.99  # of the running means, per batch

  def init(self) -> LossMeans:
    return LossMeans(jnp.zeros(self.buckets), jnp.zeros(self.buckets))

  def means(self, state: LossMeans) -> jax.Array:
    """The mean loss of each bucket, 1 where none was seen, [buckets]."""
    found = state.losses / jnp.maximum(state.weight, jnp.finfo(jnp.float32).tiny)
    return jnp.where(state.weight > 0, found, 1.0)

  def _bucket(self, n: jax.Array) -> jax.Array:
    return (n - 1) * self.buckets // self.T

  def sample(self, state: LossMeans, key: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    n = jax.random.randint(key, (batch_size,), 1, self.T + 1)
    return n, 1 / self.means(state)[self._bucket(n)]

  def update(self, state: LossMeans, n: jax.Array, loss: jax.Array) -> LossMeans:
    bucket = self._bucket(n)
    count = jnp.zeros(self.buckets).at[bucket].add(1.0)
    total = jnp.zeros(self.buckets).at[bucket].add(jax.lax.stop_gradient(loss))
    gap = jnp.where(count > 0, 1 - self.rate, 0.0)
    mean = total / jnp.maximum(count, 1)
    return LossMeans(state.losses + gap * (mean - state.losses), state.weight + gap * (1 - state.weight))


TIME_SAMPLERS = {
  "uniform": Uniform,
  "antithetic": Antithetic,
  "stratified": Stratified,
  "loss_second_moment": LossSecondMoment,
  "uncertainty": Uncertainty,
}
