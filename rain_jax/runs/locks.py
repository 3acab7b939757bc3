"""Who may be in a working directory: the processes of one start, and one judge at a time.

Both are locks of the kernel (`flock`), which end with the process that holds them, however it
ends. The files stay: removing one while another process opens it would let two in.
"""

import contextlib
import fcntl
import os
import pathlib
import random
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from rain_jax.runs.files import RunError, Stopped

LOCK, JUDGING = ".lock", ".judging.lock"
# Seconds: until a directory that others are about to enter is given up, until another start is
# believed to be in it, and between two tries.
_PATIENCE, _CONVINCED, _POLL = 60.0, 1.0, 0.02
_LOOK = 0.2  # seconds between two looks at whether a judge has ended


def enter(folder: pathlib.Path, processes: int, begin: Callable[[], None]) -> BinaryIO:
  """Enters a directory as one process of a run; a start with another count is kept out.

  The first to enter holds the lock alone while it calls `begin`, and notes how many processes its
  run has. From then on all of them share the lock. Processes of equal count share out the prompts
  in the same way, so one of them that is started again does nothing twice.

  Args:
    folder: the directory.
    processes: how many the run has.
    begin: called by the first of them, while no other process is in the directory.

  Returns:
    The open lock; closing it, or ending, leaves the directory.

  Raises:
    RunError: another start is in there.
  """
  file = open(folder / LOCK, "a+b", buffering=0)
  try:
    started, refused = time.monotonic(), None
    while True:
      if _taken(file, fcntl.LOCK_EX):
        file.truncate(0)  # nobody joins a run that does not begin
        begin()
        os.write(file.fileno(), b"%d\n" % processes)
        fcntl.flock(file, fcntl.LOCK_SH)  # another start may come in between
        shared = True
      else:
        shared = _taken(file, fcntl.LOCK_SH)
      now = time.monotonic()
      if shared:
        there = os.pread(file.fileno(), 20, 0).strip()
        if there == b"%d" % processes:
          return file
        # It may be there for as long as it takes to see that it may not: look again.
        fcntl.flock(file, fcntl.LOCK_UN)
        refused = refused or now
        if now - refused > _CONVINCED:
          count = (
            f"{there.decode()} process{'es' * (there != b'1')}" if there else "other processes"
          )
          raise RunError(
            f"{folder}: another start, of {count}, is at work there; wait for its end or stop"
            " it, or choose another --workdir."
          )
      if now - started > _PATIENCE:
        raise RunError(
          f"{folder}: another process has been opening it for {_PATIENCE:.0f} s; stop that one,"
          " or choose another --workdir."
        )
      time.sleep(random.uniform(_POLL, 2 * _POLL))
  except BaseException:
    file.close()
    raise


@contextlib.contextmanager
def judging(folder: str | pathlib.Path) -> Iterator[bool]:
  """Whether this process alone may add verdicts and write the summary, until the block ends."""
  path = pathlib.Path(folder) / JUDGING
  try:
    file = open(path, "ab", buffering=0)  # for writing, which NFS wants of a lock for one alone
  except OSError as error:
    raise RunError(f"{path}: {error.strerror}; judging has to write there.") from None
  with file:
    yield _taken(file, fcntl.LOCK_EX)


@contextlib.contextmanager
def judging_alone(folder: str | pathlib.Path) -> Iterator[None]:
  """As `judging`; another process that judges there is an error.

  Raises:
    RunError: there is one.
  """
  with judging(folder) as alone:
    if not alone:
      raise RunError(f"{folder}: another process judges this run; start again when that has ended.")
    yield


def wait_for_judge(folder: str | pathlib.Path, stopping: Callable[[], bool]) -> None:
  """Waits until no other process judges; raises `Stopped` when asked to stop meanwhile."""
  while True:
    with judging(folder) as alone:
      if alone:
        return
    if stopping():
      raise Stopped
    time.sleep(_LOOK)


def _taken(file: BinaryIO, how: int) -> bool:
  try:
    fcntl.flock(file, how | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True


def lock_alone(file: BinaryIO) -> bool:
  """Locks an open file for its owner alone; False if another process has it."""
  return _taken(file, fcntl.LOCK_EX)
