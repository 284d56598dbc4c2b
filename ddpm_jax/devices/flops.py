"""Counts the floating-point operations of a traced function from its equations. The count is exact; nothing is compiled."""

import math
from typing import Any

import jax.extend.core

# A multiply-add is two operations. Only matrix products and convolutions count, as in the papers (whose "Gflops" are
# multiply-adds). In these networks everything else is below 1 % of the work and bound by memory.


def count(jaxpr: Any) -> int:
  """Operations of one evaluation of a (Closed)Jaxpr over all devices. A loop of unknown length counts once.

  >>> import jax.numpy as jnp
  >>> count(jax.make_jaxpr(lambda a, b: a @ b)(jnp.ones((3, 5)), jnp.ones((5, 7))))
  210
  """
  return sum(_of(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _of(equation: Any) -> int:
  name = equation.primitive.name
  params = equation.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    left = equation.invars[0].aval
    (out,) = equation.outvars
    return 2 * math.prod(out.aval.shape) * math.prod(left.shape[axis] for axis in contracted)
  if name == "conv_general_dilated":
    kernel = equation.invars[1].aval
    (out,) = equation.outvars
    per_output = math.prod(kernel.shape) // kernel.shape[params["dimension_numbers"].rhs_spec[0]]
    zeros_between = math.prod(params["lhs_dilation"])  # of a transposed convolution; implementations skip them
    return 2 * math.prod(out.aval.shape) * per_output // zeros_between
  inner = [count(jaxpr) for jaxpr in jaxprs(equation)]
  if name == "cond":  # the last branch of lax.platform_dependent is its default
    return inner[-1] if params.get("branches_platforms") else max(inner)
  return sum(inner) * (params["length"] if name == "scan" else 1)


def jaxprs(equation: Any) -> list:
  """The jaxprs inside an equation, such as a loop's body or the branches of a condition."""
  values = [v for value in equation.params.values() for v in (value if isinstance(value, list | tuple) else [value])]
  return [v for v in values if isinstance(v, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr)]
