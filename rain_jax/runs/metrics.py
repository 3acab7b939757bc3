"""What a run says while it goes on: numbers per step as JSON lines, and a heartbeat.

`Metrics` is the one place where numbers per step are written. Its lines are plain JSON, as
the results are: whatever draws curves reads them, and nothing has to be installed.
"""

import contextlib
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from rain_jax.methods import BatchProgress
from rain_jax.methods.session import Response
from rain_jax.runs.files import end_last_line

HEARTBEAT = 15.0  # seconds between two lines of the log, at least
PROFILE = "profile"  # directory of traces, in the working directory
_FIRST_TRACED, _TRACED = 2, 3  # steps: what is compiled in the first would drown the rest
_LOG = logging.getLogger(__name__)


class Metrics:
  """Appends one JSON object per line to a file.

  A run can do without them: what keeps a line from being written is a warning, and the last of
  the file.
  """

  def __init__(self, workdir: str, process: int = 0, processes: int = 1):
    name = "metrics.jsonl" if processes == 1 else f"metrics-{process}.jsonl"
    self._path = pathlib.Path(workdir) / name
    self._file = None
    try:
      end_last_line(self._path)
      self._file = open(self._path, "ab", buffering=0)
    except OSError as error:
      self._warn(error)

  def write(self, line: dict[str, Any]) -> None:
    """Adds a line; readers see it when this returns."""
    if self._file is None:
      return
    data, file = (json.dumps(line) + "\n").encode(), self._file.fileno()
    try:
      while data:  # a disk that is nearly full takes a part
        data = data[os.write(file, data) :]
    except OSError as error:
      self._warn(error)
      self.close()
      with contextlib.suppress(OSError):
        end_last_line(self._path)

  def close(self) -> None:
    """Closes the file."""
    if self._file is not None:
      file, self._file = self._file, None
      try:
        file.close()
      except OSError as error:  # some file systems write only now
        self._warn(error)

  def _warn(self, error: OSError) -> None:
    _LOG.warning("%s: %s; the run goes on without metrics", self._path, error.strerror)


class Progress:
  """Counts what one method does over one task's prompts, and tells of it.

  Args:
    write: takes the numbers of a step.
    name: of task and method, as they are shown.
    total: prompts to answer.
    done: how many of them are answered.
    clock: seconds, for rates and heartbeats.
  """

  def __init__(
    self,
    write: Callable[[dict[str, Any]], None],
    name: dict[str, str],
    total: int,
    done: int,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._write, self._name, self._total, self._clock = write, name, total, clock
    self.answered = done
    self._ended = {"response_tokens": 0, "tokens_forwarded": 0, "rewinds": 0}
    self._begun = self._beat = self._last = clock()
    self._before = self._told = {"response_tokens": 0, "tokens_forwarded": 0}
    self._workers: dict[int, BatchProgress] = {}

  def count(self, response: Response) -> None:
    """Counts a response that has ended."""
    self.answered += 1
    for name in self._ended:
      self._ended[name] += response.counters.get(name, 0)

  def step(self, progress: BatchProgress | None) -> dict[str, Any]:
    """Writes the numbers of a step, and a line of the log when it is time for one.

    Args:
      progress: at a batch of searches, None for a method that has none.

    Returns:
      The numbers.
    """
    if progress is not None:
      self._workers[progress.worker] = progress
    workers = self._workers.values()
    total = {
      name: n + sum(getattr(one, name) for one in workers) for name, n in self._ended.items()
    }
    now = self._clock()
    line = {
      "time": round(time.time(), 3),
      **self._name,
      "answered": self.answered,
      "of": self._total,
      "seconds": round(now - self._begun, 3),
      "tokens": total["response_tokens"],
      **_rates(total, self._before, now - self._last),
      "rewinds": total["rewinds"],
    }
    if workers:
      line |= {"slots_busy": sum(g.busy for g in workers), "slots": sum(g.slots for g in workers)}
    if wanted := sum(one.samples_wanted for one in workers):
      line |= {"samples": sum(one.samples for one in workers), "samples_wanted": wanted}
    self._write(line)
    self._last, self._before = now, total
    if now - self._beat >= HEARTBEAT:
      _LOG.info("%s", heartbeat(line | _rates(total, self._told, now - self._beat)))
      self._beat, self._told = now, total
    return line


def _rates(total: dict[str, int], before: dict[str, int], seconds: float) -> dict[str, float]:
  """Tokens per second since there were as many as before; a better sample may be a shorter one."""
  rate = lambda name: round(max(total[name] - before[name], 0) / max(seconds, 1e-6), 3)
  return {
    "tokens_per_second": rate("response_tokens"),
    "forwarded_per_second": rate("tokens_forwarded"),
  }


def heartbeat(line: dict[str, Any]) -> str:
  """A step's numbers for a reader of the log."""
  busy = f", {line['slots_busy']} of {line['slots']} slots busy" if "slots" in line else ""
  samples = f" {line['samples']} of {line['samples_wanted']} samples," if "samples" in line else ""
  return (
    f"{line['task']} {line['method']}: {line['answered']} of {line['of']} answered,{samples}"
    f" {line['tokens_per_second']:.1f} tokens/s, {line['forwarded_per_second']:.0f}"
    f" forwarded/s{busy}, {line['rewinds']} rewinds"
  )


class Profiler:
  """Traces a few steps with `jax.profiler`, once they are compiled.

  Args:
    folder: where traces go; None traces nothing.
  """

  def __init__(self, folder: str | None):
    self._folder, self._steps, self._on = folder, 0, False

  def step(self) -> None:
    """Told of the end of every step."""
    self._steps += 1
    if self._folder and self._steps == _FIRST_TRACED:
      jax.profiler.start_trace(self._folder)
      self._on = True
    elif self._on and self._steps == _FIRST_TRACED + _TRACED:
      self.close()

  def close(self) -> None:
    """Writes what was traced."""
    if self._on:
      jax.profiler.stop_trace()
      self._on, self._folder = False, None
