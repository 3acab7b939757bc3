"""Bodies of requests in OpenAI's form, read: what is asked for, or the field that is wrong.

https://platform.openai.com/docs/api-reference/chat and .../completions describe the fields;
`method` and `preference` are our own.
"""

import dataclasses
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from rain_jax.serving.engine import Engine, Kind
from rain_jax.serving.requests import Refused
from rain_jax.tasks import Record, messages
from rain_jax.text.printable import one_line
from rain_jax.types import DataError, ranges

CHOICES = 128  # answers to one request, at most
_STOPS = 16  # texts

_READ = ("model", "method", "preference", "seed", "n", "stop", "stream", "stream_options", "user")
_LENGTHS = ("max_tokens", "max_completion_tokens")
# What would change what an answer is made of: better no answer than another one.
_REFUSED = (
  *("tools", "tool_choice", "functions", "function_call", "logprobs", "top_logprobs", "echo"),
  *("suffix", "logit_bias", "audio"),
)
# What changes nothing where it has this value.
_NEUTRAL = {"temperature": 1, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}


@dataclasses.dataclass(frozen=True)
class Ask:
  """What a body asks for.

  Attributes:
    kind: whose answer.
    model: as the client named it.
    records: a prompt for each choice, whose ids are their places.
    seed: of all random numbers.
    max_tokens: of each choice.
    stop: texts before which a choice is cut.
    stream: answer while it is made.
    usage: end a stream with its usage.
    ignored: fields without effect.
  """

  kind: Kind
  model: str
  records: tuple[Record, ...]
  seed: int
  max_tokens: int
  stop: tuple[str, ...]
  stream: bool
  usage: bool
  ignored: tuple[str, ...]


def parsed(data: bytes) -> Mapping[str, Any]:
  """A body's JSON object.

  Raises:
    Refused: it is something else.
  """
  try:
    body = json.loads(data)
  except (ValueError, RecursionError) as error:
    raise Refused(400, f"the body is not JSON: {one_line(error, 200)}") from None
  if not isinstance(body, dict):
    raise Refused(400, f"the body is {_kind(body)}, expected an object")
  return {name: value for name, value in body.items() if value is not None}


def read(engine: Engine, body: Mapping[str, Any], chat: bool) -> Ask:
  """What a body asks for.

  Args:
    engine: what is served.
    body: from `parsed`.
    chat: it is a conversation, else a text to be completed.

  Raises:
    Refused: naming the field.
  """
  for name in _REFUSED:
    if body.get(name):
      raise _wrong(name, "not supported: leave it away")
  form = body.get("response_format", {"type": "text"})
  if form != {"type": "text"}:
    raise _wrong("response_format", 'only {"type": "text"} is supported')
  if "best_of" in body and body["best_of"] != body.get("n", 1):
    raise _wrong(
      "best_of", "best_of is not supported; method=best_of_n draws several and judges them"
    )
  method = _method(engine, body)
  preference = _text(body, "preference", engine.preferences[0])
  if preference not in engine.preferences:
    known = ", ".join(engine.preferences)
    raise _wrong("preference", f"{preference!r} is not served: expected one of {known}")
  count = _whole(body, "n", 1, ranges.whole(1, CHOICES))
  if chat:
    said = [_conversation(body)]
  else:
    said = [messages.Dialogue(text, (), "", "") for text in _texts(body)]
  if count * len(said) > CHOICES:
    raise _wrong("n", f"{count * len(said)} choices, expected {CHOICES} at most")
  records = [
    Record(str(place * count + i), one.prompt, {}, one.history, one.system, one.prefill)
    for place, one in enumerate(said)
    for i in range(count)
  ]
  longest, tokens = engine.max_response(preference), ranges.whole(1)
  options = body.get("stream_options", {})
  if not isinstance(options, dict):
    raise _wrong("stream_options", f"{_kind(options)}, expected an object")
  return Ask(
    kind=Kind(method, preference, raw=not chat),
    model=_text(body, "model", engine.name),
    records=tuple(records),
    seed=_whole(body, "seed", secrets.randbelow(2**31), ranges.SEED),
    max_tokens=min(longest, *(_whole(body, name, longest, tokens) for name in _LENGTHS)),
    stop=_stops(body),
    stream=_yes_no(body, "stream"),
    usage=_yes_no(options, "include_usage"),
    ignored=_ignored(body, chat),
  )


def _method(engine: Engine, body: Mapping[str, Any]) -> str:
  """The method that the model's name and the body's `method` name."""
  names = {engine.name: None, **{f"{engine.name}:{method}": method for method in engine.methods}}
  model = _text(body, "model", engine.name)
  if model not in names:
    said = f"no model {model!r} is served: expected one of {', '.join(names)}"
    raise Refused(404, one_line(said), param="model", code="model_not_found")
  named = names[model]
  method = _text(body, "method", named or engine.methods[0])
  if method not in engine.methods:
    known = ", ".join(engine.methods)
    raise _wrong("method", f"{method!r} is not served: expected one of {known}")
  if named not in (None, method):
    raise _wrong("method", f"{method!r}, but the model is {model!r}: name the method once")
  return method


def _conversation(body: Mapping[str, Any]) -> messages.Dialogue:
  """What the messages say; parts of text are joined, and who develops speaks as the system."""
  given = body.get("messages")
  if isinstance(given, list):
    given = [_plain(one, place) for place, one in enumerate(given, 1)]
  try:
    return messages.parse(given, "messages")
  except DataError as error:
    raise _wrong("messages", str(error)) from None


def _plain(message: Any, place: int) -> Any:
  if not isinstance(message, dict):
    return message
  role, content = message.get("role"), message.get("content")
  if isinstance(content, list):
    parts = [part.get("text") for part in content if isinstance(part, dict)]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) != len(content):
      said = f"messages: message {place} has parts other than text, which are not supported"
      raise _wrong("messages", said)
    content = "".join(texts)
  return {"role": "system" if role == "developer" else role, "content": content}


def _texts(body: Mapping[str, Any]) -> list[str]:
  prompt = body.get("prompt")
  texts = [prompt] if isinstance(prompt, str) else prompt
  if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
    raise _wrong("prompt", "expected a text, or a list of texts; token ids are not supported")
  return texts


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
  given = body.get("stop", [])
  stops = [given] if isinstance(given, str) else given
  right = isinstance(stops, list) and all(isinstance(stop, str) and stop for stop in stops)
  if not right or len(stops) > _STOPS:
    raise _wrong("stop", f"expected a text that is not empty, or a list of {_STOPS} at most")
  return tuple(stops)


def _ignored(body: Mapping[str, Any], chat: bool) -> tuple[str, ...]:
  said = "messages" if chat else "prompt"
  known = {*_READ, *_LENGTHS, *_REFUSED, said, "response_format", "best_of"}
  return tuple(
    one_line(name, 60)
    for name, value in body.items()
    if name not in known and not (name in _NEUTRAL and value == _NEUTRAL[name])
  )[:32]


def _text(body: Mapping[str, Any], name: str, default: str) -> str:
  value = body.get(name, default)
  if not isinstance(value, str):
    raise _wrong(name, f"{_kind(value)}, expected text")
  return value


def _whole(body: Mapping[str, Any], name: str, default: int, allowed: ranges.Range) -> int:
  value = body.get(name, default)
  if not allowed.holds(value):
    raise _wrong(name, f"{value!r:.40}: expected {allowed}")
  return value


def _yes_no(body: Mapping[str, Any], name: str) -> bool:
  value = body.get(name, False)
  if not isinstance(value, bool):
    raise _wrong(name, f"{_kind(value)}, expected true or false")
  return value


def _kind(value: Any) -> str:
  kinds: Sequence[tuple[type, str]] = (
    (bool, "true or false"),
    (str, "text"),
    (int, "a number"),
    (float, "a number"),
    (list, "a list"),
    (dict, "an object"),
  )
  return next((name for kind, name in kinds if isinstance(value, kind)), "nothing")


def _wrong(name: str, said: str) -> Refused:
  message = said if said.startswith(name) else f"{name}: {said}"
  return Refused(400, one_line(message), param=name)
