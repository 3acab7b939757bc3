"""Forked processes in namespaces of their own: killed, numbered alike, short of disk.

Forks of the test's process begin at once, with all modules there; they must not use JAX.
"""

import ctypes
import os
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Callable

from rain_jax.runs.files import RunError

_NEW_USER, _NEW_PIDS, _NEW_MOUNTS = 0x10000000, 0x20000000, 0x00020000
FAILED = 1  # exit code of a RunError
_libc = ctypes.CDLL(None, use_errno=True)


def fork(work: Callable[[], None]) -> int:
  """The process that does the work; it exits with 0, `FAILED` for a `RunError`, 99 for others."""
  sys.stdout.flush()
  pid = os.fork()
  if pid:
    return pid
  code = 99
  try:
    work()
    code = 0
  except RunError as error:
    sys.stderr.write(f"{error}\n")
    code = FAILED
  except BaseException:  # pylint: disable=broad-except
    traceback.print_exc()
  finally:
    sys.stderr.flush()
    os._exit(code)


def wait(*pids: int) -> list[int]:
  """Exit codes; of a killed process minus the signal."""
  return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def kill_after(pid: int, seconds: float) -> None:
  time.sleep(seconds)
  os.kill(pid, signal.SIGKILL)


def as_process_one(work: Callable[[], None]) -> None:
  """Does the work in a process whose number is 1, as in a pod of its own."""
  if _libc.unshare(_NEW_USER | _NEW_PIDS):
    os.getpid = lambda: 1  # where namespaces are not allowed
    work()
    return
  one = fork(lambda: (_is_one(), work()))
  (code,) = wait(one)
  os._exit(code)


def _is_one() -> None:
  assert os.getpid() == 1


def small_disk(folder: pathlib.Path, size: int) -> bool:
  """Mounts a file system of `size` bytes for this process alone; False where that is not allowed."""
  user, group = os.getuid(), os.getgid()
  if _libc.unshare(_NEW_USER | _NEW_MOUNTS):
    return False
  pathlib.Path("/proc/self/setgroups").write_text("deny")
  pathlib.Path("/proc/self/uid_map").write_text(f"0 {user} 1")
  pathlib.Path("/proc/self/gid_map").write_text(f"0 {group} 1")
  return not _libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=%d" % size)
