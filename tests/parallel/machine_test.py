"""Cores and memory as control groups of either version give them, in and outside containers."""

import os

import pytest

from rain_jax.parallel import machine

GIB = 1 << 30
TOP = "sys/fs/cgroup"
# Name -> what /proc/self/cgroup says, files below the groups' folder, cores and memory expected;
# None is what the machine has.
CASES = {
  "no groups": (None, {}, None, None),
  "no limits": ("0::/", {"memory.max": "max", "cpu.max": "max 100000"}, None, None),
  "container, version 2": (
    "0::/",
    {"memory.max": str(GIB), "cpu.max": "100000 100000"},
    1,
    GIB,
  ),
  "a group of its own": (
    "0::/user.slice/job",
    {"user.slice/job/memory.max": str(3 * GIB), "user.slice/memory.max": str(2 * GIB)},
    None,
    2 * GIB,
  ),
  "half a core": ("0::/", {"cpu.max": "50000 100000"}, 1, None),
  "more than there is": (
    "0::/",
    {"memory.max": str(1 << 60), "cpu.max": "99900000 100000"},
    None,
    None,
  ),
  "version 1": (
    "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc",
    {
      "memory/docker/abc/memory.limit_in_bytes": str(GIB),
      "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "100000",
      "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
    },
    1,
    GIB,
  ),
  "version 1 in a container": (
    "4:memory:/docker/abc\n1:cpu:/docker/abc",
    {
      "memory/memory.limit_in_bytes": str(GIB),
      "cpu/cpu.cfs_quota_us": "100000",
      "cpu/cpu.cfs_period_us": "100000",
    },
    1,
    GIB,
  ),
  "version 1 without limits": (
    "4:memory:/\n1:cpu:/",
    {"memory/memory.limit_in_bytes": "9223372036854771712", "cpu/cpu.cfs_quota_us": "-1"},
    None,
    None,
  ),
  "both versions": (
    "4:memory:/a\n0::/a",
    {"memory/a/memory.limit_in_bytes": str(GIB), "unified/a/cpu.max": "100000 100000"},
    1,
    GIB,
  ),
  "damaged": ("nonsense\n::\n0::", {"memory.max": "lots", "cpu.max": "a b"}, None, None),
}


@pytest.mark.parametrize("said, files, cores, memory", CASES.values(), ids=CASES)
def test_the_least_limit_counts(tmp_path, said, files, cores, memory):
  if said is not None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(said + "\n")
  for name, text in files.items():
    path = tmp_path / TOP / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
  installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  assert machine.cores(tmp_path) == (cores or len(os.sched_getaffinity(0)))
  assert machine.memory(tmp_path) == (memory or installed)


def test_of_this_machine_there_is_something():
  assert machine.cores() >= 1 and machine.memory() > 1 << 20
