"""Shares counted from a run's results."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rain_jax.judges.share import Share
from rain_jax.runs.summary import summarise

WORK = (
  *("repeats", "distinct-2", "log-likelihood per token", "tokens"),
  *("model calls per token", "tokens forwarded per token", "seconds"),
)
"""Heads of the columns of `work`."""


def share(
  results: Iterable[Mapping[str, Any]], method: str, measure: str, wanted: bool = True
) -> Share:
  """The results of a method whose `measure` was judged as `wanted`, of those it was judged on."""
  judged = [
    r["judged"][measure]
    for r in results
    if r["method"] == method and r.get("judged", {}).get(measure) is not None
  ]
  return Share(sum(value is wanted for value in judged), len(judged))


def joint(
  results: Iterable[Mapping[str, Any]], name: str, measures: Sequence[str]
) -> list[dict[str, Any]]:
  """The results with one more measure: whether all of some hold, where each of them was judged."""
  made = []
  for r in results:
    found = [r.get("judged", {}).get(measure) for measure in measures]
    both = {} if None in found else {name: all(found)}
    made.append({**r, "judged": {**r.get("judged", {}), **both}})
  return made


def agreement(results: Iterable[Mapping[str, Any]], method: str, measure: str) -> dict[str, Share]:
  """How often the model's own verdict on a whole response is what the judge says of it.

  Keys: `all`; `good` and `bad`, responses that the judge calls so. A verdict of 0, one reading
  against the other, agrees with neither.
  """
  pairs = [
    (r["verdict"], r["judged"][measure])
    for r in results
    if r["method"] == method and r.get("judged", {}).get(measure) is not None
  ]
  of = lambda pairs: Share(sum(v == (1 if good else -1) for v, good in pairs), len(pairs))
  return {
    "all": of(pairs),
    "good": of([p for p in pairs if p[1]]),
    "bad": of([p for p in pairs if not p[1]]),
  }


def per_token(results: Iterable[Mapping[str, Any]], method: str, counter: str) -> float:
  """A work counter of a method over its response tokens; NaN if there are none."""
  counters = [r["counters"] for r in results if r["method"] == method and "counters" in r]
  tokens = sum(c["response_tokens"] for c in counters)
  return sum(c.get(counter, 0) for c in counters) / tokens if tokens else math.nan


def seconds(results: Iterable[Mapping[str, Any]], method: str) -> float:
  """Wall time of a method, compilation included where it was not cached."""
  return sum(r.get("seconds", 0.0) for r in results if r["method"] == method)


def work(results: Sequence[Mapping[str, Any]], method: str) -> tuple[str, ...]:
  """How a method's texts read and what they cost, in the order of `WORK`."""
  found = summarise(results, method)
  shown = lambda name, form: "-" if found[name] is None else form.format(found[name])
  return (
    shown("repeats", "{:.1%}"),
    shown("distinct_2", "{:.2f}"),
    shown("log_likelihood_per_token", "{:.2f}"),
    shown("tokens_per_response", "{:.1f}"),
    f"{per_token(results, method, 'model_calls'):.1f}",
    f"{per_token(results, method, 'tokens_forwarded'):.1f}",
    f"{seconds(results, method):.0f}",
  )
