"""How well a model tells the two sides of a preference apart, on labelled examples.

A search believes the model's own verdicts, so they should be known before hours are spent
on one. The answers are those that a search would read (`policy.packed`).
"""

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rain_jax import methods
from rain_jax.demo import traps, world
from rain_jax.methods import calibrate
from rain_jax.methods.answers import Answers
from rain_jax.methods.session import Session, SessionConfig
from rain_jax.methods.verdict_statistics import BAD, GOOD, measure
from rain_jax.models.loading import LoadedModel
from rain_jax.preferences.calibration import Calibration
from rain_jax.tasks import Record
from rain_jax.tasks.files import read_rows
from rain_jax.tasks.rows import Row
from rain_jax.text import encoding, vocab
from rain_jax.types import DataError

OWN_RESPONSES = 200  # that are sampled to fit a calibration without labels
_OWN_TOKENS = 40  # of each at most

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
  names = ("prompt", "response", "label")
  found: dict[str, str] = {}
  for name in names:
    value = row.values.get(name)
    if value is None:
      raise DataError(f"{row.where}: {name!r} is missing; expected {', '.join(names)}.")
    if not isinstance(value, str) or not value.strip():
      raise DataError(f"{row.where}: {name!r} is {value!r:.60}, expected text.")
    found[name] = value
  if found["label"] not in (GOOD, BAD):
    raise DataError(f"{row.where}: label={found['label']!r:.60}: expected {GOOD!r} or {BAD!r}.")
  history = row.values.get("history", [])
  if not isinstance(history, list) or not all(isinstance(turn, str) for turn in history):
    raise DataError(f"{row.where}: 'history' is {history!r:.60}, expected a list of texts.")
  record = Record(str(place), found["prompt"], history=tuple(history))
  return Example(record, found["response"], found["label"] == GOOD)


def demo_examples(preference: str, count: int, seed: int = 0, model: str = "demo") -> list[Example]:
  """Partial responses to the demo world's held-out prompts, labelled by the world's rules.

  Args:
    preference: a bundled template's name.
    count: how many; half of them good.
    seed: of the draw.
    model: "demo:traps" for responses as that model has learned; others get those of "demo".

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
  respond = traps.sample_response if model == "demo:traps" else world.sample_response
  wanted = {True: (count + 1) // 2, False: count // 2}
  examples: list[Example] = []
  while any(wanted.values()):
    record = world.sample_prompt(rng, kind, "heldout")
    text = respond(rng, record)
    ends = [place for place, c in enumerate(text, 1) if c in vocab.TEXT_ENDS]
    text = text[: rng.choice(ends)]  # as a rollout of the search ends
    good = not world.has_flaw(kind, record, text)
    if wanted[good]:
      wanted[good] -= 1
      examples.append(Example(Record(str(len(examples)), record["prompt"]), text, good))
  return examples


@dataclasses.dataclass(frozen=True)
class Check:
  """A model asked about labelled examples.

  Attributes:
    preference: name and form.
    good: bool[examples] the labels.
    answers: what the model said.
    found: `verdict_statistics.measure` of all examples, as the model says it.
    calibration: what was fitted or given; None where there was nothing to fit on.
    reported: bool[examples] which of them the two below are about: those not fitted on.
    before: `measure` of these as the model says it; None without calibration.
    after: `measure` of these, calibrated; None without.
  """

  preference: str
  good: np.ndarray
  answers: Answers
  found: dict[str, Any]
  calibration: Calibration | None = None
  reported: np.ndarray | None = None
  before: dict[str, Any] | None = None
  after: dict[str, Any] | None = None


def check(
  loaded: LoadedModel,
  session_config: SessionConfig,
  examples: Sequence[Example],
  labelled: bool = True,
  seed: int = 0,
) -> Check:
  """Asks a model about examples, and measures its verdicts before and after calibration.

  Args:
    loaded: the model.
    session_config: preference, format and limits of prompts. Its calibration is measured, on all
      examples; without one it is fitted.
    examples: ids of their records are their places.
    labelled: fit on a random half of either label, to report on the other; else on responses that
      the model samples for the prompts, to report on all.
    seed: of halves and samples.

  Raises:
    DataError: an example that the model cannot read.
    PreferenceError: the preference does not suit the tokenizer.
  """
  records = [example.record for example in examples]
  session = _session(loaded, session_config, records, lambda one: f"example {int(one.id) + 1}")
  asked = _ask(session, examples)
  good = np.array([example.good for example in examples])
  found = measure(good, asked.margins, asked.leads.mean(-1))
  plain = Check(session_config.preference.label, good, asked, found)
  reported, calibration = np.ones(len(good), bool), session_config.calibration
  if calibration is None and not labelled:
    calibration = fit_own(session, seed)
  elif calibration is None:
    fitted = calibrate.halves(good, seed)
    if len(set(good[fitted])) < 2:
      return plain
    fits = calibrate.fit_labelled(asked.leads[fitted], good[fitted])
    calibration = _calibration(session, fits, f"{fitted.sum()} labelled examples")
    reported = ~fitted
  leads, margins = asked.leads[reported], asked.margins[reported]
  return dataclasses.replace(
    plain,
    calibration=calibration,
    reported=reported,
    before=measure(good[reported], margins, leads.mean(-1)),
    after=measure(good[reported], calibration.margins(leads), calibration.log_odds(leads).mean(-1)),
  )


def fit_prompts(
  loaded: LoadedModel, session_config: SessionConfig, records: Sequence[Record], seed: int
) -> Calibration:
  """Fits a calibration on responses that the model samples for prompts, without any label.

  Raises:
    As `check`.
  """
  session = _session(loaded, session_config, records, lambda record: f"prompt {record.id!r}")
  return fit_own(session, seed)


def fit_own(session: Session, seed: int) -> Calibration:
  """As `fit_prompts`, for a session with the prompts."""
  leads = calibrate.own_answers(session, seed, OWN_RESPONSES).leads
  source = f"{len(leads)} responses of its own, without labels"
  return _calibration(session, calibrate.fit_unlabelled(leads), source)


def _calibration(session: Session, fits: Sequence[calibrate.Fit], source: str) -> Calibration:
  return Calibration(
    model=session.loaded.judging.name,
    fingerprint=session.loaded.judging.fingerprint,
    preference=session.config.preference.label,
    template=session.preference.digest,
    source=source,
    offsets=tuple(round(fit.offset, 4) for fit in fits),
    scales=tuple(round(fit.scale, 4) for fit in fits),
  )


def _session(
  loaded: LoadedModel,
  session_config: SessionConfig,
  records: Sequence[Record],
  name: Callable[[Record], str],
) -> Session:
  """A session for partial responses; a prompt that cannot be read is an error here."""
  short = min(session_config.max_response, _OWN_TOKENS)
  session = Session(loaded, dataclasses.replace(session_config, max_response=short), records)
  for rejected in session.rejected:
    raise DataError(f"{name(rejected.record)}: {rejected.error}.")
  return session


def _ask(session: Session, examples: Sequence[Example]) -> Answers:
  """What the model says of examples, in their order and without calibration."""
  tokens = [(example.record.id, _tokens(session, example)) for example in examples]
  found = methods.answers(session, tokens)
  for example, finite in zip(examples, np.isfinite(found.leads).all(-1)):
    if not finite:
      raise DataError(
        f"example {int(example.record.id) + 1}: the model's output is not finite; try another"
        " model.dtype, and check the weights."
      )
  return found


def _tokens(session: Session, example: Example) -> list[int]:
  """The response's tokens, after the space that separates it from the prompt."""
  before = session.config.preference.conversation[-1:]
  apart = example.response[:1].isspace() or before.isspace()
  try:
    return encoding.encode_continuation(
      session.loaded.tokenizer, example.response if apart else f" {example.response}"
    )
  except ValueError as error:
    raise DataError(f"example {int(example.record.id) + 1}: {error}") from None
