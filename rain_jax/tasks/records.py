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
    system: the system message, or "".
    prefill: how the answer begins, which the response continues, or "".
  """

  id: str
  prompt: str
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  history: tuple[str, ...] = ()
  system: str = ""
  prefill: str = ""

  def __post_init__(self):
    if len(self.history) % 2:
      raise DataError(f"Prompt {self.id!r}: a history ends with the assistant, before the prompt.")

  @property
  def said(self) -> tuple[str, tuple[str, ...], str, str]:
    """The conversation: prompt, history, system and prefill, as formats and preferences take it."""
    return self.prompt, self.history, self.system, self.prefill

  def answer(self, response: str) -> str:
    """The whole answer that ends in a response: what is judged, and shown to people."""
    return self.prefill + response

  @property
  def goal(self) -> str:
    """What is asked for: the prompt without an attack's suffix or alterations."""
    return str(self.fields.get("goal", self.prompt))
