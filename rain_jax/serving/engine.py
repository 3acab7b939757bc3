"""What is served: a model by several methods and preferences, each with its batcher."""

import dataclasses
import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from rain_jax.methods import METHODS, find_method
from rain_jax.methods.session import Query, Session, SessionConfig
from rain_jax.models.loading import LoadedModel
from rain_jax.serving.batcher import Batcher
from rain_jax.serving.requests import Refused, Request
from rain_jax.tasks import Record
from rain_jax.text.formats import PROMPT, Format
from rain_jax.types import DataError

RAW = Format(template=PROMPT, stop=())
"""How a text to be completed is put to the model: as it is."""


@dataclasses.dataclass(frozen=True)
class Kind:
  """Whose answer it is.

  Attributes:
    method: a name of `methods.METHODS`.
    preference: the name of a preference that is served.
    raw: the prompt is a text to be completed, not what a user says.
  """

  method: str
  preference: str
  raw: bool = False


class Engine:
  """A loaded model that answers requests side by side.

  The answer to a request is that of `Rain.generate` to `[prompt]` with the request's seed, whoever
  is answered beside it.

  Args:
    loaded: the model.
    name: what clients call it.
    settings: of each preference that is served; the first one's is used where none is named.
    methods: with the options of each.
    waiting: requests of each batcher that may wait for a slot.

  Raises:
    DataError: a method that not every prompt can be answered by, or a format with thoughts.

  Attributes:
    name: what clients call the model.
    methods: names; the first, RAIN if that is served, is used where none is named.
    preferences: names; the first is used where none is named.
  """

  def __init__(
    self,
    loaded: LoadedModel,
    name: str,
    settings: Sequence[SessionConfig],
    methods: Mapping[str, Mapping[str, Any]],
    waiting: int,
  ):
    for method in methods:
      if not find_method(method).any_prompt:
        known = ", ".join(name for name, one in METHODS.items() if one.any_prompt)
        raise DataError(f"methods: {method} cannot be served; expected some of {known}.")
    if any(one.format.thinking for one in settings):
      raise DataError("format.thinking: thoughts cannot be served yet; leave it empty.")
    self.name = name
    self.methods = tuple(sorted(methods, key=lambda method: method != "rain"))
    self._loaded, self._options, self._limit = loaded, methods, waiting
    self._settings = {one.preference.name: one for one in settings}
    self.preferences = tuple(self._settings)
    self._sessions: dict[tuple[str, bool], Session] = {}
    self._batchers: dict[Kind, Batcher] = {}
    self._making, self._reading = threading.Lock(), threading.Lock()
    self._closed = False

  def max_response(self, preference: str) -> int:
    """Tokens of the longest response."""
    return self._settings[preference].max_response

  def slots(self) -> int:
    """Requests of a batcher that are answered side by side."""
    return self._settings[self.preferences[0]].batch_size

  @property
  def load(self) -> dict[str, int]:
    """How many requests are in slots, and how many wait."""
    batchers = list(self._batchers.values())
    return {
      "running": sum(batcher.running for batcher in batchers),
      "waiting": sum(len(batcher.waiting) for batcher in batchers),
    }

  def queries(self, kind: Kind, records: Sequence[Record], seed: int) -> list[Query]:
    """Prompts in tokens.

    Raises:
      Refused: one of them cannot be answered.
    """
    with self._reading:
      try:
        session = self._session(kind).serving(records)
      except DataError as error:
        raise Refused(400, str(error), code="context_length_exceeded") from None
    for rejected in session.rejected:
      long = "more than limits.max_prompt" in (rejected.error or "")
      code = "context_length_exceeded" if long else None
      raise Refused(400, rejected.error or "", param="messages", code=code)
    return [dataclasses.replace(query, seed=seed) for query in session.queries]

  def ask(self, kind: Kind, requests: Sequence[Request]) -> None:
    """Puts requests into the queue of their batcher, all or none.

    Raises:
      Refused: the queue is full, or there is no memory for the batcher.
    """
    self._batcher(kind).waiting.put(requests)

  def warm(self) -> None:
    """Compiles what chats with the first preference need, by each method."""
    for method in self.methods:
      kind = Kind(method, self.preferences[0])
      (query,) = self.queries(kind, [Record("0", "Hello.")], 0)
      told: queue.SimpleQueue = queue.SimpleQueue()
      request = Request(query, told.put, max_tokens=1)
      self.ask(kind, [request])
      answer = told.get()
      if isinstance(answer, Exception):
        raise answer
      self._batcher(kind).judge(request)

  def close(self) -> None:
    """Answers what waits, and ends."""
    with self._making:
      self._closed = True
    for batcher in self._batchers.values():
      batcher.close()

  def _session(self, kind: Kind) -> Session:
    key = kind.preference, kind.raw
    with self._making:
      if key not in self._sessions:
        config = dataclasses.replace(self._settings[kind.preference], fit_prompts=False)
        if kind.raw:
          config = dataclasses.replace(config, format=RAW)
        self._sessions[key] = Session(self._loaded, config, [])
      return self._sessions[key]

  def _batcher(self, kind: Kind) -> Batcher:
    session = self._session(kind)
    with self._making:
      if self._closed:
        raise Refused(503, "the server is shutting down", "server_error")
      if kind not in self._batchers:
        options = self._options[kind.method]
        try:
          self._batchers[kind] = Batcher(session, find_method(kind.method), options, self._limit)
        except ValueError as error:
          raise Refused(503, str(error), "server_error") from None
      return self._batchers[kind]
