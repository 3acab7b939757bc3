"""A run of several processes, on one machine or many.

There are two ways. *Together*, all processes hold one model, spread over the devices of
all of them by `jax.distributed`: each does the same steps at the same time on its share of
the slots. *Apart*, every process holds a model of its own and nothing is shared; it
answers every n-th prompt. Either way each writes a results file of its own.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


class HostsError(ValueError):
  """Processes that cannot make up a run; one line that says what to do."""


@dataclasses.dataclass(frozen=True)
class Hosts:
  """Which process of a run this is.

  Attributes:
    process: its number, from 0.
    count: how many there are.
    together: they hold one model; otherwise each has its own.
    connected: they are known to each other through `jax.distributed`.
  """

  process: int = 0
  count: int = 1
  together: bool = False
  connected: bool = False

  @property
  def devices(self) -> Sequence[jax.Device]:
    """The devices that this process's model may be spread over."""
    return jax.devices() if self.together else jax.local_devices()

  def mine(self, ids: Sequence[str]) -> frozenset[str]:
    """The prompts, of all by their ids, whose results this process writes."""
    return frozenset(ids[self.process :: self.count])

  def any(self, flags: Sequence[bool]) -> np.ndarray:
    """Which flags are set in any of the processes that work together, bool[n].

    All of them have to ask at the same point of the program.
    """
    flags = np.asarray(flags, bool)
    if not self.together or self.count == 1:
      return flags
    return multihost_utils.process_allgather(flags).any(axis=0)

  def wait(self, what: str) -> None:
    """Waits until all processes are here, if they know each other."""
    if self.connected:
      multihost_utils.sync_global_devices(what)


def connect(
  coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> tuple[int, int]:
  """Joins the processes of a run by `jax.distributed`; the first thing that a program does.

  Args:
    coordinator: host and port of process 0; None, as the other two, to take all three from
      the TPU, SLURM or Open MPI environment.
    processes: how many.
    process: which one this is.

  Returns:
    This process's number and how many there are.

  Raises:
    HostsError: they do not find each other.
  """
  try:
    # A process that waits for one that never comes should say so before a scheduler's patience ends.
    jax.distributed.initialize(coordinator, processes, process, initialization_timeout=120)
  except (RuntimeError, ValueError) as error:
    reason = " ".join(str(error).split())[:300]
    raise HostsError(
      f"jax.distributed (coordinator {coordinator or 'from the environment'}, process"
      f" {process} of {processes}): {reason}; start all processes with the same coordinator and"
      " count, or leave --distributed away."
    ) from None
  return jax.process_index(), jax.process_count()


def of_config(mesh: dict[str, Any], process: int, processes: int, connected: bool) -> Hosts:
  """The hosts of a run, as `config.mesh` wants them to work.

  Raises:
    HostsError: one model for several processes that do not know each other.
  """
  together = mesh["across_hosts"] and processes > 1
  if together and not connected:
    raise HostsError(
      f"mesh.across_hosts=True: {processes} processes can share a model only with --distributed."
    )
  return Hosts(process, processes, together, connected)
