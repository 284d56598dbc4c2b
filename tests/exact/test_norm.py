"""GroupNorm with what stands around it, as one operation: equal to its definition in every derivative, and in Triton."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models.kernels import norm, norm_triton, target

# pixels, channels of each part, groups, dropout rate, SiLU; numbers that are not powers of two, groups across parts
CASES = {
  "plain": (9, (8,), 4, 0.0, False),
  "parts, dropout": (12, (9, 15), 4, 0.25, True),
}


def arguments(case: str, images: int = 2):
  """(xs, offset, scale, bias), the mask of dropout, the Form, and a gradient for y and each x."""
  pixels, channels, groups, rate, silu = CASES[case]
  draw = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
  total = sum(channels)
  xs = tuple(2 * normal(images, pixels, c) + 1 for c in channels)
  vectors = [normal(images, total) for _ in range(3)]
  keep = jnp.asarray(draw.uniform(size=(images, pixels, total)) > rate, jnp.int8) if rate else None
  form = norm.Form(len(xs), groups, 1e-5, silu, rate, jnp.dtype(jnp.float32))
  return (xs, *vectors), keep, form, (normal(images, pixels, total), *map(jnp.sin, xs))


def definition(xs, offset, scale, bias, keep, form):
  """By Wu & He (2018), equation 1, and what stands around it."""
  u = jnp.concatenate(xs, -1) + offset[:, None]
  grouped = u.reshape(*u.shape[:2], form.groups, -1)
  normalized = (grouped - grouped.mean((1, 3), keepdims=True)) / jnp.sqrt(grouped.var((1, 3), keepdims=True) + form.eps)
  y = normalized.reshape(u.shape) * scale[:, None] + bias[:, None]
  y = y / (1 + jnp.exp(-y)) if form.silu else y
  return y if keep is None else y * keep / (1 - form.rate), xs


def operation(xs, offset, scale, bias, keep, form):
  mean, rstd = norm.statistics(xs, offset, form.groups, form.eps)
  return norm.group_norm(xs, offset, scale, bias, mean, rstd, keep, form)


def close(ours, theirs, tolerance=5e-6):
  """Sums of a few hundred float32 numbers, at 1e-7 each; `tolerance` is relative to the largest result."""
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("case", CASES)
def test_value_and_derivatives_are_those_of_the_definition(case):
  args, keep, form, weights = arguments(case)

  def loss(function, *args):
    y, xs = function(*args, keep, form)
    return sum((w * jnp.square(out)).sum() for w, out in zip(weights, (y, *xs), strict=True))

  def everything(function):
    gradient = jax.grad(lambda *args: loss(function, *args), argnums=(0, 1, 2, 3))
    return {
      "value": function(*args, keep, form),
      "forward": jax.jvp(lambda *args: loss(function, *args), args, jax.tree.map(jnp.cos, args))[1],
      "gradient": gradient(*args),
      "forward over gradient": jax.jvp(gradient, args, jax.tree.map(jnp.cos, args))[1],
      "gradient of gradient": jax.grad(lambda *args: sum(jnp.sin(g).sum() for g in jax.tree.leaves(gradient(*args))))(*args),
      "vmap": jax.vmap(gradient, (None, 0, None, None))(args[0], jnp.stack([args[1], 2 * args[1]]), *args[2:]),
    }

  ours, theirs = (jax.jit(everything, static_argnums=0)(function) for function in (operation, definition))
  second = {name: (ours.pop(name), theirs.pop(name)) for name in ("forward over gradient", "gradient of gradient")}
  close(ours, theirs)
  close(*zip(*second.values(), strict=True), tolerance=5e-5)  # their terms cancel: they are ten times their sums


@pytest.mark.parametrize("largest", [16384, 32], ids=["in registers", "in chunks"])
@pytest.mark.parametrize("case", CASES)
def test_triton_computes_the_same(case, largest, monkeypatch):
  monkeypatch.setattr(norm_triton, "LARGEST", largest)
  monkeypatch.setattr(norm_triton, "NARROWEST", 4)
  (xs, offset, *vectors), keep, form, (dy, *dxs) = arguments(case)
  mask = [] if keep is None else [keep]
  given = (*xs, offset, *vectors, *norm.statistics(xs, offset, form.groups, form.eps), *mask)
  close(norm_triton.value(*given, form=form, interpret=True), norm._plain_value(*given, form=form))
  for residual in (True, False):
    form = dataclasses.replace(form, residual=residual)
    given_back = (dy, *(dxs if residual else ()), *given)
    close(norm_triton.backward(*given_back, form=form, interpret=True), norm._plain_backward(*given_back, form=form))


@pytest.mark.parametrize(("capability", "kind", "kernels"), [("9.0", "NVIDIA H100", 2), ("7.0", "Tesla V100-SXM2-16GB", 0)])
def test_triton_is_chosen_for_recent_nvidia_gpus(capability, kind, kernels):
  args, keep, form, _ = arguments("parts, dropout")
  both = jax.value_and_grad(lambda *args: operation(*args, keep, form)[0].sum())
  with target.compiling_for(types.SimpleNamespace(compute_capability=capability, device_kind=kind, platform="gpu")):
    text = jax.jit(both).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
  assert len(re.findall("triton_kernel_call|xla.gpu.triton", text)) == kernels
