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
    accelerator: a name of Cloud TPU for a few of them, which libtpu asks for.
    source: of the figures.
  """

  name: str
  flops: float
  memory: float
  bandwidth: float
  interconnect: float
  accelerator: str
  source: str


_DOCS = "https://docs.cloud.google.com/tpu/docs"
CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v5e", 197e12, 16e9, 819e9, 400e9, "v5litepod-8", f"{_DOCS}/v5e"),
    Chip("v5p", 459e12, 95e9, 2765e9, 1200e9, "v5p-8", f"{_DOCS}/v5p"),
    Chip("v6e", 918e12, 32e9, 1600e9, 800e9, "v6e-8", f"{_DOCS}/v6e"),
  )
}
"""By name. Of v5p the documentation gives the interconnect one way, 4,800 Gbit/s; here it is twice that."""

_GPUS = ("h100", "h200")


def chip_of(topology: str) -> Chip:
  """The chip of a topology such as v5e:2x4.

  Raises:
    DataError: not a chip of `CHIPS` with the sizes of a slice.
  """
  name, _, sizes = topology.partition(":")
  if name.lower() in _GPUS:
    raise DataError(
      f"--topology={topology}: XLA's compiler for NVIDIA cards needs one at hand; run"
      " scripts/benchmark.py there, or give a TPU such as v5e:2x4."
    )
  if name not in CHIPS or not all(size.isdigit() for size in sizes.split("x")):
    raise DataError(
      f"--topology={topology}: expected a chip ({', '.join(CHIPS)}) and the sizes of a slice,"
      " such as v5e:2x4 or v5p:2x2x1."
    )
  return CHIPS[name]


def size_of(topology: str) -> int:
  """Chips of a topology; raises as `chip_of`."""
  chip_of(topology)
  return math.prod(map(int, topology.partition(":")[2].split("x")))


def mesh_of(topology: str, tensor: int, kv_heads: int) -> Mesh:
  """A mesh over the chips of a topology, none of which has to be there; `tensor` of them a model.

  Raises:
    DataError: libtpu is not installed, or knows no such topology.
    ValueError: `tensor` does not divide the number of chips.
  """
  devices = _devices(topology)
  shape = mesh_shape(len(devices), tensor, kv_heads=kv_heads)
  axes = (AxisType.Auto,) * len(shape)
  return Mesh(np.array(devices).reshape(*shape.values()), tuple(shape), axis_types=axes)


def _devices(topology: str) -> list[jax.Device]:
  chip = chip_of(topology)
  if importlib.util.find_spec("libtpu") is None:
    raise DataError('libtpu is not installed: pip install "rain_jax[tpu-compile]".')
  _told_what_it_would_find(chip)
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
  except (RuntimeError, ValueError) as error:
    (why, *_) = str(error).splitlines()
    raise DataError(f"--topology={topology}: libtpu says {why}") from error


def _told_what_it_would_find(chip: Chip) -> None:
  """Libtpu asks the environment, and without it a server of the cloud; what is set stays."""
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", chip.accelerator)
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no device is held
