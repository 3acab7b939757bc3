"""Rows: every method warmed up apart, measured in turn, and compared with vanilla decoding."""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rain_jax.experiments.benchmark.methods import (
  VERDICTS,
  Work,
  best_of_n,
  no_cache,
  rain,
  vanilla,
)
from rain_jax.experiments.benchmark.subjects import Subject
from rain_jax.methods.adaptive import with_drafts
from rain_jax.methods.sampling import samples_paid
from rain_jax.methods.segments import without_tree
from rain_jax.models import backend
from rain_jax.runs.versions import versions
from rain_jax.text.columns import aligned
from rain_jax.types import DataError, SearchConfig

_LOG = logging.getLogger(__name__)

METHODS = {
  "vanilla": ("vanilla", "cached"),
  "no_cache": ("vanilla", "no_cache"),
  "rain": ("rain", "exact"),
  "leaf_parallel": ("rain", "leaf_parallel"),
  "segments": ("segments", "drafts"),
  "adaptive": ("rain", "adaptive"),
  "best_of_n": ("best_of_n", "cached"),
}
"""What a configuration may name, with the method and mode of its rows."""


class Compilations:
  """Counts the programs that the backend compiles while `counting` is open."""

  def __init__(self):
    self.count = 0
    self._open = False
    jax.monitoring.register_event_duration_secs_listener(self._heard)

  def _heard(self, event: str, duration_secs: float, **_: str | int) -> None:
    if self._open and event == "/jax/core/compile/backend_compile_duration":
      self.count += 1

  @contextlib.contextmanager
  def counting(self) -> Iterator["Compilations"]:
    """Starts from 0."""
    self.count, self._open = 0, True
    try:
      yield self
    finally:
      self._open = False


@functools.cache
def _compilations() -> Compilations:
  # A listener cannot be taken back, so a process has one.
  return Compilations()


@dataclasses.dataclass
class Case:
  """One row in the making: what to call, and the times of its calls.

  Attributes:
    row: the columns known beforehand.
    call: does the work for a seed, and waits for it.
    compile_seconds: the first call's time beyond a later one's; None before it.
    compilations: programs compiled in the first call.
    seconds: of each measured call.
    work: of each measured call.
  """

  row: dict[str, Any]
  call: Callable[[int], Work]
  compile_seconds: float | None = None
  compilations: int = 0
  seconds: list[float] = dataclasses.field(default_factory=list)
  work: list[Work] = dataclasses.field(default_factory=list)

  def warm_up(self) -> None:
    """The call that compiles; the same one once more tells compiling from computing."""
    with _compilations().counting() as compilations:
      first = _timed(self.call, 0)[0]
    self.compilations = compilations.count
    self.compile_seconds = max(0.0, first - _timed(self.call, 0)[0])

  def measure(self, seed: int) -> None:
    """One measured call."""
    seconds, work = _timed(self.call, seed)
    self.seconds.append(seconds)
    self.work.append(work)


def _timed(call: Callable[[int], Work], seed: int) -> tuple[float, Work]:
  begin = time.perf_counter()
  work = call(seed)
  return time.perf_counter() - begin, work


def measured(cases: Sequence[Case], repeats: int) -> list[dict[str, Any]]:
  """Warms the cases up, measures them in turn, and returns their rows.

  The first case is what the others' `ratio_to_vanilla` is paired with, round by round. One of
  these that the device cannot run is left out, with a warning.
  """
  cases = _warmed_up(cases)
  for seed in range(1, repeats + 1):
    for case in cases:
      case.measure(seed)
  paces = [np.array(c.seconds) / [w.tokens for w in c.work] for c in cases]
  return [_row(case, pace, pace / paces[0]) for case, pace in zip(cases, paces)]


def _warmed_up(cases: Sequence[Case]) -> list[Case]:
  found = []
  for case in cases:
    try:
      if case.compile_seconds is None:
        case.warm_up()
      found.append(case)
    except jax.errors.JaxRuntimeError as error:
      if not found:
        raise
      (why, *_) = str(error).splitlines()
      _LOG.warning("%s is left out: %s", " ".join(map(str, case.row.values())), why)
  return found


def _row(case: Case, pace: np.ndarray, ratio: np.ndarray) -> dict[str, Any]:
  work, batch = case.work, case.row["batch"]
  per_token = lambda name: sum(getattr(w, name) for w in work) / sum(w.tokens for w in work)
  return {
    **case.row,
    "model_calls_per_token": per_token("calls"),
    "tokens_forwarded_per_token": per_token("forwarded"),
    "padding_per_token": None if work[0].padding is None else per_token("padding"),
    "response_tokens": sum(w.tokens for w in work) / (batch * len(work)),
    "seconds": float(np.median(case.seconds)),
    "seconds_per_token": float(np.median(pace)),
    "seconds_per_token_range": (float(pace.min()), float(pace.max())),
    "ratio_to_vanilla": float(np.median(ratio)),
    "ratio_to_vanilla_range": (float(ratio.min()), float(ratio.max())),
    "responses_per_minute": 60 * batch / float(np.median(case.seconds)),
    "compile_seconds": case.compile_seconds,
    "compilations": case.compilations,
    "repeats": len(case.seconds),
    **_mean_details([w.details for w in work]),
  }


def _mean_details(details: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  return jax.tree.map(lambda *values: float(np.mean(values)), *map(dict, details))


def searches(search: SearchConfig, leaf_parallel: SearchConfig) -> dict[str, SearchConfig]:
  """Of each method that searches or drafts, what it does so with; for the arguments see `rows`."""
  return {
    "rain": search,
    "leaf_parallel": leaf_parallel,
    "segments": without_tree(search),
    "adaptive": with_drafts(search),
  }


def rows(
  subject: Subject,
  batch: int,
  methods: Sequence[str],
  verdicts: Sequence[str],
  search: SearchConfig,
  leaf_parallel: SearchConfig,
  repeats: int,
  mixed_share: float = 0.5,
) -> list[dict[str, Any]]:
  """Every method on one model and batch size; vanilla decoding always comes first.

  Args:
    subject: the model.
    batch: prompts side by side.
    methods: names of `METHODS`.
    verdicts: names of `VERDICTS`; of no concern to vanilla decoding.
    search: the exact search.
    leaf_parallel: the search with several leaves per step and early commit.
    repeats: measured calls per row.
    mixed_share: of the texts that are judged good where verdicts are "mixed".

  Raises:
    DataError: no such method or verdicts.
  """
  _known("methods", methods, METHODS)
  _known("verdicts", verdicts, VERDICTS)

  def case(name, call, verdict="model"):
    method, mode = METHODS[name]
    row = dict(model=subject.name, dtype=subject.dtype, method=method, mode=mode)
    return Case({**row, "verdicts": verdict, "batch": batch}, call)

  cases = [case("vanilla", vanilla(subject, batch))]
  if "no_cache" in methods:
    cases.append(case("no_cache", no_cache(subject, batch)))
  for name, own in searches(search, leaf_parallel).items():
    for verdict in verdicts if name in methods else ():
      cases.append(case(name, rain(subject, batch, own, verdict, mixed_share), verdict))
  if "best_of_n" in methods:
    cases = _warmed_up(cases)  # before the run below compiles their programs unnoticed
    samples = _equal_samples(subject, batch, search)
    cases.append(case("best_of_n", best_of_n(subject, batch, samples)))
  return measured(cases, repeats)


def _equal_samples(subject: Subject, batch: int, search: SearchConfig) -> int:
  """N that forwards as many tokens per prompt as RAIN with the model's own verdicts."""
  spent = rain(subject, batch, search, "model")(0)
  return samples_paid(subject.lm.preference, spent.forwarded / batch, spent.tokens / batch)


def _known(key: str, names: Sequence[str], expected: Collection[str]) -> None:
  for name in names:
    if name not in expected:
      raise DataError(f"{key}: unknown {name!r}; expected some of {', '.join(expected)}.")


_COLUMNS = {
  "model": "model",
  "method": "method",
  "mode": "mode",
  "verdicts": "verdicts",
  "batch": "batch",
  "model_calls_per_token": "calls/token",
  "tokens_forwarded_per_token": "forwarded/token",
  "padding_per_token": "padding/token",
  "executed_calls_per_token": "executed/token",
  "early_commits_per_response": "full trees/response",
  "seconds_per_token": "ms/token",
  "ratio_to_vanilla": "x vanilla",
  "responses_per_minute": "responses/min",
  "iterations_per_move": "iterations/move",
  "compile_seconds": "compile s",
}


def table(measured_rows: Sequence[Mapping[str, Any]]) -> str:
  """The rows as a table in plain text."""

  def cell(name, value):
    if value is None:
      return "-"
    if name == "seconds_per_token":
      value = 1000 * value
    return f"{value:.4g}" if isinstance(value, float) else str(value)

  lines = [list(_COLUMNS.values())]
  lines += [[cell(name, row.get(name)) for name in _COLUMNS] for row in measured_rows]
  return aligned(lines)


def hardware() -> dict[str, Any]:
  """What `benchmark.json` says of the machine and the libraries."""
  found = versions()
  device = {k: found.pop(k) for k in ("device", "device_count", "processor", "cores")}
  return {"hardware": {**device, "backend": backend.name()}, "versions": found}
