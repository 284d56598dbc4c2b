"""The device to compile for. `ddpm-jax plan` compiles for devices that this machine does not have."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_DEVICE: contextvars.ContextVar[jax.Device | None] = contextvars.ContextVar("device", default=None)


@contextlib.contextmanager
def compiling_for(device: jax.Device) -> Iterator[None]:
  """Inside this block, programs are traced and lowered for `device` instead of this machine's first device."""
  token = _DEVICE.set(device)
  try:
    with _checked_as(device):
      yield
  finally:
    _DEVICE.reset(token)


def nvidia_generation() -> int:
  """The major compute capability of the target device: 8 Ampere, 9 Hopper; 0 without an NVIDIA GPU."""
  return _capability(_DEVICE.get() or jax.devices()[0])[0]


@contextlib.contextmanager
def visible_to_pallas() -> Iterator[None]:
  """Tells Pallas, which asks JAX, for which device a kernel is lowered."""
  device = _DEVICE.get()
  if device is None:
    yield
    return
  kind = jax.sharding.AbstractDevice(device.device_kind, None, device.platform)
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=kind)):
    yield


def _capability(device: jax.Device) -> tuple[int, int]:
  major, _, minor = getattr(device, "compute_capability", "").partition(".")
  return (int(major), int(minor or 0)) if major.isdigit() else (0, 0)  # AMD's are names


@contextlib.contextmanager
def _checked_as(device: jax.Device) -> Iterator[None]:
  """Makes JAX's checks of cuDNN attention use `device` instead of the local devices."""
  from jax._src.cudnn import fused_attention_stablehlo as checks  # they have no public name

  parse = lambda text: tuple(map(int, text.split(".")))
  answers = {
    "check_compute_capability": lambda least: _capability(device) >= parse(least),
    "is_cuda_compute_capability_equal": lambda wanted: _capability(device) == parse(wanted),
  }
  originals = {name: getattr(checks, name) for name in answers if hasattr(checks, name)}
  for name in originals:
    setattr(checks, name, answers[name])
  try:
    yield
  finally:
    for name, original in originals.items():
      setattr(checks, name, original)
