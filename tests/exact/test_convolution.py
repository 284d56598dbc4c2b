"""The convolution of every layer beside lax's: values, derivatives, and what XLA makes of them inside a loop."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ddpm_jax.models.kernels import target, winograd
from ddpm_jax.models.kernels.convolution import convolve, product

AXES = ("NHWC", "HWIO", "NHWC")
CASES = {  # image [B,H,W,C], D, stride, padding
  "square": ((2, 8, 8, 5), 6, 1, (1, 1)),
  "odd": ((2, 7, 9, 4), 3, 1, (1, 1)),
  "ho_half": ((2, 8, 6, 4), 4, 2, (0, 1)),
  "openai_half": ((2, 7, 8, 4), 4, 2, (1, 1)),
  "winograd": ((46, 9, 10, 64), 72, 1, (1, 1)),
}


def ours(stride, padding):
  return lambda x, kernel: convolve(x, kernel, stride, padding)


def laxs(stride, padding):
  return lambda x, kernel: lax.conv_general_dilated(x, kernel, (stride,) * 2, [padding] * 2, dimension_numbers=AXES)


def draw(shape, seed):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_value_and_derivatives_are_those_of_lax(case):
  shape, features, *how = CASES[case]
  x = draw(shape, 0)
  kernel = draw((3, 3, shape[-1], features), 1)
  moved = draw(shape, 2), draw(kernel.shape, 3)

  def everything(convolution, x, kernel):
    y, pull = jax.vjp(convolution, x, kernel)
    return y, *pull(jnp.cos(y)), jax.jvp(convolution, (x, kernel), moved)[1]

  for mine, theirs in zip(*(jax.jit(everything, static_argnums=0)(f(*how), x, kernel) for f in (ours, laxs)), strict=True):
    # sums of some hundred products in another order; Winograd's take differences of inputs first
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_gradients_of_one_image_at_a_time():
  shape, features, *how = CASES["odd"]
  x = draw(shape, 0)
  kernel = draw((3, 3, shape[-1], features), 1)
  gradient = lambda f: jax.vmap(jax.grad(lambda x, kernel: jnp.sum(f(x[None], kernel) ** 2), 1), (0, None))(x, kernel)
  np.testing.assert_allclose(gradient(ours(*how)), gradient(laxs(*how)), rtol=1e-5, atol=1e-4)  # entries up to 100


def test_winograds_derivatives_of_the_second_order_and_of_one_image_at_a_time():
  x = draw((2, 7, 8, 3), 0)
  kernel = draw((3, 3, 3, 4), 1)

  def everything(f, x, kernel):
    first = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel))), (0, 1))
    second = jax.grad(lambda x, kernel: sum(jnp.sum(jnp.cos(g)) for g in first(x, kernel)), (0, 1))(x, kernel)
    each = jax.vmap(jax.grad(lambda x, kernel: jnp.sum(f(x[None], kernel) ** 2), 1), (0, None))(x, kernel)
    return *second, each, jax.jvp(lambda x: jax.grad(lambda x: jnp.sum(f(x, kernel) ** 3))(x), (x,), (x,))[1]

  mine, theirs = (jax.jit(everything, static_argnums=0)(f, x, kernel) for f in (winograd.convolve, laxs(1, (1, 1))))
  for ours, its in zip(mine, theirs, strict=True):
    # float32; the cosine of gradients of some tens amplifies their rounding
    np.testing.assert_allclose(ours, its, rtol=0, atol=2e-5 * np.abs(its).max())


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA's CPU backend")
@pytest.mark.parametrize("case", [case for case in CASES if case != "winograd"])
def test_inside_a_loop_both_gradients_have_the_axes_that_are_fast(case):
  shape, features, *how = CASES[case]

  def loop(x, kernel):
    def body(carry, _):
      x, kernel = carry
      dx, dkernel = jax.grad(lambda x, kernel: jnp.sum(ours(*how)(x, kernel) ** 2), (0, 1))(x, kernel)
      return (x - dx, kernel - dkernel), None

    return lax.scan(body, (x, kernel), length=3)[0]

  program = jax.jit(loop).lower(draw(shape, 0), draw((3, 3, shape[-1], features), 1)).compile().as_text()
  axes = re.findall(r"convolution\(.*dim_labels=(\S+?)[,\s]", program)
  assert len(axes) == 3 and set(axes) == {"b01f_01io->b01f"}  # the value and two gradients


def test_winograd_in_parts_of_the_batch(monkeypatch):
  x = draw((6, 8, 11, 4), 0)
  kernel = draw((3, 3, 4, 5), 1)
  monkeypatch.setattr(winograd, "_PART", 2 * 8 * 11 * 4 // 4)  # two images at a time
  program = jax.jit(winograd.convolve)
  assert "while" in program.lower(x, kernel).as_text()
  expected = laxs(1, (1, 1))(x, kernel)
  np.testing.assert_allclose(program(x, kernel), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA's CPU backend")
def test_kernels_are_transformed_before_a_loop():
  def loop(x, kernel):
    return lax.scan(lambda x, _: (x - ours(1, (1, 1))(x, kernel), None), x, length=3)[0]

  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 8, 8, 64), (3, 3, 64, 64))]
  program = jax.jit(loop).lower(*shapes).compile().as_text()
  parts = {part.split()[0].lstrip("%"): part for part in re.findall(r"^%.*?^}", program, re.M | re.S)}
  body = parts[re.search(r"body=%([^,]+),", program)[1]]
  inside = [parts[name] for name in re.findall(r"= f32\[64,64\]\S* fusion\(.*calls=%([^,\s]+)", body)]
  assert "f32[64,64]" in body and not any(" add(" in part for part in inside)  # only slices are left there


def test_other_platforms_get_laxs_own():
  f = ours(1, (1, 1))
  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 8, 8, 64), (3, 3, 64, 64))]
  gradient = jax.grad(lambda x, kernel: jnp.sum(f(x, kernel) ** 2), (0, 1))
  program = jax.jit(gradient).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
  assert program.count("stablehlo.convolution") == 3 and "dot_general" not in program


def test_a_product_of_an_nvidia_gpu_is_the_same_matrix_at_every_position(monkeypatch):
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 8)).astype(jnp.bfloat16)
  kernel = jax.random.normal(jax.random.key(1), (8, 5)).astype(jnp.bfloat16)
  monkeypatch.setattr(target, "nvidia_generation", lambda: 9)
  assert "conv_general_dilated" in str(jax.make_jaxpr(product)(x, kernel))
  wanted = np.einsum("bhwc,cd->bhwd", np.float64(x), np.float64(kernel))
  np.testing.assert_allclose(product(x, kernel).astype(float), wanted, rtol=2**-8, atol=2**-8)  # bfloat16's rounding
