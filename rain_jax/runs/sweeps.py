"""Sweeps: one command over many configurations, and one table of what came out.

A sweep is a Python file that defines either

  def sweep(add):                  # add() names what a run changes in the configuration
    for leaves in (1, 4):
      add(**{"search.leaves": leaves})

or `PRODUCT = {"seed": (0, 1, 2), "search.leaves": (1, 4)}`, all combinations of values.
Every run has a numbered directory below the sweep's own and resumes by itself; what has a
summary is done. Where runs are started is the caller's choice: `run_locally`, or an array
of a scheduler in which each task starts one of them.
"""

import csv
import fcntl
import importlib.machinery
import importlib.util
import io
import itertools
import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from rain_jax.runs import directory
from rain_jax.runs.files import read_json, replace_json, replace_text
from rain_jax.text.columns import aligned

RECORD, TABLE, PLOT, LOG = "sweep.json", "table.csv", "table.png", "log.txt"
_POLL = 0.2  # seconds between two looks at the processes


class SweepError(ValueError):
  """A sweep that cannot be run; one line that says what to do."""


def load_sweep(path: str) -> list[dict[str, Any]]:
  """What each run of a sweep file changes: configuration keys, dotted, with their values.

  Raises:
    SweepError: no such file, or it defines no runs.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise SweepError(f"{path}: no such sweep file.")
  # By a loader of source, whatever the file's name ends in.
  loader = importlib.machinery.SourceFileLoader(f"sweep_{file.stem}", str(file))
  spec = importlib.util.spec_from_loader(loader.name, loader)
  assert spec is not None  # the loader is there
  module = importlib.util.module_from_spec(spec)
  try:
    loader.exec_module(module)
    found: list[dict[str, Any]] = []
    if hasattr(module, "sweep"):
      module.sweep(lambda **changes: found.append(changes))
    elif hasattr(module, "PRODUCT"):
      found = product(module.PRODUCT)
    else:
      raise SweepError(f"{path}: defines neither sweep(add) nor PRODUCT.")
    json.dumps(found, allow_nan=False)
  except SweepError:
    raise
  except (Exception, SystemExit) as error:  # the file is the user's program, and may raise anything
    reason = " ".join(str(error).split())
    raise SweepError(f"{path}: {type(error).__name__}: {reason}; fix the sweep file.") from None
  if not found:
    raise SweepError(f"{path}: adds no run.")
  twice = [i for i, changes in enumerate(found) if changes in found[:i]]
  if twice:
    raise SweepError(f"{path}: run {twice[0]} is the same as an earlier one: {found[twice[0]]}.")
  return found


def product(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
  """All combinations of values, the last key's varying fastest."""
  return [dict(zip(values, combination)) for combination in itertools.product(*values.values())]


class Sweep:
  """Numbered runs below one directory.

  Attributes:
    path: the directory.
    changes: what each run changes.
  """

  def __init__(self, path: pathlib.Path, changes: Sequence[Mapping[str, Any]]):
    self.path, self.changes = path, list(changes)

  @classmethod
  def open(
    cls,
    directory: str,
    config: str,
    values: Mapping[str, Any],
    changes: Sequence[Mapping[str, Any]],
  ) -> "Sweep":
    """Begins a sweep, or takes one up again; runs may have been added after the old ones.

    Args:
      directory: made if it is not there.
      config: the configuration that all runs start from, as the command names it.
      values: what it holds; edited in the middle of a sweep it would be another sweep.
      changes: from `load_sweep`.

    Raises:
      SweepError: the directory cannot be made, or is of another sweep.
    """
    path = pathlib.Path(directory)
    record = json.loads(json.dumps({"config": config, "values": values, "runs": list(changes)}))
    try:
      path.mkdir(parents=True, exist_ok=True)
      if (path / RECORD).exists():
        _check_record(path / RECORD, record)
      replace_json(path / RECORD, record)
    except OSError as error:
      raise SweepError(f"{directory}: {error.strerror}; choose another --dir.") from None
    return cls(path, changes)

  def workdir(self, number: int) -> pathlib.Path:
    """The directory of a run."""
    return self.path / f"{number:03d}"

  def done(self, number: int) -> bool:
    """Whether a run has its summary."""
    return (self.workdir(number) / directory.SUMMARY).is_file()

  def flags(self, number: int) -> list[str]:
    """The flags by which a run's command differs from the others'."""
    overrides = [f"--config.{key}={value}" for key, value in self.changes[number].items()]
    return [f"--workdir={self.workdir(number)}", *overrides]

  def rows(self) -> Iterator[dict[str, Any]]:
    """One row for each method of each finished run: its number, changes and numbers."""
    keys = list(dict.fromkeys(key for changes in self.changes for key in changes))
    for number, changes in enumerate(self.changes):
      if self.done(number):
        summary = read_json(self.workdir(number) / directory.SUMMARY)
        methods = summary.get("methods")
        if not isinstance(methods, dict) or not all(isinstance(n, dict) for n in methods.values()):
          raise SweepError(
            f"{self.workdir(number) / directory.SUMMARY}: no summary of a run; remove the file and"
            " start the sweep again, which sums the run up anew."
          )
        for method, numbers in methods.items():
          plain = {k: v for k, v in numbers.items() if not isinstance(v, (dict, list))}
          yield {"run": number, **{k: changes.get(k) for k in keys}, "method": method, **plain}

  def collect(self) -> list[dict[str, Any]]:
    """The rows of all finished runs, also written as `table.csv`."""
    rows = list(self.rows())
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    try:
      replace_text(self.path / TABLE, text.getvalue())
    except OSError as error:
      raise SweepError(f"{self.path / TABLE}: {error.strerror}; the runs are kept.") from None
    return rows


def _check_record(path: pathlib.Path, record: Mapping[str, Any]) -> None:
  try:
    old = read_json(path)
    config, runs_before = old["config"], list(old["runs"])
  except (directory.RunError, KeyError, TypeError):
    raise SweepError(f"{path}: not the record of a sweep; choose another --dir.") from None
  if "values" not in old:
    raise SweepError(
      f"{path}: of an older version, which kept no values of the config; choose another --dir."
    )
  if config != record["config"]:
    raise SweepError(
      f"{path.parent} holds a sweep of {config}, not {record['config']}; choose another --dir."
    )
  if changed := directory.difference(old["values"], record["values"]):
    raise SweepError(
      f"{path.parent} holds a sweep of {config} before it was edited ({changed}); choose another --dir."
    )
  for number, before in enumerate(runs_before):
    now = record["runs"][number] if number < len(record["runs"]) else None
    if now != before:
      raise SweepError(
        f"{path.parent} holds another sweep (run {number}: {before} -> {now}); choose another --dir."
      )


def run_locally(
  sweep: Sweep,
  command: Callable[[int], Sequence[str]],
  jobs: int = 1,
  say: Callable[[str], None] = print,
  stopping: Callable[[], bool] = lambda: False,
) -> list[int]:
  """Runs what is not done, as processes on this machine, a few at a time.

  What a run prints goes to `log.txt` in its directory. When it is to stop, every process
  gets SIGTERM and may finish what it writes.

  Args:
    sweep: the sweep.
    command: of a run, by its number.
    jobs: processes at a time.
    say: told of each start and end.
    stopping: asked all the time; True ends the sweep.

  Returns:
    Numbers of the runs that failed.

  Raises:
    directory.Stopped: as asked, or because a run was told to stop; the same call goes on.
    SweepError: another process makes the same runs.
  """
  _wait_for_runs_left_behind(sweep, say, stopping)
  waiting = [n for n in range(len(sweep.changes)) if not sweep.done(n)]
  going: dict[int, subprocess.Popen] = {}
  failed: list[int] = []
  stopped = False
  try:
    while going or (waiting and not stopped):
      while waiting and len(going) < jobs and not stopped:
        number = waiting.pop(0)
        going[number] = _start(sweep.workdir(number), command(number))
        say(f"run {number} of {len(sweep.changes)}: {sweep.changes[number]}")
      for number in [n for n, process in going.items() if process.poll() is not None]:
        code = going.pop(number).returncode
        if code in (os.EX_TEMPFAIL, -signal.SIGTERM):
          stopped = True
        elif code or not sweep.done(number):
          failed.append(number)
          say(f"run {number} failed with exit code {code}; see {sweep.workdir(number) / LOG}")
      if stopping() and not stopped:
        stopped = True
        _end(going.values(), signal.SIGTERM)
      time.sleep(_POLL)
  except BaseException:
    _end(going.values(), signal.SIGINT)
    for process in going.values():
      process.wait()
    raise
  if stopped:
    raise directory.Stopped
  return sorted(failed)


def _start(workdir: pathlib.Path, command: Sequence[str]) -> subprocess.Popen:
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / LOG).open("ab") as log:
    if not _locked(log):
      raise SweepError(f"{workdir}: another process makes this run; wait for it, or stop it.")
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def _locked(log: IO[bytes]) -> bool:
  """Locks a run's log for whoever has it open; a process that inherits it keeps the lock."""
  try:
    fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True


def _wait_for_runs_left_behind(
  sweep: Sweep, say: Callable[[str], None], stopping: Callable[[], bool]
) -> None:
  """Runs outlive a sweep that was killed, and need the machine until they end."""
  for number in range(len(sweep.changes)):
    path, told = sweep.workdir(number) / LOG, False
    while path.exists():
      with path.open("ab") as log:
        if _locked(log):
          break
      if not told:
        say(f"run {number} still goes on from before; waiting for its end")
        told = True
      if stopping():
        raise directory.Stopped
      time.sleep(_POLL)


def _end(processes: Iterable[subprocess.Popen], how: int) -> None:
  for process in processes:
    if process.poll() is None:
      process.send_signal(how)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The rows as plain text: rates, numbers of responses, and what is not the same in all rows."""
  columns = list(dict.fromkeys(column for row in rows for column in row))
  fixed = lambda column: column in ("run", "method", "responses") or column.endswith("_rate")
  shown = [c for c in columns if fixed(c) or len({str(row.get(c)) for row in rows}) > 1]
  lines = [[c.replace("_", " ") for c in shown]]
  lines += [[_cell(column, row.get(column)) for column in shown] for row in rows]
  return aligned(lines)


def _cell(column: str, value: Any) -> str:
  if value is None:
    return "-"
  if column.endswith("_rate"):
    return f"{100 * value:.1f}%"
  return f"{value:.3g}" if isinstance(value, float) else str(value)


def plot(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
  """Every rate against the runs' numbers, a line for each method.

  Raises:
    SweepError: matplotlib is not there, or there is no rate to draw.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError:
    raise SweepError("A plot needs matplotlib: pip install matplotlib.") from None
  rates = sorted({column for row in rows for column in row if column.endswith("_rate")})
  if not rates:
    raise SweepError("No run has a rate to draw.")
  figure = Figure(figsize=(7, 2.6 * len(rates)), layout="constrained")
  for axes, rate in zip(figure.subplots(len(rates), squeeze=False)[:, 0], rates):
    for method in dict.fromkeys(row["method"] for row in rows):
      points = [(r["run"], r[rate]) for r in rows if r["method"] == method and rate in r]
      axes.plot(*zip(*points), "o-", label=method)
    axes.set(xlabel="run", ylabel=rate.replace("_", " "), ylim=(-0.05, 1.05))
    axes.legend()
  figure.savefig(path)
