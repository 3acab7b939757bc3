"""The model's own verdict on responses that are there, and the `Response`s made of both."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rain_jax import types
from rain_jax.methods.ahead import Program
from rain_jax.methods.session import Query, Response, Session
from rain_jax.parallel.batch_sharding import fetch
from rain_jax.policy import whole_responses
from rain_jax.policy.usage import ROLES
from rain_jax.text import scanner
from rain_jax.text.scanner import ScanState
from rain_jax.text.vocab import TokenTables

_BOTH = ("proposing", "evaluating")
_REVIEW = "the reading of responses"


def review_program(session: Session) -> Program:
  """The program of `responded`."""

  def lower() -> jax.stages.Lowered:
    queries = session.queries[:1]
    drawn = _single(session, queries, [[]], [types.LENGTH])
    return whole_responses.review.lower(*_arguments(session, _BOTH, queries, drawn))

  return Program(_REVIEW, lower)


def verdicts_program(
  session: Session, count: int, shapes: Callable[[], whole_responses.Samples]
) -> Program:
  """The program of `self_evaluate` for so many samples, of some `shapes`, those of a whole batch."""

  def lower() -> jax.stages.Lowered:
    drawn = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes())
    queries = session.padded(session.queries[:1])
    return whole_responses.self_evaluate.lower(
      *_arguments(session, ("evaluating",), queries, drawn)
    )

  return Program(_verdicts(count), lower)


def _verdicts(count: int) -> str:
  return f"verdicts on {count} samples"


def self_evaluate(
  session: Session, queries: Sequence[Query], drawn: whole_responses.Samples
) -> list[np.ndarray]:
  """`whole_responses.self_evaluate` of samples of each query, [queries, N, ...] on the host."""
  session.await_program(_verdicts(drawn.length.shape[1]))
  return _read(session, whole_responses.self_evaluate, ("evaluating",), queries, drawn)


def _read(
  session: Session,
  read: Callable[..., Any],
  sides: Sequence[str],
  queries: Sequence[Query],
  drawn: whole_responses.Samples,
) -> list[np.ndarray]:
  """What `read` says of samples of each query, whose prompts it takes from some `sides`."""
  answer = read(*_arguments(session, sides, queries, drawn))
  return [a[: len(queries)] for a in fetch(answer)]


def _arguments(
  session: Session,
  sides: Sequence[str],
  queries: Sequence[Query],
  drawn: whole_responses.Samples,
) -> tuple[Any, ...]:
  """What the programs that read samples of each query are called with."""
  padded = session.padded(queries)
  fill = lambda a: np.concatenate([a, np.repeat(a[-1:], len(padded) - len(queries), axis=0)])
  prompts = [session.prompts(padded, side) for side in sides]
  drawn = jax.tree.map(fill, drawn)
  texts = _translated(session, padded, drawn)
  return session.lm.without_search, session.params, *prompts, drawn, session.mesh, texts


def _translated(
  session: Session, queries: Sequence[Query], drawn: whole_responses.Samples
) -> whole_responses.Judged | None:
  """What is judged of samples in the tokens of a verdict's model with another tokenizer."""
  translation = session.lm.translation
  if translation is None:
    return None
  judged = jax.device_get(session.lm.judged(drawn.text, drawn.finish)[0])
  before = [query.evaluating[-1] for query in queries]
  return whole_responses.Judged(*translation.texts(drawn.tokens, judged, before))


def _single(
  session: Session,
  queries: Sequence[Query],
  tokens: Sequence[Sequence[int]],
  finish: Sequence[int],
) -> whole_responses.Samples:
  """One response to each query, as samples on the host."""
  R = session.config.max_response
  # As many rows as there are slots, so that one program serves all.
  rows: Any = np.full((session.slots, 1, R), types.NO_TOKEN, np.int32)
  for row, ids in enumerate(tokens):
    rows[row, 0, : len(ids)] = ids
  ended: Any = np.asarray(finish, np.int32)[:, None]
  text = fetch(text_of(session.params["tables"], rows))
  rows, text = jax.tree.map(lambda a: a[: len(queries)], (rows, text))
  zeros: Any = np.zeros(len(queries), np.int32)
  length: Any = np.array([[len(ids)] for ids in tokens], np.int32)
  return whole_responses.Samples(rows, length, ended, text, zeros, zeros)


def responded(
  session: Session,
  queries: Sequence[Query],
  tokens: Sequence[Sequence[int]],
  finish: Sequence[int],
  work: Sequence[Mapping[str, int]],
) -> list[Response]:
  """Whole responses as text, with the model's own verdict on each, and their log-likelihood.

  Args:
    session: with the prompts.
    queries: the prompts that were answered, as many as a batch at most.
    tokens: of each response.
    finish: why each ended, see `types`.
    work: counters of each.
  """
  drawn = _single(session, queries, tokens, finish)
  session.await_program(_REVIEW)
  value, judged, likely = _read(session, whole_responses.review, _BOTH, queries, drawn)
  return [
    Response(
      record=query.record,
      text=session.decoded(query, ids),
      tokens=list(ids),
      finish_reason=types.FINISH_REASONS[types.FAILED if broken else reason],
      verdict=None if broken else float(verdict),
      # The final reading is for the reader, and no part of the work.
      counters={
        "response_tokens": len(ids),
        **_with_thought(query, one),
        "self_verdict_tokens": int(read),
      },
      error=types.NOT_FINITE if broken else None,
      log_likelihood=float(chance) if np.isfinite(chance) else None,
      reasoning=query.thought.text if query.thought else "",
    )
    for query, ids, reason, verdict, broken, read, chance, one in zip(
      queries, tokens, finish, value[:, 0], np.isnan(value[:, 0]), judged, likely[:, 0], work
    )
  ]


def _with_thought(query: Query, work: Mapping[str, int]) -> Mapping[str, int]:
  """Work with that of the thought before the answer on top."""
  if query.thought is None:
    return work
  thought = query.thought.work
  return {**work, **{name: work.get(name, 0) + count for name, count in thought.items()}}


def work_of(calls, tokens) -> dict[str, int]:
  """Counters of one response; by role where the roles are told apart."""
  work = {"model_calls": int(sum(calls)), "tokens_forwarded": int(sum(tokens))}
  if len(calls) == len(ROLES):
    work |= {f"calls_{role}": int(c) for role, c in zip(ROLES, calls)}
    work |= {f"tokens_{role}": int(t) for role, t in zip(ROLES, tokens)}
  return work


@jax.jit
def text_of(tables: TokenTables, tokens: jax.Array) -> ScanState:
  """The `ScanState` [...] after tokens int32[..., R]."""
  return scanner.advance_all(tables, scanner.empty(tokens.shape[:-1]), tokens)
