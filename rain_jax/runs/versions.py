"""Versions and hardware that figures were made with."""

import pathlib
import platform
import re

import flax
import jax
import transformers

import rain_jax
from rain_jax.parallel import machine


def versions() -> dict[str, str]:
  """Versions and hardware a run was made with."""
  return {
    "rain_jax": rain_jax.__version__,
    "jax": jax.__version__,
    "flax": flax.__version__,
    "transformers": transformers.__version__,
    "python": platform.python_version(),
    "device": jax.devices()[0].device_kind,
    "device_count": str(jax.device_count()),
    "processor": processor(),
    "cores": str(machine.cores()),
  }


def processor() -> str:
  """The CPU's name; its architecture where the system does not tell."""
  try:
    told = pathlib.Path("/proc/cpuinfo").read_text("utf-8")
  except OSError:
    told = ""
  name = re.search(r"^model name\s*:\s*(\S.*)$", told, re.MULTILINE)
  return name[1].strip() if name else platform.processor() or platform.machine()
