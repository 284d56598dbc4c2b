"""Published figures of TPU chips and NVIDIA GPUs, and the memory of a device."""

import contextlib
import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of one chip.

  Attributes:
    name: its name in a topology, such as "v5e" or "h100".
    peak: bf16 operations per second, without sparsity.
    hbm: bytes of memory.
    bandwidth: bytes per second to and from memory.
    links: bytes per second that it can send over all its links (half of the bidirectional bandwidth).
    network: bytes per second that it can send to other hosts; None if `links` connect the hosts too, as on TPUs.
  """

  name: str
  peak: float
  hbm: float
  bandwidth: float
  links: float
  network: float | None = None


@dataclasses.dataclass(frozen=True)
class Gpu(Chip):
  """A GPU, with the further figures that XLA's compiler needs; see `target_config`.

  Attributes:
    kind: its name in CUDA.
    capability: compute capability, (major, minor).
    cores: streaming multiprocessors.
    clock: boost clock in GHz.
    l2: bytes of its L2 cache.
    shared: bytes of shared memory per multiprocessor; a block can have all but 1 KiB of it.
    lanes: float32 units per multiprocessor.
  """

  kind: str = ""
  capability: tuple[int, int] = (0, 0)
  cores: int = 0
  clock: float = 0.0
  l2: int = 0
  shared: int = 0
  lanes: int = 128

  def target_config(self) -> str:
    """XLA's GpuTargetConfigProto as text."""
    major, minor = self.capability
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {self.shared}
  shared_memory_per_block_optin: {self.shared - 1024}
  threads_per_core_limit: 2048
  core_count: {self.cores}
  fpus_per_core: {self.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {self.bandwidth:.0f}
  l2_cache_size: {self.l2}
  clock_rate_ghz: {self.clock}
  device_memory_size: {self.hbm:.0f}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{self.kind}"
"""


# docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e ("key specifications"), read in November 2026
TPUS = {
  "TPU v5 lite": Chip("v5e", 197e12, 16 * 2**30, 819e9, 200e9),
  "TPU v5": Chip("v5p", 459e12, 95 * 2**30, 2765e9, 600e9),
  "TPU v6 lite": Chip("v6e", 918e12, 32 * 2**30, 1638e9, 400e9),
}

# Peak, memory, bandwidth and NVLink of the SXM modules from NVIDIA's data sheets (nvidia.com/en-us/data-center/a100, /h100,
# /h200, /dgx-b200: an eighth of the system). The network is that of the DGX systems, one adapter per GPU: 200 Gb/s beside an
# A100, 400 Gb/s beside the others. Cores, clock and caches from the architecture white papers (Ampere, Hopper, Blackwell);
# shared memory and units per multiprocessor from the CUDA C++ programming guide's table of compute capabilities.
GPUS = [
  Gpu("a100", 312e12, 80e9, 2039e9, 300e9, 25e9, "NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 40 * 2**20, 164 * 2**10, 64),
  Gpu("h100", 989e12, 80e9, 3350e9, 450e9, 50e9, "NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 50 * 2**20, 228 * 2**10),
  Gpu("h200", 989e12, 141e9, 4800e9, 450e9, 50e9, "NVIDIA H200", (9, 0), 132, 1.98, 50 * 2**20, 228 * 2**10),
  Gpu("b200", 2250e12, 180e9, 8000e9, 900e9, 50e9, "NVIDIA B200", (10, 0), 148, 1.965, 126 * 2**20, 228 * 2**10),
]

CHIPS: dict[str, Chip] = TPUS | {gpu.kind: gpu for gpu in GPUS}


def chip_of(device: jax.Device) -> Chip | None:
  """The published figures of a device; None if they are unknown here."""
  return CHIPS.get(device.device_kind)


def chip_of_all(devices: list[jax.Device]) -> Chip | None:
  """The figures of the chips of one program. Over several hosts the slowest connection bounds `links`.

  A collective over hosts exchanges 1 / (GPUs per host) of its bytes through the adapter of each GPU.
  """
  chip = chip_of(devices[0])
  hosts = len({device.process_index for device in devices})
  if chip is None or chip.network is None or hosts == 1:
    return chip
  return dataclasses.replace(chip, links=min(chip.links, chip.network * len(devices) / hosts))


def memory_of(device: jax.Device) -> int | None:
  """Bytes of memory of one device; None if unknown."""
  if (chip := chip_of(device)) is not None:
    return int(chip.hbm)
  with contextlib.suppress(Exception):  # compile-only devices and CPUs have no statistics
    return device.memory_stats()["bytes_limit"]
  return None
