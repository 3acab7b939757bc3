"""Segment-level rejection over a session's prompts: what a search has to be better than.

Whether a draft is kept is decided in `search.drafts`; drafts are sampled and judged in
`policy.segments`.
"""

import dataclasses
from collections.abc import Callable, Iterator

from rain_jax.methods.rain import BatchProgress, rain
from rain_jax.methods.session import Response, Session
from rain_jax.types import SearchConfig


def segments(
  session: Session,
  seed: int,
  skip: frozenset[str] = frozenset(),
  on_progress: Callable[[BatchProgress], None] | None = None,
) -> Iterator[Response]:
  """Answers the session's prompts by segment-level rejection (`rain_jax.search.drafts`).

  The session's hyperparameters `draft_rows`, `draft_tries` and `draft_threshold` count; keys, slots
  and counters are those of `rain`.

  Args:
    session: with the prompts.
    seed: of the run.
    skip: ids of prompts to leave out.
    on_progress: called every few steps.
  """
  yield from rain(drafting(session), seed, skip, on_progress)


def drafting(session: Session) -> Session:
  """The same session with a search that has no tree."""
  return session.searching(without_tree(session.config.search))


def without_tree(search: SearchConfig) -> SearchConfig:
  """The same hyperparameters for segments, with a tree no larger than it has to be."""
  return dataclasses.replace(
    search,
    mode="segments",
    leaves=1,
    num_candidates=2,
    max_children=2,
    max_nodes=8,
    max_visited=3,
    max_path=2,
  )
