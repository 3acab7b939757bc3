"""A preference in one form of its question, as text."""

import dataclasses

LETTERS, WORDS, CHAT = "letters", "words", "chat"


class PreferenceError(ValueError):
  """A preference that cannot be used; the message says why, in one line."""


@dataclasses.dataclass(frozen=True)
class Reading:
  """One way of asking about a response.

  It is good when the largest probability of a good label, after the suffix, exceeds the
  largest of a bad label.

  Attributes:
    suffix: text after the response; ends where the answer begins, or in the chat form where the
      user's turn ends.
    good: labels of a good answer, spelled as they follow the suffix.
    bad: labels of a bad answer.
  """

  suffix: str
  good: tuple[str, ...]
  bad: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Preference:
  """What to align with; the value of a response is 2 * (share of good readings) - 1.

  Attributes:
    name: of the preference.
    description: one line.
    prefix: text that all verdicts begin with; an empty line follows it. May be empty.
    conversation: text after it, with "{prompt}" for the prompt; the response follows.
    cut: "none", or "last_full_stop" to judge a response up to its last full stop only.
    readings: one or two.
    form: "letters", "words" or "chat"; "" where the file has one form without a name.
  """

  name: str
  description: str
  prefix: str
  conversation: str
  cut: str
  readings: tuple[Reading, ...]
  form: str = ""

  @property
  def cuts(self) -> bool:
    """A response is judged up to its last full stop only."""
    return self.cut == "last_full_stop"

  @property
  def label(self) -> str:
    """Name and form, as a configuration names them."""
    return f"{self.name}:{self.form}" if self.form else self.name
