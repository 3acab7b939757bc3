"""Adaptive RAIN over a session's prompts: drafts that can be taken back, a search where they fail."""

import dataclasses
from collections.abc import Callable, Iterator

from rain_jax.methods.rain import BatchProgress, SearchStep, rain, watch
from rain_jax.methods.segments import without_tree
from rain_jax.methods.session import Response, Session
from rain_jax.types import SearchConfig


def adaptive(
  session: Session,
  seed: int,
  skip: frozenset[str] = frozenset(),
  on_progress: Callable[[BatchProgress], None] | None = None,
) -> Iterator[Response]:
  """Answers the session's prompts by the search's mode `adaptive` (`rain_jax.decode.drafting`).

  Keys, slots and counters are those of `rain`.

  Args:
    session: with the prompts.
    seed: of the run.
    skip: ids of prompts to leave out.
    on_progress: called every few steps.
  """
  yield from rain(session.searching(with_drafts(session.config.search)), seed, skip, on_progress)


def watch_adaptive(
  session: Session,
  seed: int,
  skip: frozenset[str] = frozenset(),
  on_progress: Callable[[BatchProgress], None] | None = None,
) -> Iterator[SearchStep]:
  """As `adaptive`, step by step, see `rain.watch`."""
  yield from watch(session.searching(with_drafts(session.config.search)), seed, skip, on_progress)


def with_drafts(search: SearchConfig) -> SearchConfig:
  """The same hyperparameters for the adaptive mode, without room for a tree if it never searches."""
  adaptive = dataclasses.replace(search, mode="adaptive")
  if adaptive.searches:
    return adaptive
  return dataclasses.replace(without_tree(search), mode="adaptive")
