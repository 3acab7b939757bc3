"""A run of several processes, on one machine or many.

There are two ways. *Together*, all processes hold one model, spread over the devices of
all of them by `jax.distributed`: each does the same steps at the same time on its share of
the slots. *Apart*, every process holds a model of its own and nothing is shared; it
answers every n-th prompt. Either way each writes a results file of its own.
"""

import dataclasses
import logging
import os
import pathlib
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

START_TIMEOUT = 600.0  # seconds in which all processes of a run have to start
_HERE = ("localhost", "127.0.0.1", "[::1]")
_LOG = logging.getLogger(__name__)


class HostsError(ValueError):
  """Processes that cannot make up a run; one line that says what to do."""


class StartError(HostsError):
  """Processes that did not find each other; the same start may succeed later."""


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
    own = np.asarray(flags, bool)
    if not self.together or self.count == 1:
      return own
    return multihost_utils.process_allgather(own).any(axis=0)

  def wait(self, what: str) -> None:
    """Waits until all processes are here, if they know each other."""
    if self.connected:
      multihost_utils.sync_global_devices(what)


def connect(
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
  start_timeout: float = START_TIMEOUT,
) -> tuple[int, int]:
  """Joins the processes of a run by `jax.distributed`; the first thing that a program does.

  Where not all of them start in time, this ends the process: with a line that says so, and exit
  code 75 (EX_TEMPFAIL), by which schedulers start it again. JAX's own end would be an abort.

  Args:
    coordinator: host and port of process 0; None, as the other two, to take all three from
      the TPU, SLURM or Open MPI environment.
    processes: how many.
    process: which one this is.
    start_timeout: seconds to wait for the others.

  Returns:
    This process's number and how many there are.

  Raises:
    HostsError: a number out of range, or no coordinator in the environment.
    StartError: the coordinator does not answer as it should.
  """
  if not 1 <= start_timeout <= 7 * 24 * 3600:
    raise HostsError(f"--start_timeout={start_timeout:g}: expected seconds, from 1 to a week's.")
  if coordinator and not _is_address(coordinator):
    raise HostsError(f"--coordinator={coordinator!r:.80}: expected HOST:PORT of process 0.")
  which = (
    f"jax.distributed (coordinator {coordinator or 'from the environment'}, process {process} of"
    f" {processes})"
  )
  late = threading.Timer(start_timeout, _late, (which, start_timeout))
  late.daemon = True
  late.start()
  try:
    # Later than the timer, which comes before any of JAX's own limits.
    limit = int(start_timeout) + 60
    jax.distributed.initialize(coordinator, processes, process, initialization_timeout=limit)
  # Where the environment lacks a variable, or it is an odd one, JAX looks it up in vain.
  except (RuntimeError, ValueError, LookupError) as error:
    reason = " ".join(str(error).split())[:300]
    kind = StartError if isinstance(error, RuntimeError) else HostsError
    raise kind(
      f"{which}: {reason}; start all processes with the same coordinator and count, or leave"
      " --distributed away."
    ) from None
  finally:
    late.cancel()
  devices = jax.local_devices()
  told = idle_devices(os.environ, devices[0].platform, len(devices))
  if told:
    _LOG.warning("process %d of %d: %s", jax.process_index(), jax.process_count(), told)
  return jax.process_index(), jax.process_count()


def _is_address(coordinator: str) -> bool:
  """Whether it is a host and a port; JAX would look for others in vain, again and again."""
  host, _, port = coordinator.rpartition(":")
  return bool(host) and re.fullmatch("[0-9]{1,5}", port) is not None and 0 < int(port) < 1 << 16


def _late(which: str, start_timeout: float) -> None:
  """Ends the process, which waits inside JAX."""
  sys.stderr.write(
    f"error: {which}: not all processes started within {start_timeout:g} s; start all of them"
    " again, or raise --start_timeout\n"
  )
  sys.stderr.flush()
  os._exit(os.EX_TEMPFAIL)


def idle_devices(environment: Mapping[str, str], backend: str, used: int) -> str:
  """What to say of a node's GPUs that no process uses; "" if all are used, or it is not known.

  Under SLURM, JAX gives each process one GPU, whatever the node has.

  Args:
    environment: of the process.
    backend: of JAX.
    used: devices of this process.
  """
  numbers = lambda name: [int(n) for n in re.findall(r"\d+", environment.get(name, ""))]
  there = numbers("SLURM_GPUS_ON_NODE")
  # As 8, or as 8(x2) for two nodes.
  tasks = numbers("SLURM_STEP_TASKS_PER_NODE") or numbers("SLURM_NTASKS_PER_NODE") or [1]
  if backend != "gpu" or not there or not tasks[0] or used * tasks[0] >= there[0]:
    return ""
  return (
    f"{used * tasks[0]} of this node's {there[0]} GPUs are used, {used} by this process: SLURM's"
    f" tasks get one each; start it with --ntasks-per-node={there[0]}, or give each task its own"
    " by JAX_LOCAL_DEVICE_IDS"
  )


def gpus() -> int:
  """How many NVIDIA GPUs this machine or container shows, without waking them."""
  visible = os.environ.get("CUDA_VISIBLE_DEVICES")
  if visible is not None:
    return len([one for one in visible.split(",") if one.strip()])
  return len(
    [p for p in pathlib.Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", p.name)]
  )


def take_device(
  process: int, processes: int, mesh: Mapping[str, Any], coordinator: str | None = None
) -> None:
  """Takes one GPU for each of several processes on a machine with as many.

  Each would otherwise reserve memory on all of them. Must come before JAX looks for devices.

  Args:
    process: which one this is.
    processes: how many.
    mesh: config.mesh; a model of a process's own that is spread over devices needs more than one.
    coordinator: of processes that are to be joined; if it is not on this machine, they are not.
  """
  here = coordinator is None or coordinator.rpartition(":")[0] in _HERE
  shared = coordinator is not None and mesh["across_hosts"]
  over_devices = not shared and (mesh["tensor"] != 1 or mesh["data"] not in (-1, 1))
  if processes > 1 and here and not over_devices and gpus() == processes:
    jax.config.update("jax_cuda_visible_devices", str(process))
    _LOG.info("process %d of %d takes GPU %d of this machine", process, processes, process)


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
