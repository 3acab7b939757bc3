"""How well a model tells the two sides of a preference apart, on labelled examples.

A search believes the model's own verdicts, so they should be known before hours are spent
on one. The verdicts are those of the search, read by the same code (`methods.margins`).
"""

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rain_jax import methods
from rain_jax.demo import world
from rain_jax.methods.session import Session, SessionConfig
from rain_jax.models.loading import LoadedModel
from rain_jax.tasks import Record
from rain_jax.tasks.files import Row, read_rows
from rain_jax.text import encoding, vocab
from rain_jax.types import DataError

GOOD, BAD = "good", "bad"
BINS = 10
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


def margins(
  loaded: LoadedModel, session_config: SessionConfig, examples: Sequence[Example]
) -> np.ndarray:
  """How much more probable the good label is than the bad one, float32[examples, readings].

  Args:
    loaded: the model.
    session_config: preference, format, limits and batch size; `max_response` follows the examples.
    examples: ids of their records are their places.

  Raises:
    DataError: an example that the model cannot read.
    PreferenceError: the preference does not suit the tokenizer.
  """
  tokens = {example.record.id: _tokens(loaded, session_config, example) for example in examples}
  room = 32 * math.ceil(max(map(len, tokens.values())) / 32)
  session_config = dataclasses.replace(session_config, max_response=room)
  session = Session(loaded, session_config, [example.record for example in examples])
  for rejected in session.rejected:
    raise DataError(f"example {int(rejected.record.id) + 1}: {rejected.error}.")
  found = dict(methods.margins(session, tokens))
  for name, one in found.items():
    if not np.isfinite(one).all():
      raise DataError(
        f"example {int(name) + 1}: the model's output is not finite; try another model.dtype,"
        " and check the weights."
      )
  return np.stack([found[example.record.id] for example in examples])


def _tokens(loaded: LoadedModel, session_config: SessionConfig, example: Example) -> list[int]:
  """The response's tokens, after the space that separates it from the prompt."""
  apart = example.response[:1].isspace() or session_config.preference.conversation[-1:].isspace()
  try:
    return encoding.encode_continuation(
      loaded.tokenizer, example.response if apart else f" {example.response}"
    )
  except ValueError as error:
    raise DataError(f"example {int(example.record.id) + 1}: {error}") from None


def labels(examples: Sequence[Example]) -> np.ndarray:
  """bool[examples] which of them are good."""
  return np.array([example.good for example in examples])


def measure(good: np.ndarray, margins: np.ndarray) -> dict[str, Any]:
  """What the verdicts are worth.

  Args:
    good: bool[examples] the labels.
    margins: float[examples, readings].

  Returns:
    `all`, `good` and `bad`, each with `examples`, `accuracy` (the search's verdict is on the
    label's side; a tie is not), `soft_accuracy` (the mean margin is), `ties` (a verdict of 0:
    the readings differ) and the mean `margin`; a share of no examples is None. `readings`: the
    accuracy of each reading alone. `calibration`: by tenths of the margin's range, `examples`,
    mean `margin`, and the share of `good` ones, which is (1 + margin) / 2 where probabilities
    mean what they say; `calibration_error` is the mean distance from that.
  """
  soft = margins.mean(-1)
  said = margins > 0
  verdict = 2 * said.mean(-1) - 1
  signs = np.where(good, 1, -1)

  def group(rows: np.ndarray) -> dict[str, Any]:
    share = lambda values: float(np.mean(values[rows])) if rows.any() else None
    return {
      "examples": int(rows.sum()),
      "accuracy": share(np.sign(verdict) == signs),
      "soft_accuracy": share(np.sign(soft) == signs),
      "ties": share(verdict == 0),
      "margin": share(soft),
    }

  place = np.clip(((soft + 1) / 2 * BINS).astype(int), 0, BINS - 1)
  bins = []
  for number in range(BINS):
    rows = place == number
    if rows.any():
      bins.append(
        {
          "from": 2 * number / BINS - 1,
          "to": 2 * (number + 1) / BINS - 1,
          "examples": int(rows.sum()),
          "margin": float(soft[rows].mean()),
          "good": float(good[rows].mean()),
        }
      )
  off = [b["examples"] * abs(b["good"] - (1 + b["margin"]) / 2) for b in bins]
  return {
    "all": group(np.ones(len(good), bool)),
    GOOD: group(good),
    BAD: group(~good),
    "readings": [float(np.mean(one == good)) for one in said.T],
    "calibration": bins,
    "calibration_error": sum(off) / len(good),
  }


def table(found: Mapping[str, Any]) -> str:
  """The numbers of `measure`, to be read in a terminal."""
  percent = lambda value: "-" if value is None else f"{100 * value:.1f}%"
  signed = lambda value: "-" if value is None else f"{value:+.2f}"
  groups = [found[name] for name in ("all", GOOD, BAD)]
  row = lambda name, key, show: f"{name:<34}" + "".join(f"{show(g[key]):>8}" for g in groups)
  lines = [
    f"{'':<34}{'all':>8}{GOOD:>8}{BAD:>8}",
    row("examples", "examples", str),
    row("verdict on the label's side", "accuracy", percent),
    row("probabilities on the label's side", "soft_accuracy", percent),
    row("ties", "ties", percent),
    row("mean margin", "margin", signed),
  ]
  if len(found["readings"]) > 1:
    ties = found["all"]["ties"]
    alone = ", ".join(map(percent, found["readings"]))
    lines.append(
      f"the orders of the options agree on {percent(1 - ties)}; alone they are right on {alone}"
    )
  lines += ["", f"{'margin':<16}{'examples':>10}{'good':>9}{'expected':>10}"]
  for one in found["calibration"]:
    span = f"{one['from']:+.1f} to {one['to']:+.1f}"
    expected = percent((1 + one["margin"]) / 2)
    lines.append(f"{span:<16}{one['examples']:>10}{percent(one['good']):>9}{expected:>10}")
  lines.append(f"calibration error {percent(found['calibration_error'])}")
  return "\n".join(lines)
