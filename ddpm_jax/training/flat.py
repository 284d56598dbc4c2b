"""A tree of parameters as one vector, on GPUs.

Adam, averages, the gradient's norm and the guard against NaN work on every parameter in the same way. On one vector they are
a few kernels. On the hundreds of arrays of a tree they are a few kernels each, most of them shorter than their launch. The
network's weights are slices of the vector, and their gradients are concatenated once.

A `Flat` is a pytree with one leaf, so that optax and `jax.tree.map` need not know of it. Checkpoints, previews and the
caller of `loop.fit` see trees: `spread` and `pack` convert.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Flat:
  """`vector` [N] holds the arrays of a tree, raveled, in the order of its leaves; `form` tells structure and shapes."""

  vector: jax.Array
  form: Any = struct.field(pytree_node=False)


def flatten(tree: Any) -> Flat:
  """The arrays of `tree`, which must have one dtype, as one vector."""
  leaves, structure = jax.tree.flatten(tree)
  return Flat(jnp.concatenate([jnp.ravel(leaf) for leaf in leaves]), (structure, tuple(jnp.shape(leaf) for leaf in leaves)))


def unflatten(tree: Any) -> Any:
  """The tree of a Flat; anything else as it is. The gradient is one concatenation, not a sum of padded vectors."""
  return _unflatten(tree.form, tree.vector) if isinstance(tree, Flat) else tree


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unflatten(form, vector):
  structure, shapes = form
  leaves = []
  begin = 0
  for shape in shapes:
    size = math.prod(shape)
    leaves.append(jax.lax.slice(vector, (begin,), (begin + size,)).reshape(shape))
    begin += size
  return jax.tree.unflatten(structure, leaves)


_unflatten.defvjp(
  lambda form, vector: (_unflatten(form, vector), None),
  lambda form, _, gradient: (flatten(gradient).vector,),
)


def spread(state: Any) -> Any:
  """`state` with a tree in place of every Flat."""
  if not _flats(state):
    return state
  return jax.jit(lambda state: jax.tree.map(unflatten, state, is_leaf=_is_flat))(state)


def pack(state: Any, like: Any) -> Any:
  """The inverse: `like` (arrays or shapes) has a Flat where `state` has a tree."""
  if not _flats(like):
    return state
  join = lambda model, tree: flatten(tree) if _is_flat(model) else tree
  return jax.jit(lambda state: jax.tree.map(join, like, state, is_leaf=_is_flat))(state)


def _is_flat(x: Any) -> bool:
  return isinstance(x, Flat)


def _flats(state: Any) -> list[Flat]:
  return [x for x in jax.tree.leaves(state, is_leaf=_is_flat) if _is_flat(x)]
