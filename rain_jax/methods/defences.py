"""Defences that RAIN is compared with, beside best-of-N: SmoothLLM, and a guard at the output."""

import dataclasses
import hashlib
import math
import random
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rain_jax import judges
from rain_jax.methods.sampling import vanilla
from rain_jax.methods.session import Response, Session
from rain_jax.tasks import Record
from rain_jax.types import DataError, never, ranges

KINDS = ("swap", "insert", "patch")
SELF = "self"  # the model's own verdict, in place of a judge
REFUSAL = "I'm sorry, but I can't help with that."

_Told = Callable[[None], None] | None
# From responses to: is it harmful? None where the judge gives no answer.
_Decide = Callable[[Sequence[Response]], list[bool | None]]


def _harmful_by(
  name: str, config: Mapping[str, Any], method: str, stopping: Callable[[], bool]
) -> _Decide:
  if name == SELF:
    # Less than two good readings is no approval, as in the search.
    harmful = lambda verdict: None if verdict is None else verdict < 1
    return lambda responses: [harmful(response.verdict) for response in responses]
  panel = judges.panel(name, config, stopping)
  if len(panel) != 1:
    raise DataError(f"{method}.judge={name!r}: expected one judge, or {SELF!r}.")

  def decide(responses: Sequence[Response]) -> list[bool | None]:
    found: list[bool | None] = [None] * len(responses)
    for place, verdict in panel[0].judge(
      [(_as_seen(r.record), r.record.answer(r.text)) for r in responses]
    ):
      found[place] = _harmful(verdict.answers)
    return found

  return decide


def _as_seen(record: Record) -> Record:
  """A record as a defence sees it, which does not know what of a prompt is an attack."""
  return dataclasses.replace(record, fields={k: v for k, v in record.fields.items() if k != "goal"})


def _harmful(answers: Mapping[str, bool]) -> bool | None:
  """What answers say of harm: a refusal is taken for harmless, and everything else for harm,
  where no more is known (as SmoothLLM's authors do)."""
  if "harmless" in answers:
    return not answers["harmless"]
  refused = [value for name, value in answers.items() if name in ("refused", "over_refused")]
  return not refused[0] if refused else None


# -- SmoothLLM --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SmoothLLM:
  """SmoothLLM (arXiv 2310.03684): many perturbed copies of a prompt, and their majority.

  Attributes:
    copies: of each prompt (there: N).
    percent: of its characters that are perturbed (there: q).
    kind: swap characters, insert some, or overwrite a patch.
    judge: says which copy's answer is harmful: a rule of `judges.JUDGES`, or "self".
  """

  copies: int = 10
  percent: float = 10.0
  kind: str = "swap"
  judge: str = "refusal_prefixes"

  def __post_init__(self):
    wrong = ranges.fault(ranges.SMOOTH_LLM, vars(self), "smooth_llm.")
    if wrong:
      raise DataError(wrong)
    if self.kind not in KINDS:
      raise DataError(f"smooth_llm.kind={self.kind!r}: expected one of {', '.join(KINDS)}.")

  def perturbed(self, record: Record, seed: int) -> list[Record]:
    """The record's copies; what was said before its prompt stays as it is."""
    rng = _rng(seed, record.id, "copies")
    return [
      dataclasses.replace(
        record, id=f"{record.id}~{i}", prompt=perturb(record.prompt, self.kind, self.percent, rng)
      )
      for i in range(self.copies)
    ]


def smooth_llm_options(
  config: Mapping[str, Any], stopping: Callable[[], bool] = never
) -> dict[str, Any]:
  """The options of `smooth_llm` in a run's configuration, from config.smooth_llm.

  Raises:
    DataError: a number or judge that cannot be used.
  """
  settings = SmoothLLM(**config["smooth_llm"])
  if settings.judge not in (SELF, *judges.JUDGES):
    known = ", ".join((SELF, *judges.JUDGES))
    raise DataError(f"smooth_llm.judge={settings.judge!r}: expected one of {known}.")
  return {
    "settings": settings,
    "decide": _harmful_by(settings.judge, config, "smooth_llm", stopping),
  }


def smooth_llm(
  session: Session,
  seed: int,
  skip: frozenset[str] = frozenset(),
  on_progress: _Told = None,
  *,
  settings: SmoothLLM,
  decide: _Decide,
) -> Iterator[Response]:
  """Answers the session's prompts by SmoothLLM; a copy too long for the session has no vote.

  Args:
    session: with the prompts.
    seed: of the run.
    skip: ids of prompts to leave out.
    on_progress: called after each batch that is drawn, with None.
    settings: of the method.
    decide: the judge.
  """
  records = [q.record for q in session.queries if q.record.id not in skip]
  copies = {r.id: settings.perturbed(r, seed) for r in records}
  smooth = session.serving([copy for some in copies.values() for copy in some])
  answers = {copy.record.id: copy for copy in smooth.rejected}
  drawn = vanilla(smooth, seed, on_progress=on_progress)
  for record in records:
    names = [copy.id for copy in copies[record.id]]
    while not all(name in answers for name in names):
      answer = next(drawn)
      answers[answer.record.id] = answer
    given = [answers.pop(name) for name in names]
    yield _vote(record, given, decide, seed, settings.judge == SELF)


def _vote(
  record: Record, answers: Sequence[Response], decide: _Decide, seed: int, own: bool
) -> Response:
  """One of the copies' answers that agree with most; `own` verdicts are paid for."""
  given = [answer for answer in answers if answer.error is None]
  if not given:
    return dataclasses.replace(answers[0], record=record)
  harmful = decide(given)
  # A copy that the judge says nothing of counts as harmful.
  most = sum(one is not False for one in harmful) > len(given) / 2
  agreeing = [a for a, one in zip(given, harmful) if (one is not False) == most]
  chosen = _rng(seed, record.id, "vote").choice(agreeing)
  work = {
    name: sum(answer.counters.get(name, 0) for answer in given)
    for name in ("model_calls", "tokens_forwarded")
  }
  if own:
    work = _with_verdicts(work, given)
  counters = {**chosen.counters, **work, "copies": len(given)}
  return dataclasses.replace(chosen, record=record, counters=counters)


def perturb(text: str, kind: str, percent: float, rng: random.Random) -> str:
  """Text with so many percent of its characters changed at random (SmoothLLM, algorithm 2)."""
  count = math.floor(len(text) * percent / 100)
  draw = lambda: rng.choice(string.printable)
  if kind == "patch":
    start = rng.randint(0, len(text) - count)
    return text[:start] + "".join(draw() for _ in range(count)) + text[start + count :]
  characters = list(text)
  for place in rng.sample(range(len(text)), count):
    characters[place] = draw() if kind == "swap" else characters[place] + draw()
  return "".join(characters)


def _rng(seed: int, *names: str) -> random.Random:
  return random.Random(hashlib.sha256("\0".join((str(seed), *names)).encode()).hexdigest())


# -- a guard ----------------------------------------------------------------------


def guard_options(
  config: Mapping[str, Any], stopping: Callable[[], bool] = never
) -> dict[str, Any]:
  """The options of `guard` in a run's configuration, from config.guard.

  Raises:
    DataError: a judge that cannot be used.
  """
  name = config["guard"]["judge"]
  return {"decide": _harmful_by(name, config, "guard", stopping), "own": name == SELF}


def guard(
  session: Session,
  seed: int,
  skip: frozenset[str] = frozenset(),
  on_progress: _Told = None,
  *,
  decide: _Decide,
  own: bool = False,
) -> Iterator[Response]:
  """Plain sampling after a judge: what it finds harmful becomes a refusal.

  What it gives no answer to is refused as well, and counted. The answers are all drawn before
  the judge is asked, so that a judge model is loaded once.

  Args:
    session: with the prompts.
    seed: the same as of vanilla sampling gives the same answers after the guard.
    skip: ids of prompts to leave out.
    on_progress: called after each batch that is drawn, with None.
    decide: the judge.
    own: the judge is the model's own verdict, whose work counts; that of other models does not.
  """
  drawn = list(vanilla(session, seed, skip, on_progress))
  yield from (answer for answer in drawn if answer.error is not None)  # nothing to judge
  answers = [answer for answer in drawn if answer.error is None]
  for answer, harmful in zip(answers, decide(answers)):
    counters = _with_verdicts(answer.counters, [answer]) if own else answer.counters
    found = {"refused": int(harmful is not False), "unjudged": int(harmful is None)}
    if harmful is not False:  # the model's verdict was on what is gone
      answer = dataclasses.replace(
        answer, text=REFUSAL, tokens=[], verdict=None, log_likelihood=None, reasoning=""
      )
    yield dataclasses.replace(answer, counters={**counters, **found})


def _with_verdicts(work: Mapping[str, int], answers: Sequence[Response]) -> dict[str, int]:
  """Work with that of the model's own verdicts on top."""
  tokens = sum(answer.counters.get("self_verdict_tokens", 0) for answer in answers)
  return {
    **work,
    "model_calls": work["model_calls"] + len(answers),
    "tokens_forwarded": work["tokens_forwarded"] + tokens,
  }
