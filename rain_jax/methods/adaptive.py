"""Adaptive RAIN over a session's prompts: drafts that can be taken back, a search where they fail."""

import dataclasses
from collections.abc import Callable, Iterator

from rain_jax.methods.rain import BatchProgress, rain
from rain_jax.methods.session import Response, Session


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
  yield from rain(adapting(session), seed, skip, on_progress)


def adapting(session: Session) -> Session:
  """The same session with a search in that mode."""
  return session.searching(dataclasses.replace(session.config.search, mode="adaptive"))
