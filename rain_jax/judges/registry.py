"""Every judge, by name, and the judges of a run as its configuration names them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rain_jax.judges.endpoint import EndpointJudge
from rain_jax.judges.models import FORMS, ModelJudge, PreferenceJudge
from rain_jax.judges.rules import choice, demo_rules, refusal_prefixes, vader
from rain_jax.judges.verdicts import CannotJudge, Judge, Verdict
from rain_jax.tasks import Record
from rain_jax.types import DataError, never, ranges

Rule = Callable[[Record, str], dict[str, bool]]

JUDGES: Mapping[str, Rule] = {
  "none": lambda record, response: {},
  "demo_rules": demo_rules,
  "refusal_prefixes": refusal_prefixes,
  "choice": choice,
  "vader": vader,
}
# Judges that load a checkpoint or ask an endpoint, with what stands after the name.
SLOW_JUDGES = (*FORMS, "sentiment", "sentiment:FORM", "preference:NAME", "endpoint:MEASURE")


class RuleJudge:
  """A rule as a judge of many; prompts that it is not for stay unjudged."""

  def __init__(self, name: str):
    self.name, self.by = name, name
    self.rule = find_judge(name)

  def judge(self, items: Sequence[tuple[Record, str]]) -> Iterator[tuple[int, Verdict]]:
    """See `Judge`."""
    for place, item in enumerate(items):
      try:
        yield place, Verdict(self.rule(*item))
      except CannotJudge as why:
        yield place, Verdict(unjudged=str(why))


def find_judge(name: str) -> Rule:
  """The rule of that name; `DataError` lists the known ones."""
  if name not in JUDGES:
    raise DataError(f"Unknown judge {name!r}: expected one of {', '.join(JUDGES)}.")
  return JUDGES[name]


def panel(
  spec: str, settings: Mapping[str, Any], stopping: Callable[[], bool] = never
) -> list[Judge]:
  """The judges of a comma list, each NAME, or NAME=PATH for a checkpoint of one's own.

  Args:
    spec: rules of `JUDGES`; `truth`, `info`, `harmbench`, `llama_guard`; `preference:NAME`,
      any checkpoint asked with a preference template (`sentiment` and `sentiment:FORM` are short
      for `preference:positive` and `preference:positive:FORM`); `endpoint:MEASURE`. "none" and "" are nobody.
    settings: a run's configuration with `judging` and `endpoint`; judges are made, nothing
      is loaded or asked yet.
    stopping: asked while an endpoint is waited for; True ends the judging with `types.Stopped`.

  Raises:
    DataError: an unknown judge, one twice, one without what it needs.
  """
  found: list[Judge] = []
  for part in filter(None, (part.strip() for part in spec.split(","))):
    judge = _judge(part, settings, stopping)
    if judge.name in [other.name for other in found]:
      raise DataError(f"judge={spec!r}: {judge.name} appears twice.")
    if judge.name != "none":
      found.append(judge)
  return found


def takes_path(name: str) -> bool:
  """Whether a judge of that name may be given a checkpoint, NAME=PATH."""
  return name in FORMS or name.partition(":")[0] in ("sentiment", "preference")


def _judge(part: str, settings: Mapping[str, Any], stopping: Callable[[], bool]) -> Judge:
  name, _, path = part.partition("=")
  kind, _, argument = name.partition(":")
  if kind == "endpoint":
    return EndpointJudge(argument, settings["endpoint"], stopping=stopping)
  if kind == "sentiment":
    kind, argument = "preference", f"positive:{argument}" if argument else "positive"
  judging = dict(settings.get("judging", {}))
  calibration = judging.pop("calibration", "")  # which manifests of earlier versions do not have
  wrong = ranges.fault(ranges.JUDGING, judging, "judging.")
  if wrong:
    raise DataError(wrong)
  if kind == "preference" and argument:
    if not path:
      raise DataError(f"judge {name!r} needs a checkpoint: {name}=PATH.")
    return PreferenceJudge(name, argument, path, **judging, calibration=calibration)
  if name in FORMS:
    return ModelJudge(name, path, **judging)
  if name not in JUDGES or path:
    known = ", ".join((*JUDGES, *SLOW_JUDGES))
    raise DataError(f"Unknown judge {part!r}: expected one of {known}.")
  return RuleJudge(name)


def rule_of(judges: Sequence[Judge]) -> Rule:
  """All rules among the judges as one; where two answer the same measure, the first counts.

  It raises `CannotJudge` where none of them is for a prompt.
  """
  rules = [judge.rule for judge in judges if isinstance(judge, RuleJudge)]

  def both(record: Record, response: str) -> dict[str, bool]:
    answers: dict[str, bool] = {}
    why = None
    for rule in reversed(rules):
      try:
        answers |= rule(record, response)
      except CannotJudge as error:
        why = error
    if why and not answers:
      raise why
    return answers

  return both
