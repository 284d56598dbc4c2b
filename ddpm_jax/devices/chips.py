"""What is published of TPU chips, and how much memory a device has."""

import contextlib
import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of one chip: bf16 operations per second, HBM bytes, HBM bytes per second, bytes per second that
  it can send over all its links (half of the bidirectional bandwidth)."""

  name: str
  peak: float
  hbm: float
  bandwidth: float
  links: float


# docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e ("key specifications"), read in November 2026
CHIPS = {
  "TPU v5 lite": Chip("v5e", 197e12, 16 * 2**30, 819e9, 200e9),
  "TPU v5": Chip("v5p", 459e12, 95 * 2**30, 2765e9, 600e9),
  "TPU v6 lite": Chip("v6e", 918e12, 32 * 2**30, 1638e9, 400e9),
}


def chip_of(device: jax.Device) -> Chip | None:
  """Its published figures, if we have them."""
  return CHIPS.get(device.device_kind)


def memory_of(device: jax.Device) -> int | None:
  """Bytes of memory of one device, if anybody says so."""
  if (chip := chip_of(device)) is not None:
    return int(chip.hbm)
  with contextlib.suppress(Exception):  # devices that compile only, and CPUs, have no statistics
    return device.memory_stats()["bytes_limit"]
  return None
