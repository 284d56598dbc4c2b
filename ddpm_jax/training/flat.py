"""A tree of parameters as one vector, on GPUs.

Adam, averages, the gradient's norm and the guard against NaN treat every parameter alike. On one vector they take a few
kernels. On a tree they take a few kernels for each of hundreds of arrays, most of them shorter than their launch. The
network's weights are slices of the vector, and their gradients are concatenated once.

A `Flat` is a pytree with one leaf, so optax and `jax.tree.map` work on it unchanged. Checkpoints, previews and the
caller of `loop.fit` see trees; `spread` and `pack` convert.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Flat:
  """`vector` [N] holds the arrays of a tree, raveled, in the order of its leaves; `form` holds structure and shapes.

  An array of two or more axes is raveled with its last axis first. cuDNN wants kernels with their outputs first, so neither
  they nor their gradients are transposed.
  """

  vector: jax.Array
  form: Any = struct.field(pytree_node=False)


def flatten(tree: Any) -> Flat:
  """The arrays of `tree`, which must have one dtype, as one vector."""
  leaves, structure = jax.tree.flatten(tree)
  rows = [jnp.ravel(jnp.moveaxis(leaf, -1, 0)) if jnp.ndim(leaf) > 1 else jnp.ravel(leaf) for leaf in leaves]
  return Flat(jnp.concatenate(rows), (structure, tuple(jnp.shape(leaf) for leaf in leaves)))


def unflatten(tree: Any) -> Any:
  """The tree of a Flat; anything else unchanged. Its gradient is one concatenation, not a sum of padded vectors."""
  return _unflatten(tree.form, tree.vector) if isinstance(tree, Flat) else tree


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _unflatten(form, vector):
  structure, shapes = form
  leaves = []
  begin = 0
  for shape in shapes:
    size = math.prod(shape)
    row = jax.lax.slice(vector, (begin,), (begin + size,))
    leaves.append(jnp.moveaxis(row.reshape(shape[-1], *shape[:-1]), 0, -1) if len(shape) > 1 else row.reshape(shape))
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
  """The inverse of `spread`. `like` (arrays or shapes) has a Flat where `state` has a tree."""
  if not _flats(like):
    return state
  join = lambda model, tree: flatten(tree) if _is_flat(model) else tree
  return jax.jit(lambda state: jax.tree.map(join, like, state, is_leaf=_is_flat))(state)


def _is_flat(x: Any) -> bool:
  return isinstance(x, Flat)


def _flats(state: Any) -> list[Flat]:
  return [x for x in jax.tree.leaves(state, is_leaf=_is_flat) if _is_flat(x)]
