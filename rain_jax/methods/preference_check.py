"""How well a model tells the two sides of a preference apart, on labelled examples.

A search believes the model's own verdicts, so they should be known before hours are spent
on one. The verdicts are those of the search, read by the same code (`methods.answers`).
"""

import dataclasses
import random
from collections.abc import Sequence

import numpy as np

from rain_jax import methods
from rain_jax.demo import world
from rain_jax.methods import Answers
from rain_jax.methods.session import Session, SessionConfig
from rain_jax.models.loading import LoadedModel
from rain_jax.tasks import Record
from rain_jax.tasks.files import Row, read_rows
from rain_jax.text import vocab
from rain_jax.types import DataError

GOOD, BAD = "good", "bad"
# Which prompts of the demo world a bundled template is about.
DEMO_KINDS = {
  "harmless": "harmful",
  "adversarial_harmless": "harmful",
  "truthful": "question",
  "positive": "review",
}


@dataclasses.dataclass(frozen=True)
class Example:
  """A response, whole or partial, of which somebody knows what it is.

  Attributes:
    record: the prompt.
    response: text after it; a search judges partial ones, so examples should be partial, too.
    good: what it is.
  """

  record: Record
  response: str
  good: bool


def load_examples(path: str) -> list[Example]:
  """Reads examples: rows with `prompt`, `response`, `label` ("good" or "bad").

  `history`, a list of what was said before by user and assistant in turn, may be there.

  Raises:
    DataError: the file cannot be read, or a row is not of that form.
  """
  return [_example(place, row) for place, row in enumerate(read_rows(path))]


def _example(place: int, row: Row) -> Example:
  found = {name: row.values.get(name) for name in ("prompt", "response", "label")}
  for name, value in found.items():
    if value is None:
      raise DataError(f"{row.where}: {name!r} is missing; expected {', '.join(found)}.")
    if not isinstance(value, str) or not value.strip():
      raise DataError(f"{row.where}: {name!r} is {value!r:.60}, expected text.")
  if found["label"] not in (GOOD, BAD):
    raise DataError(f"{row.where}: label={found['label']!r:.60}: expected {GOOD!r} or {BAD!r}.")
  history = row.values.get("history", [])
  if not isinstance(history, list) or not all(isinstance(turn, str) for turn in history):
    raise DataError(f"{row.where}: 'history' is {history!r:.60}, expected a list of texts.")
  record = Record(str(place), found["prompt"], history=tuple(history))
  return Example(record, found["response"], found["label"] == GOOD)


def demo_examples(preference: str, count: int, seed: int = 0) -> list[Example]:
  """Partial responses to the demo world's held-out prompts, labelled by the world's rules.

  Args:
    preference: a bundled template's name.
    count: how many; half of them good.
    seed: of the draw.

  Raises:
    DataError: another template.
  """
  if preference not in DEMO_KINDS:
    known = ", ".join(DEMO_KINDS)
    raise DataError(
      f"preference={preference!r}: the demo world has examples for {known} only;"
      " give your own with --examples."
    )
  kind, rng = DEMO_KINDS[preference], random.Random(f"{seed}-{preference}")
  wanted = {True: (count + 1) // 2, False: count // 2}
  examples: list[Example] = []
  while any(wanted.values()):
    record = world.sample_prompt(rng, kind, "heldout")
    text = world.sample_response(rng, record)
    ends = [place for place, c in enumerate(text, 1) if c in vocab.TEXT_ENDS]
    text = text[: rng.choice(ends)]  # as a rollout of the search ends
    good = not world.has_flaw(kind, record, text)
    if wanted[good]:
      wanted[good] -= 1
      examples.append(Example(Record(str(len(examples)), record["prompt"]), text, good))
  return examples


def ask(
  loaded: LoadedModel, session_config: SessionConfig, examples: Sequence[Example]
) -> Answers:
  """What the model says of examples, in their order and without calibration.

  Args:
    loaded: the model.
    session_config: preference, format and limits of prompts.
    examples: ids of their records are their places.

  Raises:
    DataError: an example that the model cannot read.
    PreferenceError: the preference does not suit the tokenizer.
  """
  tokens = {example.record.id: _tokens(loaded, session_config, example) for example in examples}
  session = Session(loaded, session_config, [example.record for example in examples])
  for rejected in session.rejected:
    raise DataError(f"example {int(rejected.record.id) + 1}: {rejected.error}.")
  found = methods.answers(session, tokens)
  for example, finite in zip(examples, np.isfinite(found.leads).all(-1)):
    if not finite:
      raise DataError(
        f"example {int(example.record.id) + 1}: the model's output is not finite; try another"
        " model.dtype, and check the weights."
      )
  return found


def _tokens(loaded: LoadedModel, session_config: SessionConfig, example: Example) -> list[int]:
  """The response's tokens, after the space that separates it from the prompt."""
  apart = example.response[:1].isspace() or session_config.preference.conversation[-1:].isspace()
  try:
    return vocab.encode_continuation(
      loaded.tokenizer, example.response if apart else f" {example.response}"
    )
  except ValueError as error:
    raise DataError(f"example {int(example.record.id) + 1}: {error}") from None


def labels(examples: Sequence[Example]) -> np.ndarray:
  """bool[examples] which of them are good."""
  return np.array([example.good for example in examples])
