"""Quality against cost: a row for each method and budget, and which rows no other one beats."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rain_jax.experiments.reproduce.count import WORK, per_token, share, work
from rain_jax.experiments.reproduce.render import Bar, Point, Table

FLIPPED = " with {}% of verdicts flipped"
"""Ends the name of a step in which verdicts are flipped."""
_MEASURES = ("harmless", "positive")
_COSTS = {"calls": "model_calls", "tokens": "tokens_forwarded"}


def table(
  title: str, names: Mapping[str, str], results: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Table:
  """A row for each step, which has the results of one method.

  Args:
    title: of the table.
    names: of the methods, for people.
    results: lines of results by the step's name, perhaps with `FLIPPED` after it.
  """
  flips = any(FLIPPED.partition("{}")[0] in step for step in results)
  told = {measure for lines in results.values() for line in lines for measure in line["judged"]}
  measure = next((one for one in _MEASURES if one in told), _MEASURES[0])
  cells: dict[tuple[str, str], tuple[str, ...]] = {}
  rated: dict[tuple[str, str], tuple[str, float, Sequence[float]]] = {}
  points: list[Point] = []
  for step, lines in results.items():
    label, _, noise = step.partition(FLIPPED.partition("{}")[0])
    for method in {line["method"]: None for line in lines}:
      found = share(lines, method, measure)
      costs = [per_token(lines, method, counter) for counter in _COSTS.values()]
      flipped = noise.partition("%")[0] or "0"
      cells[step, method] = (label, f"{flipped}%", str(found), *work(lines, method))
      if found.total and not any(map(math.isnan, costs)):
        rated[step, method] = (flipped, found.rate, costs)
        series = names.get(method, method)
        points.append(Point(step, series, costs[1], Bar.of(step, found), not noise))
  rows = [(*shown, _unbeaten(key, rated)) for key, shown in cells.items()]
  return Table(
    title,
    ("method", "verdicts flipped", f"{measure} [95%]", *WORK, "Pareto-optimal in"),
    tuple(rows),
    (),
    notes=(
      "Pareto-optimal in calls, or in tokens: no row with as many flipped verdicts is as good at"
      " fewer model calls (forwarded tokens) per response token, or better at as many. Shares count as"
      " they are, whatever their intervals.",
      *(["Outlined points in the picture: some verdicts are flipped."] if flips else []),
    ),
    points=tuple(points),
    axes=("forwarded tokens per response token", f"{measure}, percent, with 95% intervals"),
  )


def _unbeaten(
  key: tuple[str, str], rated: Mapping[tuple[str, str], tuple[str, float, Sequence[float]]]
) -> str:
  """The costs in which a row is Pareto-optimal among those with as many flipped verdicts."""
  if key not in rated:
    return ""
  flipped, rate, costs = rated[key]
  beside = [(r, c) for noise, r, c in rated.values() if noise == flipped]
  beaten = lambda i: any(
    r >= rate and c[i] <= costs[i] and (r, c[i]) != (rate, costs[i]) for r, c in beside
  )
  return ", ".join(cost for i, cost in enumerate(_COSTS) if not beaten(i))
