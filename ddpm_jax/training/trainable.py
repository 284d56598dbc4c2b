"""Selects the parameters that train. The others are excluded from differentiation, clipping and the optimizer."""

from collections.abc import Callable
from typing import Any

import jax

from ddpm_jax.errors import UserError

Predicate = Callable[[str], bool]  # a parameter's path, such as "head/conv_out/kernel"


def split(params: Any, trainable: Predicate | None = None) -> tuple[Any, Any]:
  """(learning, frozen): two trees of the structure of `params`, each with None where the other has an array.

  Without a predicate all parameters learn.

  Raises:
    UserError: if no parameter would learn.
  """
  learns = jax.tree_util.tree_map_with_path(
    lambda path, _: trainable is None or trainable(jax.tree_util.keystr(path, simple=True, separator="/")), params
  )
  if not any(jax.tree.leaves(learns)):
    raise UserError("No parameter would be trained: the rule for trainable paths matches none of them.")
  learning = jax.tree.map(lambda leaf, here: leaf if here else None, params, learns)
  frozen = jax.tree.map(lambda leaf, here: None if here else leaf, params, learns)
  return learning, frozen


def merge(learning: Any, frozen: Any) -> Any:
  """The inverse of split."""
  return jax.tree.map(lambda a, b: b if a is None else a, learning, frozen, is_leaf=lambda leaf: leaf is None)
