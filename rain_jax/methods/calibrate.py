"""Fits a calibration: where a model's lead is worth a good verdict, and how much a lead is worth.

With labelled examples the offset and the scale of a reading are a logistic regression on its lead
(Platt, "Probabilistic outputs for support vector machines", 1999), good and bad weighing the same.
Without labels the model's own responses are read, and the offset is their median lead (batch
calibration, arXiv 2309.17249, with the median for the mean, for a few odd texts move that one far):
good and bad, and with two readings the two orders, balance there. That takes prompts which do not
decide the answer. Nothing says then how much a lead is worth; the scale stays 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rain_jax import methods
from rain_jax.methods.answers import Answers
from rain_jax.methods.session import Session
from rain_jax.text import encoding, vocab
from rain_jax.types import DataError

_LEAST_SCALE = 0.01  # of a reading that tells nothing: its probabilities stay near a half
_STEPS = 200
LEAST_UNLABELLED = 20


class Fit(NamedTuple):
  """Offset and scale of one reading, see `preferences.calibration`."""

  offset: float
  scale: float


def fit_labelled(leads: np.ndarray, good: np.ndarray) -> list[Fit]:
  """Each reading's offset and scale from labels.

  Args:
    leads: float[examples, readings].
    good: bool[examples].

  Raises:
    DataError: no examples of one label.
  """
  if good.all() or not good.any():
    raise DataError(
      f"{int(good.sum())} of {len(good)} examples to fit on are good; expected some of either label."
    )
  return [_logistic(lead.astype(np.float64), good) for lead in leads.T]


def _logistic(lead: np.ndarray, good: np.ndarray) -> Fit:
  """Newton's method on the weighted cross-entropy; Platt's targets keep its optimum finite."""
  counts = np.where(good, good.sum(), (~good).sum())
  target = np.where(good, counts + 1, 1) / (counts + 2)
  weight = 1 / counts
  middle, spread = lead.mean(), lead.std() + 1e-9
  x = np.stack([(lead - middle) / spread, np.ones(len(lead))])
  slope = np.zeros(2)
  for _ in range(_STEPS):
    p = 1 / (1 + np.exp(-slope @ x))
    gradient = x @ (weight * (p - target))
    curvature = (x * (weight * p * (1 - p))) @ x.T + 1e-6 * np.eye(2)
    step = np.linalg.solve(curvature, gradient)
    slope -= step / max(1.0, np.abs(step).max())
    if np.abs(step).max() < 1e-9:
      break
  scale = slope[0] / spread
  if scale <= _LEAST_SCALE:
    return Fit(float(np.median(lead)), _LEAST_SCALE)
  return Fit(float(middle - slope[1] / scale), float(scale))


def fit_unlabelled(leads: np.ndarray) -> list[Fit]:
  """Each reading's offset from the leads of unlabelled responses alone.

  Args:
    leads: float[responses, readings].

  Raises:
    DataError: too few responses.
  """
  if len(leads) < LEAST_UNLABELLED:
    raise DataError(
      f"{len(leads)} responses to fit on without labels; expected {LEAST_UNLABELLED} or more."
    )
  return [Fit(float(offset), 1.0) for offset in np.median(leads, axis=0)]


def halves(good: np.ndarray, seed: int) -> np.ndarray:
  """bool[examples]: a random half of either label, to fit on; the others are to report on."""
  rng, fitted = np.random.default_rng(seed), np.zeros(len(good), bool)
  for label in (True, False):
    places = rng.permutation(np.flatnonzero(good == label))
    fitted[places[: len(places) // 2]] = True
  return fitted


def own_answers(session: Session, seed: int, count: int) -> Answers:
  """What the model says of responses that it samples itself, each cut at one of its text ends.

  Args:
    session: with the prompts.
    seed: of the choice of prompts and of the samples.
    count: responses, about: one to each of so many prompts, or several to fewer.
  """
  rng = np.random.default_rng(seed)
  ids = rng.permutation([query.record.id for query in session.queries])
  each, skip = -(-count // len(ids)), frozenset(ids[count:].tolist())
  found = []
  for queries, drawn in methods.samples(session, seed, each, skip):
    for query, rows, lengths in zip(queries, drawn.tokens, drawn.length):
      for row, length in zip(rows, lengths):
        said = _cut(session, query.proposing, row[:length].tolist(), rng)
        if said:
          found.append((query.record.id, said))
  return methods.answers(session, found)


def _cut(session: Session, prompt: Sequence[int], ids: list[int], rng) -> list[int]:
  """A beginning of a response that ends as a rollout of the search does; all of it without one."""
  ends = []
  for place in range(1, len(ids) + 1):
    text = encoding.decode_response(session.loaded.tokenizer, list(prompt), ids[:place])
    if text[-1:] in vocab.TEXT_ENDS and text:
      ends.append(place)
  return ids[: rng.choice(ends)] if ends else ids
