"""Scripts in processes of their own: started, waited for, ended, on virtual devices."""

import os
import pathlib
import signal
import subprocess
import sys
import time

from rain_jax.runs import directory
from tests.helpers.repository import ROOT

LIMIT = 300  # seconds for one command


def start(script, *flags, stdin=False, **more):
  """Starts a script as its own process, with the suite's compilation cache."""
  env = (
    os.environ
    | {
      "PYTHONPATH": str(ROOT),
      "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    | more
  )
  command = [sys.executable, str(ROOT / "scripts" / script), *flags]
  # A suite that was started in the background ignores Ctrl-C, and so would its children.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    return subprocess.Popen(
      command,
      cwd=ROOT,
      env=env,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      stdin=subprocess.PIPE if stdin else None,
    )
  finally:
    signal.signal(signal.SIGINT, before)


def end(process, limit=LIMIT):
  """Exit code, standard output and standard error; kills what takes too long."""
  try:
    out, err = process.communicate(timeout=limit)
  except subprocess.TimeoutExpired:
    process.kill()
    raise
  return process.returncode, out, err


def run(script, *flags, **more):
  """A script from begin to end, as `subprocess.run` would report it."""
  done = start(script, *map(str, flags), **more)
  out, err = done.communicate(timeout=LIMIT)
  return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def wait_for(workdir: pathlib.Path, process, method, count, file=directory.RESULTS):
  """Waits until `count` whole lines of a method are in the results."""
  path, begin = workdir / file, time.monotonic()
  mark = f'"method": "{method}"'.encode()
  while time.monotonic() - begin < LIMIT:
    if path.exists() and path.read_bytes().count(mark) >= count:
      return
    assert process.poll() is None, end(process)
    time.sleep(0.002)
  process.kill()
  raise AssertionError(f"no {count} results of {method} in {LIMIT} s")


def on_eight_devices(script, *arguments, limit=900):
  """Runs a script of the tests on virtual devices, at most `limit` seconds: its checks pass."""
  # What is compiled runs for seconds: optimising it would take longer.
  flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
  flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
  checked(script, *arguments, limit=limit, XLA_FLAGS=flags)


def checked(script, *arguments, limit, folders=(), **environment):
  """Runs a script of the tests on a CPU, at most `limit` seconds: its checks pass.

  Modules are looked for in `folders`, too.
  """
  tests = ROOT / "tests"
  path = ":".join(filter(None, [str(ROOT), str(tests), *folders]))
  done = subprocess.run(
    [sys.executable, str(tests / script), *arguments],
    env=os.environ | environment | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
    capture_output=True,
    text=True,
    timeout=limit,
  )
  assert done.returncode == 0 and "all checks passed" in done.stdout, done.stdout + done.stderr
  print(done.stdout)
