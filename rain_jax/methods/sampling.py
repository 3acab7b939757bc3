"""Whole responses sampled from a session's model: plain sampling, and the best of N."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import types
from rain_jax.methods import thoughts
from rain_jax.methods.ahead import Program
from rain_jax.methods.rain import BatchProgress
from rain_jax.methods.responses import (
  responded,
  review_program,
  self_evaluate,
  verdicts_program,
  work_of,
)
from rain_jax.methods.session import Query, Response, Session
from rain_jax.parallel.batch_sharding import fetch
from rain_jax.policy import whole_responses
from rain_jax.preferences import CompiledPreference
from rain_jax.types import DataError

_ROUND = 16  # samples of a prompt that are drawn side by side
# Verdict and margin, tokens, why it ended.
_Best = tuple[tuple[float, float], list[int], int]


@thoughts.thinking
def vanilla(
  session: Session,
  seed: int,
  skip: frozenset[str] = frozenset(),
  on_progress: Callable[[None], None] | None = None,
) -> Iterator[Response]:
  """Answers the session's prompts by plain sampling at temperature 1.

  `on_progress` is called after each batch, with None.
  """
  for queries, drawn in samples(session, seed, 1, skip):
    work = [work_of([c], [t]) for c, t in zip(drawn.calls, drawn.forwarded)]
    tokens = [t[0, : n[0]].tolist() for t, n in zip(drawn.tokens, drawn.length)]
    yield from responded(session, queries, tokens, drawn.finish[:, 0].tolist(), work)
    if on_progress:
      on_progress(None)


@thoughts.thinking
def best_of_n(
  session: Session,
  seed: int,
  skip: frozenset[str] = frozenset(),
  on_progress: Callable[[BatchProgress], None] | None = None,
  *,
  samples: int,
) -> Iterator[Response]:
  """Samples N responses per prompt and returns the one the model judges best.

  Ties in the verdict go to the larger margin between the labels' probabilities.
  `on_progress` is called after every 16 samples of a batch's prompts, and after the batch.

  Raises:
    DataError: fewer than 1 sample.
  """
  for queries, chosen, finish, work in best(session, seed, skip, on_progress, samples=samples):
    yield from responded(session, queries, chosen, finish, work)
    if on_progress:
      on_progress(BatchProgress(0, session.slots, 0, 0, 0, 0))


def best(
  session: Session,
  seed: int,
  skip: frozenset[str] = frozenset(),
  on_progress: Callable[[BatchProgress], None] | None = None,
  *,
  samples: int,
) -> Iterator[tuple[list[Query], list[list[int]], list[int], list[dict[str, int]]]]:
  """As `best_of_n`: batches of queries, with the chosen tokens, why they end, and the work."""
  if samples < 1:
    raise DataError(f"samples={samples}: expected 1 or more.")
  for queries in session.batches(skip):
    chosen: list[_Best] = [((-math.inf, -math.inf), [], types.FAILED)] * len(queries)
    calls, tokens = np.zeros((2, len(queries)), int)
    for first in range(0, samples, _ROUND):
      size, keep = min(samples, _ROUND), min(_ROUND, samples - first)
      drawn = _sample(session, queries, seed, first, size)
      value, margin, judged = self_evaluate(session, queries, drawn)
      calls += drawn.calls + 1
      # The last round may draw more than is left; only what is kept is counted.
      tokens += np.ceil(keep / size * (drawn.forwarded + judged)).astype(int)
      chosen = [
        max([chosen[row], *_rated(drawn, value, margin, row)[:keep]], key=lambda one: one[0])
        for row in range(len(queries))
      ]
      if on_progress:
        lengths, many = [len(ids) for _, ids, _ in chosen], len(queries)
        done = sum(lengths), int(tokens.sum()), 0, many * (first + keep), many * samples
        on_progress(BatchProgress(0, session.slots, many, *done))
    work = [{**work_of([c], [t]), "samples": samples} for c, t in zip(calls, tokens)]
    yield queries, [ids for _, ids, _ in chosen], [finish for *_, finish in chosen], work


def _rated(drawn: whole_responses.Samples, value, margin, row: int) -> list[_Best]:
  """The samples of one query; those with no verdict below all others."""
  rated = []
  for i, length in enumerate(drawn.length[row]):
    score = (float(value[row, i]), float(margin[row, i].mean()))
    score = (-math.inf, -math.inf) if math.isnan(score[0]) else score
    rated.append((score, drawn.tokens[row, i, :length].tolist(), int(drawn.finish[row, i])))
  return rated


def samples(
  session: Session, seed: int, samples: int, skip: frozenset[str] = frozenset()
) -> Iterator[tuple[list[Query], whole_responses.Samples]]:
  """Draws N responses per prompt: batches of queries with their samples, on the host.

  Prompts whose thoughts do not end are left out, see `thoughts.think`.
  """
  session, _ = thoughts.think(session, seed, skip)
  for queries in session.batches(skip):
    yield queries, _sample(session, queries, seed, 0, samples)


def equal_samples(
  session: Session,
  options: Mapping[str, Any],
  results: Callable[[str], Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
  """The options of `best_of_n`: N as given, or as many as RAIN's forwarded tokens pay for.

  Args:
    session: with the prompts.
    options: `samples`, 0 for RAIN's compute.
    results: lines of results by the method's name.

  Raises:
    DataError: RAIN's compute is not known.
  """
  if options["samples"]:
    return dict(options)
  rain = [r["counters"] for r in results("rain") if "counters" in r]
  if not rain:
    raise DataError("best_of_n.samples=0 means RAIN's compute: add rain to methods, or set N.")
  shown = [r["counters"] for r in results("vanilla") if "counters" in r] or rain
  paid = float(np.mean([c["tokens_forwarded"] for c in rain]))
  length = float(np.mean([c["response_tokens"] for c in shown]))
  return {"samples": samples_paid(session.preference, paid, length)}


def samples_paid(preference: CompiledPreference, tokens: float, length: float) -> int:
  """How many responses of `length` tokens are sampled and judged for so many forwarded tokens.

  What all samples of a prompt share (prompt and prefix) is left out.
  """
  cost = 2 * length + sum(len(ids) for ids in preference.suffix_ids)
  return max(1, round(tokens / cost))


def _sample(
  session: Session, queries, seed: int, first: int, samples: int
) -> whole_responses.Samples:
  session.await_program(_sampling(samples))
  drawn = whole_responses.sample(*_arguments(session, queries, seed, first, samples))
  return jax.tree.map(lambda a: a[: len(queries)], fetch(drawn))


def _arguments(
  session: Session, queries: Sequence[Query], seed: int, first: int, samples: int
) -> tuple[Any, ...]:
  """What `whole_responses.sample` is called with."""
  padded = session.padded(queries)
  keys = jnp.stack([query.key(seed) for query in padded])
  prompts = session.prompts(padded, "proposing")
  return session.lm.without_search, session.params, prompts, keys, first, samples, session.mesh


def vanilla_programs(session: Session, options: Mapping[str, Any]) -> list[Program]:
  """The programs of `vanilla`."""
  return [_program(session, 1), review_program(session)]


def best_of_n_programs(session: Session, options: Mapping[str, Any]) -> list[Program]:
  """The programs of `best_of_n`; none while the number of samples is not known."""
  count = min(options["samples"], _ROUND)
  if not count:
    return []
  shapes = lambda: whole_responses.sample.eval_shape(
    *_arguments(session, session.queries[:1], 0, 0, count)
  )
  verdicts = verdicts_program(session, count, shapes)
  return [_program(session, count), verdicts, review_program(session)]


def _program(session: Session, count: int) -> Program:
  """The program that draws so many samples of each prompt."""
  arguments = lambda: _arguments(session, session.queries[:1], 0, 0, count)
  return Program(_sampling(count), lambda: whole_responses.sample.lower(*arguments()))


def _sampling(count: int) -> str:
  return f"sampling ({count})"
