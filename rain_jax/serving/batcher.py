"""A batcher: one method with one preference, a queue, and the running batch that it feeds."""

import collections
import dataclasses
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rain_jax import decode, types
from rain_jax.methods import Method
from rain_jax.methods.rain import committed, rounds, search_work, searched
from rain_jax.methods.responses import responded
from rain_jax.methods.session import Response, Session
from rain_jax.models import arrays
from rain_jax.policy import memory_plan
from rain_jax.serving.requests import Refused, Request, shortened

_LOG = logging.getLogger(__name__)


class Waiting:
  """Requests that wait for a slot; several threads may take from it.

  Args:
    limit: how many may wait.
  """

  def __init__(self, limit: int):
    self._limit, self._closed = limit, False
    self._requests: collections.deque[Request] = collections.deque()
    self._changed = threading.Condition()

  def __len__(self) -> int:
    return sum(not request.gone for request in list(self._requests))

  def put(self, requests: Sequence[Request]) -> None:
    """All of them join, or none.

    Raises:
      Refused: the queue is full, or closed.
    """
    with self._changed:
      if self._closed:
        raise Refused(503, "the server is shutting down", "server_error")
      present = [request for request in self._requests if not request.gone]
      if len(present) + len(requests) > self._limit:
        said = f"{len(present)} requests wait already, of at most {self._limit}: try again later"
        raise Refused(429, said, "requests", code="rate_limit_exceeded")
      self._requests = collections.deque([*present, *requests])
      self._changed.notify_all()

  def take(self, block: bool) -> Request | None | Any:
    """The next request; `decode.NOT_YET` if there is none yet, None if there will be none."""
    with self._changed:
      while True:
        while self._requests:
          request = self._requests.popleft()
          if not request.gone:
            return request
        if self._closed:
          return None
        if not block:
          return decode.NOT_YET
        self._changed.wait()

  def close(self) -> None:
    """Lets nothing in any more; what waits is still given out."""
    with self._changed:
      self._closed = True
      self._changed.notify_all()


class Batcher:
  """Answers requests by one method.

  Args:
    session: without prompts, for prompts of any length (`fit_prompts` is False).
    method: of `methods.METHODS`.
    options: of the method.
    limit: of requests that wait.

  Raises:
    ValueError: a search would not fit into the memory; one line.
  """

  def __init__(self, session: Session, method: Method, options: Mapping[str, Any], limit: int):
    self.session = (
      session.searching(method.search(session.config.search)) if method.search else session
    )
    self.waiting = Waiting(limit)
    self._method, self._options = method, options
    self._looking = threading.Lock()  # or two batches might compile the same program
    self._compiled = threading.Event()
    count = 1
    if method.search:
      memory_plan.check(self.session.plan(), arrays.bytes_available())
      count, slots = self.session.workers
      run = lambda running: self._search(slots, running)
    else:
      run = self._answer_batches
    # Of each thread, the requests in its slots.
    self._running: list[set[Request]] = [set() for _ in range(count)]
    self._threads = [
      threading.Thread(target=self._work, args=(run, number), daemon=True)
      for number in range(count)
    ]
    for thread in self._threads:
      thread.start()

  @property
  def running(self) -> int:
    """Requests in slots."""
    return sum(map(len, self._running))

  def close(self) -> None:
    """Answers what waits, and ends."""
    self.waiting.close()
    for thread in self._threads:
      thread.join()

  def _work(self, run, number: int) -> None:
    if number:  # the first compiles for all
      self._compiled.wait()
    running, going = self._running[number], True
    while going:
      try:
        run(running)
        going = False
      except Exception as error:  # of the device, or of a program: others are still to be answered
        _LOG.exception("a batch was lost")
        for request in list(running):
          request.tell(error)
        running.clear()
    self._compiled.set()  # also where nothing was ever asked

  # -- searches -----------------------------------------------------------------------

  def _search(self, slots: int, running: set[Request]) -> None:
    """Searches in slots that are looked at, and filled, after every step."""

    def items() -> Iterator[Any]:
      while (request := self.waiting.take(block=not running)) is not None:
        if request is decode.NOT_YET:
          yield request
        else:
          running.add(request)
          yield request, request.query.key(0), request.query

    def dropped(request: Request) -> bool:
      if request.gone:
        running.discard(request)
      return request.gone

    for ended, held, state in rounds(self.session, slots, items(), 1, dropped):
      with self._looking:
        for result in ended:
          self._ended(result, state)
          running.discard(result.index)
        self._look(held, state)
      self._compiled.set()

  def _ended(self, result: decode.Result, state: decode.DecodeState) -> None:
    request = result.index
    if not request.gone:
      found = dataclasses.replace(result, index=request.query)
      request.tell(request.ended(self.session, searched(self.session, found, state)))

  def _look(self, held: Mapping[int, Request], state: decode.DecodeState) -> None:
    final = committed(self.session, state)
    for slot, request in held.items():
      cut = None if request.gone else request.grown(self.session, final[slot])
      if cut is not None:
        request.gone = True  # its slot is free
        work = search_work(decode.result(state, slot, request), state)
        whole = Response(request.query.record, "", [], "", None, work)
        request.tell(shortened(whole, *cut))

  # -- batches ------------------------------------------------------------------------

  def _answer_batches(self, running: set[Request]) -> None:
    """Batches of the requests that wait, as many as there are slots; none is left early."""
    while (first := self.waiting.take(block=True)) is not None:
      running.add(first)
      while len(running) < self.session.slots:
        request = self.waiting.take(block=False)
        if request is None or request is decode.NOT_YET:
          break
        running.add(request)
      by_record = {id(request.query.record): request for request in running}
      session = self.session.answering([request.query for request in running])
      for response in self._method.run(session, 0, **self._options):
        request = by_record[id(response.record)]
        request.tell(request.ended(session, response))
      running.clear()

  def judge(self, request: Request) -> None:
    """Compiles the final verdict, which an answer that is cut does without."""
    query = request.query
    with self._looking:
      responded(self.session, [query], [query.proposing[:1]], [types.LENGTH], [{}])
