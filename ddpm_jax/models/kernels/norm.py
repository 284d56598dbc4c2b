"""GroupNorm fused with the operations before and after it in these networks, with its own derivatives.

    u = x + offset                                           offset: embedding of time, bias of a convolution
    y = dropout(silu(normalized(u) * scale + bias))          SiLU and dropout are optional

The vectors offset, scale and bias are float32 [B, C], or [1, C] if they are the same for all images.

normalized(u) = (u - mean) / sqrt(var + eps), with mean and variance per image and group (Wu & He 2018), two-pass and in
float32. Everything between reading x and writing y is float32 and rounded once. The backward pass keeps only x, the mean
and 1 / std, both [B, groups].

x may be given in two parts, which are normalized as if they were concatenated, so a UNet's skips are not copied. The
operation returns x along with y. Other uses of x take the returned x, so that the same kernel adds their gradients.

There are three JAX primitives: `_value`, its derivative `_forward` (linear in the tangents) and the transpose of that,
`_backward`. Each has a lowering in plain jnp and one in Triton for NVIDIA GPUs. Higher derivatives use the plain form, so
all transformations of JAX apply.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax._src import dispatch  # the set below has no public name
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ddpm_jax.models.kernels import norm_triton, target


@dataclasses.dataclass(frozen=True)
class Form:
  """The static arguments of a norm.

  Attributes:
    parts: number of arrays that make up x.
    groups: groups of channels.
    eps: added to the variance.
    silu: whether SiLU follows.
    rate: dropout rate after SiLU; 0.0 for none.
    dtype: dtype of y.
    residual: whether the backward pass adds gradients of the returned xs.
  """

  parts: int
  groups: int
  eps: float
  silu: bool
  rate: float
  dtype: jnp.dtype
  residual: bool = False


def statistics(xs: tuple[jax.Array, ...], offset: jax.Array, groups: int, eps: float) -> tuple[jax.Array, jax.Array]:
  """(mean, 1 / std) of x + offset, float32 [B, groups]; xs: the parts of x, [B, N, C_i]; offset [B, C] or [1, C]."""
  u = _sum(xs, offset)
  mean = _group_mean(_pixel_mean(u), groups)
  var = _group_mean(_pixel_mean((u - _spread(mean, u)[:, None]) ** 2), groups)
  return mean, jax.lax.rsqrt(var + eps)


def group_norm(
  xs: tuple[jax.Array, ...],
  offset: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  mean: jax.Array,
  rstd: jax.Array,
  keep: jax.Array | None,
  form: Form,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  """(y [B, N, C] of form.dtype, xs); see above.

  Args:
    xs: the parts of x, each [B, N, C_i].
    offset, scale, bias: float32 [B, C] or [1, C].
    mean, rstd: `statistics` of x + offset, passed in so that remat can keep them. Derivatives with respect to x include
      those of the statistics.
    keep: int8 [B, N, C], 0 where dropout drops; None without dropout.
    form: the static arguments.
  """
  mean, rstd = jax.lax.stop_gradient((mean, rstd))
  y, *xs = _value.bind(*xs, offset, scale, bias, mean, rstd, *([] if keep is None else [keep]), form=form)
  return y, tuple(xs)


# ---------------------------------------------------------------- the plain form


def wide(x: jax.Array) -> jnp.dtype:
  """The dtype of sums over x: float32, or float64 for float64."""
  return jnp.promote_types(x.dtype, jnp.float32)


def _sum(xs, offset):
  x = xs[0] if len(xs) == 1 else jnp.concatenate(xs, axis=-1)
  return x.astype(wide(x)) + offset[:, None]


def _pixel_mean(x):
  """Mean over pixels, [B, N, C] -> [B, C].

  On CPUs it is a matrix product with ones, which XLA's CPU backend computes faster than a sum.
  """
  pixels = x.shape[1]
  product = lambda x: (jnp.full((x.shape[0], 1, pixels), 1 / pixels, x.dtype) @ x)[:, 0]
  return jax.lax.platform_dependent(x, cpu=product, default=lambda x: jnp.mean(x, 1))


def _group_mean(v, groups):
  return jnp.mean(v.reshape(v.shape[0], groups, v.shape[-1] // groups), -1)


def _spread(v, like):
  """[B, groups] -> [B, C]."""
  return jnp.repeat(v, like.shape[-1] // v.shape[-1], -1)


def _normalized(u, mean, rstd):
  return (u - _spread(mean, u)[:, None]) * _spread(rstd, u)[:, None]


def _dropped(y, keep, form):
  return y if keep is None else jnp.where(keep != 0, y / (1 - form.rate), 0.0)


def _slope(z, keep, form):
  """Derivative of dropout(silu(z))."""
  if not form.silu:
    return _dropped(jnp.ones_like(z), keep, form)
  sigmoid = jax.nn.sigmoid(z)
  return _dropped(sigmoid * (1 + z * (1 - sigmoid)), keep, form)


def _plain_value(*args, form):
  xs, offset, scale, bias, mean, rstd, keep = _unpack(args, form)
  # (u - mean) * (rstd * scale) saves one product per pixel
  u = _sum(xs, offset)
  z = (u - _spread(mean, u)[:, None]) * (_spread(rstd, u) * scale)[:, None] + bias[:, None]
  y = _dropped(jax.nn.silu(z) if form.silu else z, keep, form)
  return y.astype(form.dtype), *xs


def _plain_forward(*args, form):
  """The derivative: tangents of xs, offset, scale and bias, then the arguments of `_plain_value` -> tangents of (y, *xs)."""
  tangents = args[: form.parts + 3]
  args = args[form.parts + 3 :]
  dxs = tangents[: form.parts]
  (doffset, dscale, dbias) = tangents[form.parts :]
  xs, offset, scale, bias, mean, rstd, keep = _unpack(args, form)
  normalized = _normalized(_sum(xs, offset), mean, rstd)
  du = _sum(dxs, doffset)
  of_groups = lambda v: _spread(_group_mean(_pixel_mean(v), form.groups), v)[:, None]
  dn = _spread(rstd, du)[:, None] * (du - of_groups(du) - normalized * of_groups(du * normalized))
  dz = dn * scale[:, None] + normalized * dscale[:, None] + dbias[:, None]
  dy = dz * _slope(normalized * scale[:, None] + bias[:, None], keep, form)
  return dy.astype(form.dtype), *dxs


def _plain_backward(*args, form):
  """The transpose of `_plain_forward`: gradients of y and, with form.residual, of xs; then the arguments of `_plain_value`.

  -> gradients of xs, and float32 [B, C] of offset, scale and bias.
  """
  dy, dxs, args = _unpack_gradients(args, form)
  xs, offset, scale, bias, mean, rstd, keep = _unpack(args, form)
  normalized = _normalized(_sum(xs, offset), mean, rstd)
  dz = dy.astype(wide(dy)) * _slope(normalized * scale[:, None] + bias[:, None], keep, form)
  dbias = _pixel_mean(dz)
  dscale = _pixel_mean(dz * normalized)
  of_groups = lambda v: _spread(_group_mean(scale * v, form.groups), v)[:, None]
  du = _spread(rstd, dz)[:, None] * (dz * scale[:, None] - of_groups(dbias) - normalized * of_groups(dscale))
  parts = jnp.split(du, _borders(xs), axis=-1)
  if form.residual:
    parts = [part + dx.astype(wide(dx)) for part, dx in zip(parts, dxs, strict=True)]
  pixels = du.shape[1]
  sums = [pixels * mean for mean in (_pixel_mean(du), dscale, dbias)]
  return *(part.astype(x.dtype) for part, x in zip(parts, xs, strict=True)), *sums


def _borders(xs):
  """The first channel of each part but the first."""
  return [sum(x.shape[-1] for x in xs[:i]) for i in range(1, len(xs))]


def _unpack_gradients(args, form):
  """(dy, dxs, arguments of `_plain_value`) from the arguments of `_plain_backward`."""
  before = 1 + form.parts * form.residual
  return args[0], args[1:before], args[before:]


def _unpack(args, form):
  """The arguments of `group_norm` from those of a primitive."""
  keep = args[form.parts + 5] if form.rate else None
  return (args[: form.parts], *args[form.parts : form.parts + 5], keep)


# ---------------------------------------------------------------- primitives


def _primitive(name, plain, triton, shapes):
  """A JAX primitive with a lowering in plain jnp and, if `triton` is given, another for NVIDIA GPUs."""
  primitive = Primitive(name)
  primitive.multiple_results = True
  primitive.def_impl(jax.jit(plain, static_argnames="form"))
  primitive.def_abstract_eval(shapes)
  mlir.register_lowering(primitive, mlir.lower_fun(plain, multiple_results=True))
  if triton is not None:

    def chosen(*args, form):
      return triton(*args, form=form) if target.nvidia_generation() >= 8 else plain(*args, form=form)

    lower = mlir.lower_fun(chosen, multiple_results=True)

    def lower_for_target(*args, form):
      with target.visible_to_pallas():
        return lower(*args, form=form)

    mlir.register_lowering(primitive, lower_for_target, platform="cuda")
    dispatch.prim_requires_devices_during_lowering.add(primitive)  # as custom_partitioning does, which `triton` uses

  def batched(values, axes, *, form):
    """vmap's axis is merged with the image axis."""
    size = next(x.shape[axis] for x, axis in zip(values, axes, strict=True) if axis is not None)

    def mapped(x, axis):
      return jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)

    def joined(x):
      x = jnp.broadcast_to(x, (size, images, *x.shape[2:]))  # one vector for all images becomes one per image
      return x.reshape(-1, *x.shape[2:])

    values = list(map(mapped, values, axes))
    images = max(x.shape[1] for x in values)
    outs = primitive.bind(*map(joined, values), form=form)
    return [x.reshape(size, -1, *x.shape[1:]) for x in outs], [0] * len(outs)

  batching.primitive_batchers[primitive] = batched
  return primitive


def _shapes_of_value(*args, form):
  xs = args[: form.parts]
  return [ShapedArray((*xs[0].shape[:2], sum(x.shape[-1] for x in xs)), form.dtype), *xs]


def _shapes_of_forward(*args, form):
  return _shapes_of_value(*args[form.parts + 3 :], form=form)


def _shapes_of_backward(*args, form):
  _, _, args = _unpack_gradients(args, form)
  xs = args[: form.parts]
  vector = ShapedArray((xs[0].shape[0], sum(x.shape[-1] for x in xs)), wide(xs[0]))
  return [*xs, vector, vector, vector]


_value = _primitive("group_norm", _plain_value, norm_triton.value, _shapes_of_value)
_forward = _primitive("group_norm_forward", _plain_forward, None, _shapes_of_forward)
_backward = _primitive("group_norm_backward", _plain_backward, norm_triton.backward, _shapes_of_backward)


# ---------------------------------------------------------------- their derivatives


def _derivative(primals, tangents, *, form):
  tangents = [ad.instantiate_zeros(t) for t in tangents[: form.parts + 3]]
  return _value.bind(*primals, form=form), _forward.bind(*tangents, *primals, form=form)


def _transpose_of_forward(gradients, *args, form):
  dy, *dxs = gradients
  linear = args[: form.parts + 3]
  args = args[form.parts + 3 :]
  form = dataclasses.replace(form, residual=not all(isinstance(g, ad.Zero) for g in dxs))
  dxs = [ad.instantiate_zeros(g) for g in dxs] if form.residual else []
  outs = _backward.bind(ad.instantiate_zeros(dy), *dxs, *args, form=form)
  wanted = [ad.is_undefined_primal(x) for x in linear]
  shared = [i for i, x in enumerate(linear) if wanted[i] and x.aval.shape != outs[i].shape]  # one vector for all images
  if shared:
    sums = jnp.stack([outs[i] for i in shared]).sum(1, keepdims=True)  # one kernel on a GPU
    for i, total in zip(shared, sums, strict=True):
      outs[i] = total
  return [*(out if want else None for out, want in zip(outs, wanted, strict=True)), *[None] * len(args)]


def _transpose_of_backward(gradients, *args, form):
  linear = 1 + form.parts * form.residual
  gradients = [ad.instantiate_zeros(g) for g in gradients]
  outs = _forward.bind(*gradients, *args[linear:], form=dataclasses.replace(form, residual=False))
  return [*outs[:linear], *[None] * (len(args) - linear)]


def _second_derivative(plain, linear):
  """The JVP rule of a primitive with `linear(form)` linear arguments and coefficients that may have tangents.

  The coefficients mean and 1 / std are functions of x, so they are computed here.
  """

  def rule(primals, tangents, *, form):
    floats = len(primals) - bool(form.rate)  # the mask has no tangent
    begin = linear(form)
    end = begin + form.parts + 3

    def function(*args):
      own = statistics(args[begin : begin + form.parts], args[begin + form.parts], form.groups, form.eps)
      return plain(*args[:end], *own, *args[end + 2 :], *primals[floats:], form=form)

    return jax.jvp(function, primals[:floats], tuple(ad.instantiate_zeros(t) for t in tangents[:floats]))

  return rule


ad.primitive_jvps[_value] = _derivative
ad.primitive_transposes[_forward] = _transpose_of_forward
ad.primitive_transposes[_backward] = _transpose_of_backward
ad.primitive_jvps[_forward] = _second_derivative(_plain_forward, lambda form: form.parts + 3)
ad.primitive_jvps[_backward] = _second_derivative(_plain_backward, lambda form: 1 + form.parts * form.residual)
