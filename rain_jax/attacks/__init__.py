"""Attacks on an aligned model: text that makes it do what it should refuse.

`gcg` searches for a control, a few tokens after the request, by gradients (white box); `best_of_n`
draws altered requests until one works (black box). Both write a JSON list of objects with `goal` and
`controls`, as the method's published code and this project's tasks read it: the prompt is
`goal + " " + controls`. What else the request's own file says of it is carried along, for judges.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rain_jax.runs import directory
from rain_jax.tasks import Record


class AttackError(ValueError):
  """An attack that cannot be made; one line that says what to do."""


@dataclasses.dataclass(frozen=True)
class Behaviour:
  """What an attack is to bring about.

  Attributes:
    id: unique in an attack.
    goal: the request.
    target: how a compliant response begins.
    fields: everything else that the request's file says of it.
  """

  id: str
  goal: str
  target: str
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def behaviours_of(records: Iterable[Record], column: str = "target") -> list[Behaviour]:
  """The behaviours in records whose field `column` holds the target.

  Raises:
    AttackError: a record without a target.
  """
  found = []
  for record in records:
    target = record.fields.get(column)
    if not isinstance(target, str) or not target.strip():
      raise AttackError(
        f"Prompt {record.id!r}: {column!r} is {target!r}, expected the beginning of a compliant"
        " response; name the field that holds it in config.prompts.target."
      )
    fields = {key: value for key, value in record.fields.items() if key != column}
    found.append(Behaviour(record.id, record.prompt, target.strip(), fields))
  return found


def write_attack(
  path: pathlib.Path, behaviours: Sequence[Behaviour], found: Sequence[Mapping[str, Any]]
) -> None:
  """Writes an attack file, whole or not at all.

  Args:
    path: where to.
    behaviours: what was attacked.
    found: for each of them `controls`, and whatever else is worth keeping.
  """
  lines = [
    {**b.fields, "id": b.id, "goal": b.goal, "target": b.target, **one}
    for b, one in zip(behaviours, found, strict=True)
  ]
  directory.replace_text(path, json.dumps(lines, indent=1, ensure_ascii=False) + "\n")
