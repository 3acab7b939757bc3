"""Chat templates: programs of somebody else's that put a conversation into a model's own form."""

import ctypes
import datetime
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2

from rain_jax.text import dates
from rain_jax.text.printable import one_line
from rain_jax.types import DataError

TIME_LIMIT = 10.0  # seconds; templates take milliseconds
_ROOM = 1_000_000  # characters that a template may add to what was said


class _TooLong(BaseException):
  """Ends a template that does not end by itself."""


def render(
  tokenizer: Any,
  messages: Sequence[Mapping[str, str]],
  generate: bool = True,
  now: str = "",
  kwargs: Mapping[str, Any] | None = None,
) -> str:
  """Messages as the tokenizer's chat template puts them; `generate` begins an answer after them.

  A template that asks for today's date is told `now`, in ISO format, unless that is empty; `kwargs`
  are the names, with their values, that it is given besides.

  Raises:
    DataError: the template, which has to be there, does not take this conversation, whatever it
      raises, or takes longer than `TIME_LIMIT`, or makes a text without end.
  """

  def rendered() -> str:
    template = tokenizer.get_chat_template()
    if now:
      template = dates.at(template, datetime.datetime.fromisoformat(now))
    if _has_powers(template):
      raise ValueError("it computes powers, which may take forever")
    text = tokenizer.apply_chat_template(
      messages,
      chat_template=template,
      tokenize=False,
      add_generation_prompt=generate,
      **(kwargs or {}),
    )
    if len(text) > _ROOM + 4 * sum(len(message["content"]) for message in messages):
      raise ValueError(f"it makes a text of {len(text)} characters")
    return text

  try:
    return _in_time(rendered)
  except Exception as error:  # a template may raise anything
    raise DataError(
      f"the chat template does not take this conversation: {one_line(error)}"
    ) from None


@functools.cache
def _has_powers(template: str) -> bool:
  """Whether it has the one operator of templates that a number of steps cannot bound."""
  tokens = jinja2.Environment().lex(template)
  return any(kind == "operator" and text == "**" for _, kind, text in tokens)


def _in_time(call: Callable[[], str]) -> str:
  """What `call` returns or raises; DataError after `TIME_LIMIT` seconds."""
  found: list[str] = []
  raised: list[BaseException] = []

  def run() -> None:
    try:
      found.append(call())
    except BaseException as error:  # handed to the thread that waits
      raised.append(error)

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  thread.join(TIME_LIMIT)
  if thread.is_alive():
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
      ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_TooLong)
    )
    raise DataError(f"it has not come to an end after {TIME_LIMIT:g} s")
  if raised:
    raise raised[0]
  return found[0]


def check_kept(text: str, said: Sequence[str], names: Sequence[str]) -> None:
  """Whether a template shows all that was said, in order and word for word.

  White space around a turn may go, and of the assistant's turns what stands before a control
  token, as templates of models that think aloud leave out earlier thoughts.

  Args:
    text: what the template made.
    said: the turns, the user's first.
    names: of the control tokens.

  Raises:
    DataError: naming the turn.
  """
  at = 0
  for place, turn in enumerate(said):
    kept = [turn, *(turn.rpartition(name)[2] for name in names if place % 2 and name in turn)]
    found = [(text.find(part.strip(), at), part.strip()) for part in kept]
    ends = [begin + len(part) for begin, part in found if begin >= 0]
    if not ends:
      who = "assistant" if place % 2 else "user"
      raise DataError(
        f"the chat template drops or rewrites what the {who} said: {one_line(turn, 60)!r} is not"
        " in its text; choose another format"
      )
    at = max(ends)
