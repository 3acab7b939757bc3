"""One answer that somebody waits for: where it is cut, and what of it can be told already."""

import dataclasses
from collections.abc import Callable, Sequence

from rain_jax.methods.session import Query, Response, Session
from rain_jax.text import encoding


class Refused(Exception):
  """A request that gets no answer.

  Attributes:
    status: of HTTP.
    kind: one of the API's types of errors.
    param: field of the body.
    code: one of the API's codes.
  """

  def __init__(
    self,
    status: int,
    message: str,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
  ):
    super().__init__(message)
    self.status, self.kind, self.param, self.code = status, kind, param, code


@dataclasses.dataclass(eq=False)
class Request:
  """A prompt on its way through a batcher.

  Attributes:
    query: the prompt with its own seed.
    tell: hears, in a thread of the batcher's, text that is final, then the `Response` or the
      error that it ends with.
    max_tokens: where its response is cut.
    stop: texts before which its response is cut.
    streams: it is to hear of text before the response.
    gone: nobody waits for it any more.
    told: text that it has heard.
    seen: tokens that were looked at.
  """

  query: Query
  tell: Callable[[str | Response | Exception], None]
  max_tokens: int
  stop: tuple[str, ...] = ()
  streams: bool = False
  gone: bool = False
  told: str = ""
  seen: int = 0

  def grown(self, session: Session, tokens: Sequence[int]) -> tuple[list[int], str, str] | None:
    """Looks at the tokens that are final so far, and tells their text.

    Returns:
      Tokens, text and reason, if the response ends here although its search goes on.
    """
    if len(tokens) == self.seen:
      return None
    self.seen = len(tokens)
    cut = self.cut(session, tokens)
    if cut is not None:
      return cut
    if len(tokens) == self.max_tokens:
      return list(tokens), session.decoded(self.query, tokens), "length"
    if self.streams:
      self.heard(self._safe(session, session.decoded(self.query, tokens)))
    return None

  def cut(self, session: Session, tokens: Sequence[int]) -> tuple[list[int], str, str] | None:
    """Tokens, text and reason of a response that goes on beyond its limit or a stop text."""
    kept = list(tokens[: self.max_tokens])
    text = session.decoded(self.query, kept)
    if any(stop in text for stop in self.stop):
      has_stop = lambda text: [text.index(stop) for stop in self.stop if stop in text]
      count = next(
        n for n in range(len(kept) + 1) if has_stop(session.decoded(self.query, kept[:n]))
      )
      return kept[:count], text[: min(has_stop(text))], "stop"
    return (kept, text, "length") if len(kept) < len(tokens) else None

  def ended(self, session: Session, response: Response) -> Response:
    """The response as it is given out."""
    cut = None if response.error else self.cut(session, response.tokens)
    return response if cut is None else shortened(response, *cut)

  def heard(self, text: str) -> None:
    """Tells what a longer text adds."""
    if text.startswith(self.told) and len(text) > len(self.told):
      self.tell(text[len(self.told) :])
      self.told = text

  def _safe(self, session: Session, text: str) -> str:
    """Text without an end that may yet turn out otherwise, or be the beginning of a stop text."""
    text = text.rstrip(encoding.REPLACEMENT)
    for stop in (*session.config.format.stop, *self.stop):
      size = next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
      text = text[: len(text) - size]
    return text.rstrip()


def shortened(response: Response, tokens: list[int], text: str, reason: str) -> Response:
  """A response that was cut; what the model said of all of it is not said of that."""
  counters = {**response.counters, "response_tokens": len(tokens)}
  return dataclasses.replace(
    response,
    tokens=tokens,
    text=text,
    finish_reason=reason,
    verdict=None,
    counters=counters,
    log_likelihood=None,
  )
