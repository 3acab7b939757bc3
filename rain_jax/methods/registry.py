"""Every method that answers prompts, by name: what runs it, and what it needs."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rain_jax.methods import defences
from rain_jax.methods.adaptive import adaptive, watch_adaptive, with_drafts
from rain_jax.methods.ahead import Program
from rain_jax.methods.choose import choose
from rain_jax.methods.rain import SearchStep, programs, rain, watch
from rain_jax.methods.sampling import (
  best_of_n,
  best_of_n_programs,
  equal_samples,
  vanilla,
  vanilla_programs,
)
from rain_jax.methods.segments import segments, without_tree
from rain_jax.methods.session import Response, Session
from rain_jax.policy.memory_plan import Plan
from rain_jax.types import DataError, SearchConfig, never

Options = Mapping[str, Any]
# From a method's name to the lines of results that there are of it.
Results = Callable[[str], Sequence[Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Method:
  """One method.

  Attributes:
    run: function of a session, the run's seed, the ids of prompts to leave out (`skip`) and what
      is called between steps (`on_progress`, or None), and of the options by keyword. It yields
      a `Response` for each other prompt as soon as that has ended.
    options: the options in a run's configuration, see `configs/common.py`, and what an endpoint
      that they name asks whether to stop waiting. Raises `DataError` for what cannot be used, such
      as an unknown judge.
    search: from the session's hyperparameters those that it searches or drafts with, in slots that
      can be fed while they run (`rain.rounds`); None for a method that answers batch by batch.
    watch: as `run`, but yields a `SearchStep` for each step of a search, the last with the
      response; None for a method without a search.
    programs: what `run` calls that takes long to compile, for a session that has prompts.
    after: names of methods that are asked before it, whose results may decide its options.
    incomplete: whether options leave something open that those results have to decide.
    complete: options from a session, the options so far and those results.
    any_prompt: answers any prompt, with nothing beside it and the options: the Python API has it,
      and attacks can be made against it.
  """

  run: Callable[..., Iterator[Response]]
  options: Callable[..., dict[str, Any]] = lambda config, stopping=never: {}
  search: Callable[[SearchConfig], SearchConfig] | None = None
  watch: Callable[..., Iterator[SearchStep]] | None = None
  programs: Callable[[Session, Options], list[Program]] = lambda session, options: []
  after: tuple[str, ...] = ()
  incomplete: Callable[[Options], bool] = lambda options: False
  complete: Callable[[Session, Options, Results], Options] = lambda session, options, of: options
  any_prompt: bool = True


def _searching(
  run: Callable[..., Iterator[Response]],
  search: Callable[[SearchConfig], SearchConfig],
  watch: Callable[..., Iterator[SearchStep]] | None = None,
) -> Method:
  """A method that searches or drafts in slots."""
  own = lambda session: session.searching(search(session.config.search))
  return Method(
    run, search=search, watch=watch, programs=lambda session, options: programs(own(session))
  )


METHODS = {
  "vanilla": Method(vanilla, programs=vanilla_programs),
  "rain": _searching(rain, lambda search: search, watch),
  "segments": _searching(segments, without_tree),
  "adaptive": _searching(adaptive, with_drafts, watch_adaptive),
  "best_of_n": Method(
    best_of_n,
    options=lambda config, stopping=never: {"samples": config["best_of_n"]["samples"]},
    after=("vanilla", "rain"),
    incomplete=lambda options: not options["samples"],
    complete=equal_samples,
    programs=best_of_n_programs,
  ),
  "choose": Method(choose, any_prompt=False),  # between the labels that its prompts name
  "smooth_llm": Method(defences.smooth_llm, defences.smooth_llm_options, any_prompt=False),
  "guard": Method(defences.guard, defences.guard_options, any_prompt=False),
}
"""The methods that `config.methods` may name."""


def find_method(name: str) -> Method:
  """The method of a name.

  Raises:
    DataError: there is none.
  """
  if name not in METHODS:
    raise DataError(f"Unknown method {name!r}: expected one of {', '.join(METHODS)}.")
  return METHODS[name]


def largest_plan(session: Session, names: Sequence[str]) -> Plan | None:
  """The memory that methods need, which run one after the other; None if none of them searches."""
  searches = [METHODS[name].search for name in names]
  plans = [session.searching(search(session.config.search)).plan() for search in searches if search]
  return max(plans, key=lambda plan: plan.total, default=None)
