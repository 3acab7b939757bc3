"""What judges say, and how far they agree."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from rain_jax.tasks import Record
from rain_jax.types import DataError


class CannotJudge(DataError):
  """A rule was asked about a prompt that it is not for."""


@dataclasses.dataclass(frozen=True)
class Verdict:
  """One judge on one response.

  Attributes:
    answers: named yes/no answers, only of measures that apply to the prompt.
    unjudged: why there is no answer; "" if the judge did its work.
  """

  answers: Mapping[str, bool] = dataclasses.field(default_factory=dict)
  unjudged: str = ""


class Judge(Protocol):
  """A judge of many responses; may load a model, or ask over a network.

  Attributes:
    name: as in config.judge.
  """

  name: str

  @property
  def by(self) -> str:
    """What its verdicts depend on beside the response: prompt, checkpoint, and so on."""

  def judge(self, items: Sequence[tuple[Record, str]]) -> Iterator[tuple[int, Verdict]]:
    """The verdict on each (prompt, response), with its place, in any order."""


def rate(answers: Iterable[Mapping[str, bool]]) -> dict[str, float]:
  """`<measure>_rate` for every measure, the share of True among the prompts that have it."""
  totals: dict[str, list[bool]] = {}
  for one in answers:
    for name, value in one.items():
      totals.setdefault(name, []).append(value)
  return {f"{name}_rate": sum(values) / len(values) for name, values in totals.items()}


def agreement(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
  """How far two judges agree on the same questions.

  Args:
    pairs: their answers.

  Returns:
    `n`; `percent` of equal answers; `kappa`, Cohen's, which is 1 for equal answers and 0 for
    what chance would give, None where both always give one and the same answer.
  """
  n = len(pairs)
  same = sum(a == b for a, b in pairs) / n
  first, second = (sum(pair[i] for pair in pairs) / n for i in (0, 1))
  chance = first * second + (1 - first) * (1 - second)
  kappa = (same - chance) / (1 - chance) if chance < 1 else None
  return {"n": n, "percent": 100 * same, "kappa": kappa}


def agreements(by_judge: Mapping[str, Mapping[Any, Mapping[str, bool]]]) -> list[dict[str, Any]]:
  """`agreement` of every two judges on every measure that both answer.

  Args:
    by_judge: answers by judge and by response.
  """
  found = []
  for a, b in itertools.combinations(by_judge, 2):
    both = [(by_judge[a][key], by_judge[b][key]) for key in by_judge[a] if key in by_judge[b]]
    for measure in dict.fromkeys(m for x, y in both for m in x if m in y):
      pairs = [(x[measure], y[measure]) for x, y in both if measure in x and measure in y]
      found.append({"measure": measure, "judges": [a, b], **agreement(pairs)})
  return found
