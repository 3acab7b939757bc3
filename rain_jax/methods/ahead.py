"""Programs that are compiled side by side, before they are first called.

The compiler keeps one core busy and leaves Python to other threads. Each program is lowered and
compiled from the shapes of its arguments; a call of the same function with arrays of those shapes
then finds it in JAX's own caches. Programs stay what they are, and so do results.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import math
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from rain_jax.parallel import machine
from rain_jax.text.atomic import replace_text

_LOG = logging.getLogger(__name__)
_THREADS = 4  # at most: each compilation of a large search takes gigabytes
_NAME = "rain_jax-compiling"
_PATIENCE = 2.0  # seconds without a line about what is waited for
_LOOK = 0.1  # seconds between two questions whether to stop
_SECONDS = "rain_jax_seconds.json"  # beside the compiled programs
_KEPT = 500  # programs whose seconds are kept, the latest

_KEEPING = threading.Lock()  # held while the record of seconds is written
_LOWERING = threading.Lock()  # held while one is lowered: two at once in Python would both be late
_heard = threading.local()


@dataclasses.dataclass(frozen=True)
class Program:
  """A program of a method.

  Attributes:
    name: for people; programs of one session that have the same name are the same.
    lower: traces and lowers it, with arguments as it will be called with.
  """

  name: str
  lower: Callable[[], jax.stages.Lowered]


class Ahead:
  """Compiles programs in threads of its own, in the order in which they are given.

  One at a time is lowered, beside those that the compiler has.

  Args:
    programs: to compile.
    of: what they are of, for the record of seconds, such as the model's name and its sizes.
    about: who waits for them, for the log.
    between: called every moment while somebody waits; may raise.
    after: whose programs come first, perhaps the same ones.
  """

  def __init__(
    self,
    programs: Iterable[Program],
    of: str = "",
    about: str = "",
    between: Callable[[], None] = lambda: None,
    after: "Ahead | None" = None,
  ):
    _listen()
    self._of, self._about, self._between = of, about, between
    self._before = after.futures() if after else []
    self._record, self._closed = _read_record(), threading.Event()
    named = {program.name: program for program in programs}
    threads = max(1, min(len(named), machine.cores(), _THREADS))
    self._pool = concurrent.futures.ThreadPoolExecutor(threads, _NAME)
    self._compiled = {name: self._pool.submit(self._compile, one) for name, one in named.items()}

  def wait(self, name: str) -> None:
    """Returns when the program of that name is compiled, at once if there is none.

    A line of the log says what is waited for if it takes long.

    Raises:
      Whatever kept the program from being compiled, and what `between` raises.
    """
    compiled = self._compiled.get(name)
    patience = time.monotonic() + _PATIENCE
    while compiled is not None:
      concurrent.futures.wait([compiled], _LOOK)
      if compiled.done():
        compiled.result()
        return
      self._between()
      if time.monotonic() > patience:
        patience = math.inf
        _LOG.info("%s: compiling %s", self._about, self._described(name))

  def close(self) -> None:
    """Begins no more programs; what is being compiled comes to its end in its thread."""
    self._closed.set()  # for those that wait for the programs before them
    self._pool.shutdown(wait=False, cancel_futures=True)

  def futures(self) -> list[concurrent.futures.Future]:
    """Of its programs and of those that come before them."""
    return [*self._before, *self._compiled.values()]

  def _compile(self, program: Program) -> None:
    for before in self._before:
      with contextlib.suppress(concurrent.futures.CancelledError):
        before.exception()  # whoever waits for that program is told
    with _LOWERING:
      if self._closed.is_set():
        return
      begin = time.monotonic()
      lowered = program.lower()
    _heard.hits = 0
    lowered.compile()
    if not _heard.hits:  # of what the compilation cache had, the time would say little
      self._keep(program.name, time.monotonic() - begin)

  def _key(self, name: str) -> str:
    return f"{self._of}: {name}"

  def _described(self, name: str) -> str:
    seconds = self._record.get(self._key(name))
    known = "no time known" if seconds is None else f"{seconds:.0f} s when it was last compiled"
    return f"{name} ({known})"

  def _keep(self, name: str, seconds: float) -> None:
    path = _record_path()
    if path is None:
      return
    with _KEEPING, contextlib.suppress(OSError):  # a run can do without
      record = _read_record()  # with what was kept since this one was read
      record.pop(self._key(name), None)
      record[self._key(name)] = round(seconds, 1)
      replace_text(path, json.dumps(dict(list(record.items())[-_KEPT:]), indent=0) + "\n")


def busy() -> bool:
  """Whether a program is being compiled, for whose end Python would wait before it exits."""
  return any(thread.name.startswith(_NAME) for thread in threading.enumerate())


def _listen() -> None:
  """Has JAX say in each thread whether a program was found in the compilation cache."""
  if not _LISTENING:
    _LISTENING.append(True)
    jax.monitoring.register_event_listener(_hear)


_LISTENING: list[bool] = []


def _hear(event: str, **_: Any) -> None:
  if event == "/jax/compilation_cache/cache_hits":
    _heard.hits = getattr(_heard, "hits", 0) + 1


def _record_path() -> pathlib.Path | None:
  """Where the seconds of programs are kept; None if there is no local compilation cache."""
  folder = getattr(jax.config, "jax_compilation_cache_dir", None)
  return pathlib.Path(folder) / _SECONDS if folder and pathlib.Path(folder).is_dir() else None


def _read_record() -> dict[str, float]:
  """Seconds by program, as far as they can be read."""
  path = _record_path()
  with contextlib.suppress(OSError, ValueError):
    found = json.loads(path.read_text("utf-8")) if path else {}
    if isinstance(found, Mapping):
      return {key: float(n) for key, n in found.items() if isinstance(n, (int, float))}
  return {}
