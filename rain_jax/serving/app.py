"""The server: OpenAI-compatible endpoints as an ASGI application.

POST /v1/chat/completions, /v1/completions    answers, streamed or not
GET  /v1/models, /health                      what is served, and how busy it is
"""

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette import requests as http
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from rain_jax.methods.session import Response as Answer
from rain_jax.serving import bodies, replies
from rain_jax.serving.engine import Engine
from rain_jax.serving.requests import Refused, Request

_LOG = logging.getLogger(__name__)
BODY = 1 << 20  # bytes of a body, at most
BODY_TIME = 30.0  # seconds in which it has to come


def make_app(engine: Engine, key: str = "") -> Starlette:
  """The application.

  Args:
    engine: what is served.
    key: that clients have to send; "" asks for none.
  """

  def guarded(endpoint: Callable[[http.Request], Any]) -> Callable[[http.Request], Any]:
    async def allowed(request: http.Request) -> Response:
      given = request.headers.get("authorization", "").encode("latin-1")
      if key and not hmac.compare_digest(given, f"Bearer {key}".encode()):
        raise Refused(401, "a wrong API key, or none", code="invalid_api_key")
      return await endpoint(request)

    return allowed

  async def models(request: http.Request) -> Response:
    return _json(200, {"object": "list", "data": [_model(name) for name in _names(engine)]})

  async def model(request: http.Request) -> Response:
    name = request.path_params["name"]
    if name not in _names(engine):
      raise Refused(404, f"no model {name!r:.60} is served", code="model_not_found")
    return _json(200, _model(name))

  async def health(request: http.Request) -> Response:
    return _json(200, {"status": "ok", "model": engine.name, **engine.load})

  async def chat(request: http.Request) -> Response:
    return await _answered(engine, request, chat=True)

  async def completions(request: http.Request) -> Response:
    return await _answered(engine, request, chat=False)

  return Starlette(
    routes=[
      Route("/v1/chat/completions", guarded(chat), methods=["POST"]),
      Route("/v1/completions", guarded(completions), methods=["POST"]),
      Route("/v1/models", guarded(models)),
      Route("/v1/models/{name:path}", guarded(model)),
      Route("/health", health),
    ],
    exception_handlers={
      Refused: lambda request, refused: _refused(refused),
      HTTPException: lambda request, error: _refused(Refused(error.status_code, error.detail)),
      Exception: lambda request, error: _refused(_broken(error)),
    },
  )


def _names(engine: Engine) -> list[str]:
  return [engine.name, *(f"{engine.name}:{method}" for method in engine.methods)]


def _model(name: str) -> dict[str, Any]:
  return {"id": name, "object": "model", "created": 0, "owned_by": "rain_jax"}


def _json(status: int, value: dict[str, Any], **headers: str) -> Response:
  return Response(replies.encoded(value), status, headers, "application/json")


def _refused(refused: Refused) -> Response:
  headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}
  return _json(refused.status, replies.error(refused), **headers.get(refused.status, {}))


def _broken(error: Exception) -> Refused:
  """What a client is told of an error that is not its own."""
  _LOG.error("a request failed", exc_info=error)
  return Refused(500, "the request failed; the server's log says why", "server_error")


async def _body(request: http.Request) -> bytes:
  kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
  if kind != "application/json":
    raise Refused(415, f"Content-Type is {kind!r:.60}, expected application/json")
  data = b""
  try:
    async with asyncio.timeout(BODY_TIME):
      async for chunk in request.stream():
        data += chunk
        if len(data) > BODY:
          raise Refused(413, f"a body of more than {BODY} bytes")
  except TimeoutError:
    raise Refused(408, f"the body did not come within {BODY_TIME:g} s") from None
  return data


async def _answered(engine: Engine, request: http.Request, chat: bool) -> Response:
  ask = bodies.read(engine, bodies.parsed(await _body(request)), chat)
  queries = await asyncio.to_thread(engine.queries, ask.kind, ask.records, ask.seed)
  loop, told = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Any]]()

  def teller(index: int) -> Callable[[Any], None]:
    def tell(what: Any) -> None:
      with contextlib.suppress(RuntimeError):  # the loop is closed, and the client gone
        loop.call_soon_threadsafe(told.put_nowait, (index, what))

    return tell

  asked = [
    Request(query, teller(index), ask.max_tokens, ask.stop, ask.stream)
    for index, query in enumerate(queries)
  ]
  try:
    await asyncio.to_thread(engine.ask, ask.kind, asked)
    reply = replies.Reply(ask, [len(query.proposing) for query in queries])
    if ask.stream:
      return _Stream(_events(reply, asked, told, ask.usage), asked)
    return _json(200, reply.whole(await _all(request, asked, told)))
  except BaseException:
    _leave(asked)
    raise


def _leave(asked: list[Request]) -> None:
  """Nobody waits any more: slots and places in the queue are free for others."""
  for request in asked:
    request.gone = True


async def _all(request: http.Request, asked: list[Request], told: asyncio.Queue) -> list[Answer]:
  """All choices, unless the client goes away before."""

  async def gone() -> None:
    while (await request.receive())["type"] != "http.disconnect":
      pass

  async def answers() -> list[Answer]:
    found: dict[int, Answer] = {}
    while len(found) < len(asked):
      index, what = await told.get()
      found[index] = _answer(what)
    return [found[index] for index in range(len(asked))]

  leaving, answering = asyncio.create_task(gone()), asyncio.create_task(answers())
  try:
    await asyncio.wait((leaving, answering), return_when=asyncio.FIRST_COMPLETED)
    if not answering.done():
      raise Refused(499, "the client went away")
    return answering.result()
  finally:
    leaving.cancel()
    answering.cancel()


def _answer(what: Any) -> Answer:
  """What ended a request, if that is an answer.

  Raises:
    Refused: it is none.
  """
  if isinstance(what, Exception):
    raise _broken(what)
  if what.error is not None:
    raise Refused(500, what.error, "server_error")
  return what


class _Stream(StreamingResponse):
  """Events for a client, who may go away at any time."""

  def __init__(self, events: AsyncIterator[bytes], asked: list[Request]):
    super().__init__(events, headers={"Cache-Control": "no-cache"}, media_type="text/event-stream")
    self._asked = asked

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    try:
      await super().__call__(scope, receive, send)
    finally:
      _leave(self._asked)


async def _events(
  reply: replies.Reply, asked: list[Request], told: asyncio.Queue, usage: bool
) -> AsyncIterator[bytes]:
  """A stream's events, choices mixed as they come."""
  answers: dict[int, Answer] = {}
  try:
    for index in range(len(asked)):
      yield replies.event(reply.begin(index))
    while len(answers) < len(asked):
      index, what = await told.get()
      if isinstance(what, str):
        yield replies.event(reply.text(index, what))
        continue
      answers[index] = answer = _answer(what)
      rest = answer.text.removeprefix(asked[index].told)
      if rest:
        yield replies.event(reply.text(index, rest))
      yield replies.event(reply.end(index, answer))
    if usage:
      yield replies.event(reply.last([answers[index] for index in range(len(asked))]))
    yield replies.DONE
  except Refused as refused:
    yield replies.event(replies.error(refused))
