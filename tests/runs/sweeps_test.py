"""Sweeps: what a file adds, numbered directories, resume after a kill, one table."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from rain_jax.runs import directory, sweeps
from tests.helpers.repository import ROOT

# Stands in for scripts/generate.py: appends to a log of starts, takes a while, writes a summary,
# whole or not at all.
RUN = """
import json, pathlib, sys, time
flags = dict(flag[2:].split("=", 1) for flag in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])
with open(workdir / "starts", "a") as file:
  file.write("x")
time.sleep(float(flags.get("config.takes", 0.1)))
if flags.get("config.fails") == "True":
  sys.exit("error: it fails")
rate = float(flags.get("config.rate", 0))
(workdir / "part").write_text(json.dumps({"methods": {
    "rain": {"harmless_rate": rate, "responses": 4}, "vanilla": {"harmless_rate": 0.5, "responses": 4}}}))
(workdir / "part").replace(workdir / "summary.json")
"""
# Stands in for it, too: ends when it is told to, with the code that says so.
RUN_THAT_WAITS = """
import pathlib, signal, sys
workdir = pathlib.Path(next(flag for flag in sys.argv if flag.startswith("--workdir=")).partition("=")[2])
workdir.mkdir()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
(workdir / "ready").touch()
while True:
  signal.pause()
"""
TWELVE = """
def sweep(add):
  for rate in (0.1, 0.2, 0.3, 0.4):
    for seed in range(3):
      add(rate=rate, seed=seed)
"""
SWEEP_OF_TWELVE = """
import sys
from rain_jax.runs import sweeps
path, file, code = sys.argv[1:]
sweep = sweeps.Sweep.open(path, "configs/demo.py", {}, sweeps.load_sweep(file))
assert not sweeps.run_locally(sweep, lambda n: [sys.executable, "-c", code, *sweep.flags(n)], jobs=2)
print(sweeps.table(sweep.collect()))
"""


def write(tmp_path, text, name="sweep.py"):
  (tmp_path / name).write_text(text)
  return str(tmp_path / name)


def command_of(sweep):
  return lambda number: [sys.executable, "-c", RUN, *sweep.flags(number)]


def test_a_sweep_file_adds_runs_or_names_a_product(tmp_path):
  assert len(sweeps.load_sweep(write(tmp_path, TWELVE))) == 12
  found = sweeps.load_sweep(write(tmp_path, "PRODUCT = {'seed': (0, 1), 'search.leaves': (1, 4)}"))
  assert found == [{"seed": s, "search.leaves": n} for s in (0, 1) for n in (1, 4)]
  assert sweeps.load_sweep(write(tmp_path, "PRODUCT = {'a': (1,)}", "mine.txt")) == [{"a": 1}]
  shipped = list((ROOT / "configs" / "sweeps").glob("*.py"))
  assert shipped and all(sweeps.load_sweep(str(file)) for file in shipped)


@pytest.mark.parametrize(
  "text,says",
  [
    ("x = 1", "neither sweep"),
    ("def sweep(add): pass", "adds no run"),
    ("def sweep(add):\n  add(a=1)\n  add(a=1)", "run 1 is the same"),
    ("def sweep(add: pass", "SyntaxError"),
    ("def sweep(add):\n  add(nope)", "nope"),
    ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    ("1 / 0", "ZeroDivisionError"),
    ("raise SystemExit(3)", "SystemExit: 3"),
    ("open('/nowhere/file')", "FileNotFoundError"),
    ("PRODUCT = {'seed': 3}", "TypeError"),
    ("def sweep(add):\n  add(seed={1, 2})", "set is not JSON"),
    ("def sweep(add):\n  add(rate=float('nan'))", "ValueError: Out of range"),
    ("x = '\0'", "null bytes"),
  ],
)
def test_a_bad_sweep_file_is_one_line(tmp_path, text, says):
  with pytest.raises(sweeps.SweepError, match=says) as error:
    sweeps.load_sweep(write(tmp_path, text))
  assert str(tmp_path / "sweep.py") in str(error.value) and "\n" not in str(error.value)
  with pytest.raises(sweeps.SweepError, match="no such sweep file"):
    sweeps.load_sweep(str(tmp_path / "none.py"))


def test_another_sweep_is_refused_and_a_longer_one_is_not(tmp_path):
  directory = str(tmp_path / "out")
  sweeps.Sweep.open(directory, "a.py", {}, [{"seed": 0}, {"seed": 1}])
  sweeps.Sweep.open(directory, "a.py", {}, [{"seed": 0}, {"seed": 1}, {"seed": 2}])
  with pytest.raises(sweeps.SweepError, match=r"run 1: {'seed': 1} -> {'seed': 7}"):
    sweeps.Sweep.open(directory, "a.py", {}, [{"seed": 0}, {"seed": 7}])
  with pytest.raises(sweeps.SweepError, match="sweep of a.py, not b.py"):
    sweeps.Sweep.open(directory, "b.py", {}, [{"seed": 0}])
  with pytest.raises(
    sweeps.SweepError, match=r"a.py before it was edited .limits.max_prompt: None -> 64"
  ):
    sweeps.Sweep.open(directory, "a.py", {"limits": {"max_prompt": 64}}, [{"seed": 0}, {"seed": 1}])
  (tmp_path / "out" / sweeps.RECORD).write_text('{"config": "a.py", "runs": []}')
  with pytest.raises(sweeps.SweepError, match="older version"):
    sweeps.Sweep.open(directory, "a.py", {}, [{"seed": 0}])


def test_twelve_runs_killed_in_the_middle_end_with_one_table(tmp_path):
  out = tmp_path / "out"
  command = [sys.executable, "-c", SWEEP_OF_TWELVE, str(out), write(tmp_path, TWELVE), RUN]
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, start_new_session=True)
  while len(list(out.glob("*/summary.json"))) < 5:
    assert process.poll() is None
    time.sleep(0.01)
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  before = {p.parent.name: p.stat().st_mtime_ns for p in out.glob("*/summary.json")}
  assert 5 <= len(before) < 12
  printed = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
  assert sorted(p.name for p in out.iterdir() if p.is_dir()) == [f"{n:03d}" for n in range(12)]
  for name, time_ns in before.items():
    assert (out / name / "summary.json").stat().st_mtime_ns == time_ns
  lines = (out / sweeps.TABLE).read_text().splitlines()
  assert lines[0].split(",") == ["run", "rate", "seed", "method", "harmless_rate", "responses"]
  assert len(lines) == 1 + 2 * 12 and lines[1] == "0,0.1,0,rain,0.1,4"
  table = printed[printed.index("run  rate") :].splitlines()
  assert table[0].split() == ["run", "rate", "seed", "method", "harmless", "rate", "responses"]
  assert table[-2].split() == ["11", "0.4", "2", "rain", "40.0%", "4"]


def test_the_table_shows_rates_that_are_the_same_and_nothing_else_that_is():
  same = {"method": "rain", "helpful_rate": 0.5, "responses": 4, "rewinds": 3}
  rows = [{"run": n, **same} for n in range(2)]
  lines = [line.split() for line in sweeps.table(rows).splitlines()]
  assert lines == [
    ["run", "method", "helpful", "rate", "responses"],
    ["0", "rain", "50.0%", "4"],
    ["1", "rain", "50.0%", "4"],
  ]


def test_runs_that_outlive_a_killed_sweep_are_waited_for(tmp_path):
  out, file = tmp_path / "out", write(tmp_path, "PRODUCT = {'takes': (1.0, 1.5)}")
  process = subprocess.Popen(
    [sys.executable, "-c", SWEEP_OF_TWELVE, str(out), file, RUN],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.DEVNULL,
  )
  while len(list(out.glob("*/starts"))) < 2:
    assert process.poll() is None
    time.sleep(0.01)
  process.kill()
  process.wait()
  said = []
  sweep = sweeps.Sweep(out, sweeps.load_sweep(file))
  with pytest.raises(sweeps.SweepError, match="another process makes this run"):
    sweeps._start(sweep.workdir(1), ["true"])
  with pytest.raises(directory.Stopped):
    sweeps.run_locally(sweep, command_of(sweep), 2, said.append, stopping=lambda: True)
  assert sweeps.run_locally(sweep, command_of(sweep), 2, said.append) == []
  assert "run 0 still goes on from before; waiting for its end" in said
  assert [(sweep.workdir(n) / "starts").read_text() for n in range(2)] == ["x", "x"]


def test_a_failed_run_is_named_and_the_others_go_on(tmp_path):
  sweep = sweeps.Sweep.open(
    str(tmp_path), "a.py", {}, [{"fails": True}, {"rate": 0.25}, {"rate": 0.5}]
  )
  said = []
  assert sweeps.run_locally(sweep, command_of(sweep), jobs=3, say=said.append) == [0]
  assert [sweep.done(n) for n in range(3)] == [False, True, True]
  assert "run 0 failed with exit code 1" in said[-1] or any("run 0 failed" in s for s in said)
  assert "error: it fails" in (tmp_path / "000" / sweeps.LOG).read_text()
  assert len(sweep.collect()) == 4


def test_a_sweep_that_is_stopped_starts_nothing_more(tmp_path):
  sweep = sweeps.Sweep.open(str(tmp_path), "a.py", {}, [{"rate": n / 10} for n in range(5)])
  with pytest.raises(directory.Stopped):
    sweeps.run_locally(sweep, command_of(sweep), say=lambda line: None, stopping=lambda: True)
  assert not sweep.done(0) and not sweep.workdir(1).exists()


def test_the_command_prints_a_slurm_array_of_what_is_missing(tmp_path):
  file = write(tmp_path, "PRODUCT = {'seed': (0, 1, 2)}")
  flags = ["--config=configs/demo.py", f"--sweep={file}", f"--dir={tmp_path / 'out'}", "--jobs=2"]
  sweep = sweeps.Sweep(tmp_path / "out", sweeps.load_sweep(file))
  assert sweeps.run_locally(sweep, command_of(sweep), say=lambda line: None) == []
  (sweep.workdir(1) / directory.SUMMARY).unlink()
  command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), *flags, "--slurm=print"]
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("sbatch --array=1%2 ") and f"--sweep={file}" in done.stdout
  batch = next(word for word in done.stdout.split() if word.endswith(".sbatch"))
  assert pathlib.Path(batch).is_file()


def test_one_run_of_a_sweep_that_is_told_to_stop_says_resume(tmp_path):
  """As a task of an array: the scheduler's SIGTERM goes to the process that it started."""
  scripts = tmp_path / "scripts"
  scripts.mkdir()
  for name in ("cli.py", "sweep.py"):
    shutil.copyfile(ROOT / "scripts" / name, scripts / name)
  (scripts / "generate.py").write_text(RUN_THAT_WAITS)
  out, file = tmp_path / "out", write(tmp_path, "PRODUCT = {'seed': (0, 1)}")
  process = subprocess.Popen(
    [
      sys.executable,
      str(scripts / "sweep.py"),
      "--only=1",
      f"--dir={out}",
      f"--sweep={file}",
      f"--config={ROOT / 'configs' / 'common.py'}",
    ],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )
  while not (out / "001" / "ready").exists():
    assert process.poll() is None
    time.sleep(0.01)
  process.terminate()
  assert process.wait(timeout=60) == os.EX_TEMPFAIL


def test_a_plot_needs_matplotlib_or_is_drawn(tmp_path):
  rows = [{"run": n, "method": "rain", "harmless_rate": n / 4} for n in range(4)]
  try:
    import matplotlib  # noqa: F401
  except ImportError:
    with pytest.raises(sweeps.SweepError, match="pip install matplotlib"):
      sweeps.plot(rows, tmp_path / sweeps.PLOT)
    return
  sweeps.plot(rows, tmp_path / sweeps.PLOT)
  assert (tmp_path / sweeps.PLOT).read_bytes().startswith(b"\x89PNG")
  with pytest.raises(sweeps.SweepError, match="No run has a rate"):
    sweeps.plot([{"run": 0, "method": "rain"}], tmp_path / sweeps.PLOT)


@pytest.mark.parametrize(
  "text",
  ["", "[]", "3", '{"config": "c", "runs": 3, "values": {}}', "\udcff", "[" * 9999],
  ids=lambda text: text[:20],
)
def test_a_damaged_record_is_one_line(tmp_path, text):
  (tmp_path / sweeps.RECORD).write_bytes(text.encode(errors="surrogateescape"))
  with pytest.raises(sweeps.SweepError, match="sweep.json: not the record of a sweep") as error:
    sweeps.Sweep.open(str(tmp_path), "c", {}, [{"seed": 0}])
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{}", '{"methods": 3}', '{"methods": {"rain": 3}}', "[]", ""])
def test_a_damaged_summary_of_a_run_is_one_line(tmp_path, text):
  sweep = sweeps.Sweep.open(str(tmp_path), "c", {}, [{"seed": 0}])
  sweep.workdir(0).mkdir()
  (sweep.workdir(0) / directory.SUMMARY).write_text(text)
  with pytest.raises(ValueError, match="summary.json: ") as error:
    sweep.collect()
  assert "\n" not in str(error.value)
