"""Streams of results that run side by side, each in a thread of its own.

On a CPU a program for one prompt at a time does no work for padding and for slots that have
ended, and one such program per core keeps all cores busy, which the many small operations of
one large program do not. Threads suffice: compiled programs leave Python to the others.
"""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from rain_jax.parallel import machine

T = TypeVar("T")


def layout(in_caches: bool, slots: int) -> tuple[int, int]:
  """How many batches of searches run side by side on one device, and the slots of each.

  On a CPU whose caches hold the model, one search for each core: a batch would compute padding,
  and its small operations leave cores idle. A larger model is rather read once for all prompts.

  Args:
    in_caches: the model is small enough for a processor's caches, see `models.backend.in_caches`.
    slots: prompts to answer at a time.
  """
  if not in_caches:
    return 1, slots
  return min(slots, machine.cores()), 1


class Shared(Generic[T]):
  """An iterator that several threads may take from."""

  def __init__(self, items: Iterable[T]):
    self._items, self._lock = iter(items), threading.Lock()

  def __iter__(self) -> "Shared[T]":
    return self

  def __next__(self) -> T:
    with self._lock:
      return next(self._items)


def merged(streams: Sequence[Iterator[T]]) -> Generator[T, None, None]:
  """What all the streams yield, as it comes.

  The first runs alone until it yields: by then its programs are compiled, for all.

  Raises:
    Whatever a stream raises; the others end with what they are at.
  """
  if len(streams) == 1:
    yield from streams[0]
    return
  found: queue.SimpleQueue = queue.SimpleQueue()
  leaving = threading.Event()

  def run(stream: Iterator[T]) -> None:
    try:
      for item in stream:
        found.put((item, None))
        if leaving.is_set():
          return
      found.put((None, StopIteration()))
    except BaseException as error:  # handed to the thread that reads
      found.put((None, error))

  threads = [threading.Thread(target=run, args=(one,), daemon=True) for one in streams]
  threads[0].start()
  waiting, running = threads[1:], 1
  try:
    while running:
      item, error = found.get()
      while waiting:
        waiting.pop().start()
        running += 1
      if error is None:
        yield item
      elif isinstance(error, StopIteration):
        running -= 1
      else:
        raise error
  finally:
    leaving.set()
    for thread in threads:
      if thread.ident is not None:
        thread.join()
