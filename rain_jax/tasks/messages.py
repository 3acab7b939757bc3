"""Dialogues as lists of messages, as the data sets and interfaces of chat models have them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rain_jax.tasks.rows import Row, RowError, listed
from rain_jax.types import DataError

# Fields of a row that hold a list of messages; `prompt` is text in other files.
COLUMNS = ("messages", "conversations", "prompt")
# How a message names its speaker and its text: as chat templates take it, as ShareGPT has it.
_SHAPES = (("role", "content"), ("from", "value"))
_SYSTEM, _USER, _ASSISTANT = "system", "user", "assistant"
_ROLES = {
  **{name: name for name in (_SYSTEM, _USER, _ASSISTANT)},
  **{"human": _USER, "gpt": _ASSISTANT},
}


class Dialogue(NamedTuple):
  """What was said, as a `Record` has it: the user's last turn, and what is around it."""

  prompt: str
  history: tuple[str, ...]
  system: str
  prefill: str


def column_of(row: Row, column: str = "") -> str | None:
  """The field of a row that holds a list of messages, None if there is none.

  Args:
    row: of a file.
    column: the field that was named for the prompt; "" for the data set's own.

  Raises:
    DataError: several fields hold what might be the prompt.
  """
  if column:
    return column if isinstance(row.values.get(column), list) else None
  there = [name for name in COLUMNS if name in row.values]
  if not [name for name in there if name != "prompt" or isinstance(row.values[name], list)]:
    return None
  if len(there) > 1:
    raise DataError(
      f"{row.where}: fields {listed(there)}: which of them is the prompt? Name it in"
      " config.prompts.column."
    )
  return there[0]


def parse(messages: Any, where: str) -> Dialogue:
  """The dialogue that a list of messages is.

  A system message may come first; then user and assistant speak in turn, the user first. Where the
  assistant speaks last, the response continues that message.

  Args:
    messages: a list of objects with `role` and `content`, or with `from` and `value`; other fields
      of theirs are left out.
    where: what an error calls it.

  Raises:
    RowError: it is no such list; one line.
  """
  if not isinstance(messages, Sequence) or isinstance(messages, str):
    raise RowError(f"{where}: {messages!r:.60}, expected a list of messages.")
  turns = _turns(messages, where)
  system = ""
  if turns and turns[0][0] == _SYSTEM:
    system = turns.pop(0)[1]
  for place, (role, text) in enumerate(turns):
    at = f"{where}: message {place + 1 + len(messages) - len(turns)}"
    expected = (_USER, _ASSISTANT)[place % 2]
    if role == _SYSTEM:
      why = "there is one before it" if len(turns) < len(messages) else "it does not come first"
      raise RowError(
        f"{at} is a system message, and {why}; expected one at most, at the beginning."
      )
    if role != expected:
      raise RowError(
        f"{at} is the {role}'s, expected the {expected}'s: user and assistant speak in turn."
      )
    if not text.strip():
      raise RowError(f"{at}, the {role}'s, is empty; expected text, or leave the message away.")
  if not turns:
    raise RowError(f"{where}: no message of the user; expected one at least.")
  said = [text for _, text in turns]
  prefill = said.pop() if len(said) % 2 == 0 else ""
  return Dialogue(said[-1], tuple(said[:-1]), system, prefill)


def _turns(messages: Sequence[Any], where: str) -> list[tuple[str, str]]:
  """(role, text) of each message."""
  turns, shapes = [], set()
  for place, message in enumerate(messages, 1):
    at = f"{where}: message {place}"
    if not isinstance(message, Mapping):
      raise RowError(f"{at} is {message!r:.60}, expected an object with role and content.")
    names = {name for shape in _SHAPES for name in shape if name in message}
    shape = next((shape for shape in _SHAPES if names == set(shape)), None)
    if shape is None:
      raise RowError(
        f"{at} has the fields {listed(message)}, expected role and content, or from and value."
      )
    shapes.add(shape)
    if len(shapes) > 1:
      raise RowError(f"{at} has from and value, others role and content; expected one of the two.")
    role, text = message[shape[0]], message[shape[1]]
    if not isinstance(role, str) or role not in _ROLES:
      raise RowError(f"{at}: {shape[0]}={role!r:.40}, expected one of {', '.join(_ROLES)}.")
    if not isinstance(text, str):
      raise RowError(f"{at}, the {_ROLES[role]}'s: {shape[1]}={text!r:.40}, expected text.")
    turns.append((_ROLES[role], text))
  return turns
