"""What of this machine is ours: cores and memory as the control group gives them, not all there is.

A container or a batch system gives a process a share of its machine by a control group; the machine
itself still counts all of its cores and memory. Version 1 keeps a tree for each resource, version 2
one for all (https://docs.kernel.org/admin-guide/cgroup-v2.html). A limit holds for everything below
it, so the least from a process's own group upwards counts.
"""

import math
import os
import pathlib
from collections.abc import Iterator


def cores(root: pathlib.Path = pathlib.Path("/")) -> int:
  """How many cores a process may keep busy, at least 1.

  Args:
    root: of the file system.
  """
  try:
    count = len(os.sched_getaffinity(0))
  except AttributeError:  # not on Linux
    count = os.cpu_count() or 1
  shares = [float(count)]
  for folder in _groups(root, "cpu"):
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    if not period:
      quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit() and int(period):
      shares.append(int(quota) / int(period))
  return max(1, math.ceil(min(shares)))


def memory(root: pathlib.Path = pathlib.Path("/")) -> int:
  """Bytes of memory that a process may use.

  Args:
    root: of the file system.
  """
  sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  for folder in _groups(root, "memory"):
    for name in ("memory.max", "memory.limit_in_bytes"):
      limit = _text(folder / name)
      if limit.isdigit():
        sizes.append(int(limit))
  return min(sizes)


def _groups(root: pathlib.Path, controller: str) -> Iterator[pathlib.Path]:
  """The folders of this process's control groups, each with all that contain it.

  Args:
    root: of the file system.
    controller: of version 1; version 2 has one folder for all.
  """
  top = root / "sys/fs/cgroup"
  for line in _text(root / "proc/self/cgroup").splitlines():
    number, _, rest = line.partition(":")
    names, _, path = rest.partition(":")
    if number == "0" and not names:
      trees = [top, top / "unified"]
    elif controller in names.split(","):
      trees = [top / names, top / controller]
    else:
      continue
    # A container sees its own group as the top, whatever its path is outside.
    own = pathlib.PurePosixPath(path.lstrip("/"))
    yield from (tree / part for tree in trees for part in (own, *own.parents))


def _text(path: pathlib.Path) -> str:
  """What a file says; nothing if it cannot be read."""
  try:
    return path.read_text("utf-8").strip()
  except (OSError, ValueError):
    return ""
