"""What a task's files become: records."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rain_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class Record:
  """One prompt.

  Attributes:
    id: unique in its task.
    prompt: what the user says, the last time if the conversation has several turns.
    fields: everything else the file says of it, for judges.
    history: what was said before, in turn by user and assistant; even in length.
  """

  id: str
  prompt: str
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  history: tuple[str, ...] = ()

  def __post_init__(self):
    if len(self.history) % 2:
      raise DataError(f"Prompt {self.id!r}: a history ends with the assistant, before the prompt.")

  @property
  def goal(self) -> str:
    """What is asked for: the prompt without an attack's suffix or alterations."""
    return str(self.fields.get("goal", self.prompt))
