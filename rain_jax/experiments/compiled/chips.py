"""Accelerators that programs are compiled for without one at hand: published peaks, topologies."""

import dataclasses
import importlib.util
import math
import os

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from rain_jax.models.sharding import mesh_shape
from rain_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class Chip:
  """What its maker says of one chip.

  Attributes:
    name: as topologies begin.
    flops: bfloat16 operations a second.
    memory: bytes.
    bandwidth: bytes a second of its memory.
    interconnect: bytes a second to and from other chips of a slice, both ways together.
    source: of the figures.
    accelerator: of a TPU, a name of Cloud TPU for a few of them, which libtpu asks for.
  """

  name: str
  flops: float
  memory: float
  bandwidth: float
  interconnect: float
  source: str
  accelerator: str = ""

  @property
  def backend(self) -> str:
    """What programs for it are made for, as `backend.name`."""
    return "tpu" if self.accelerator else "gpu"

  @property
  def options(self) -> dict[str, int]:
    """Of its compiler: for a card, XLA would choose among kernels by timing them there."""
    return {} if self.backend == "tpu" else {"xla_gpu_autotune_level": 0}


_DOCS = "https://docs.cloud.google.com/tpu/docs"
_CARDS = "https://www.nvidia.com/en-us/data-center"
CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v5e", 197e12, 16e9, 819e9, 400e9, f"{_DOCS}/v5e", "v5litepod-8"),
    Chip("v5p", 459e12, 95e9, 2765e9, 1200e9, f"{_DOCS}/v5p", "v5p-8"),
    Chip("v6e", 918e12, 32e9, 1600e9, 800e9, f"{_DOCS}/v6e", "v6e-8"),
    Chip("h100", 989e12, 80e9, 3350e9, 900e9, f"{_CARDS}/h100"),
    Chip("h200", 989e12, 141e9, 4800e9, 900e9, f"{_CARDS}/h200"),
  )
}
"""By name; H100 and H200 are those with SXM, without sparsity.

Of v5p the documentation gives the interconnect one way, 4,800 Gbit/s; here it is twice that."""

_LINKED = 8  # cards of one host, which NVLink connects
# What XLA asks about a card: both have the same chip, of compute capability 9.0, and differ in memory
# (CUDA programming guide, "Compute capabilities"; "NVIDIA H100 Tensor Core GPU architecture").
_CARD = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  l2_cache_size: 52428800
  memory_bandwidth: %d
  device_memory_size: %d
}
platform_name: "CUDA"
dnn_version_info { major: 9 }
device_description_str: "%s"
"""


def chip_of(topology: str) -> Chip:
  """The chip of a topology such as v5e:2x4, or h100 or h200:8 for one or more cards of a host.

  Raises:
    DataError: not a chip of `CHIPS` with the sizes of a slice, or the number of its cards.
  """
  name, _, sizes = topology.partition(":")
  chip = CHIPS.get(name)
  if chip is None or not (
    all(size.isdigit() for size in sizes.split("x"))
    if chip.backend == "tpu"
    else topology == name or (sizes.isdigit() and 1 <= int(sizes) <= _LINKED)
  ):
    raise DataError(
      f"--topology={topology}: expected a chip ({', '.join(CHIPS)}) and the sizes of a slice,"
      f" such as v5e:2x4 or v5p:2x2x1, or up to {_LINKED} cards of a host, such as h100 or h100:8."
    )
  return chip


def size_of(topology: str) -> int:
  """Chips of a topology; raises as `chip_of`."""
  chip_of(topology)
  return math.prod(map(int, (topology.partition(":")[2] or "1").split("x")))


def mesh_of(topology: str, tensor: int, kv_heads: int) -> Mesh:
  """A mesh over the chips of a topology, none of which has to be there; `tensor` of them a model.

  Raises:
    DataError: the compiler for such chips is not installed, or knows no such topology.
    ValueError: `tensor` does not divide the number of chips.
  """
  devices = _devices(topology)
  shape = mesh_shape(len(devices), tensor, kv_heads=kv_heads)
  axes = (AxisType.Auto,) * len(shape)
  return Mesh(np.array(devices).reshape(*shape.values()), tuple(shape), axis_types=axes)


def _devices(topology: str) -> list[jax.Device]:
  chip = chip_of(topology)
  module, extra = _COMPILERS[chip.backend]
  if not _installed(module):
    raise DataError(f'{module} is not installed: pip install "rain_jax[{extra}]".')
  described: dict[str, str] = {"platform": "tpu", "topology_name": topology}
  if chip.backend == "tpu":
    _told_what_it_would_find(chip)
  else:
    card = _CARD % (chip.bandwidth, chip.memory, f"NVIDIA {chip.name.upper()}")
    described = {"platform": "cuda", "topology_name": chip.name, "target_config": card}
    described["topology"] = f"1x1x{size_of(topology)}"  # slices, hosts, cards of each
  try:
    return topologies.get_topology_desc(**described).devices
  except (RuntimeError, ValueError) as error:
    (why, *_) = str(error).splitlines()
    raise DataError(f"--topology={topology}: {module} says {why}") from error


_COMPILERS = {
  "tpu": ("libtpu", "tpu-compile"),
  "gpu": ("jax_plugins.xla_cuda12", "gpu-compile"),
}
"""The module that has the compiler for a backend, and the extra that installs it."""


def _installed(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # nor is the package that it would be in
    return False


def _told_what_it_would_find(chip: Chip) -> None:
  """Libtpu asks the environment, and without it a server of the cloud; what is set stays."""
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", chip.accelerator)
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no device is held
