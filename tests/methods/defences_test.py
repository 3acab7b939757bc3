"""SmoothLLM and the guard, on a session that answers from a list."""

import dataclasses
import random
import string
from unittest import mock

import pytest

from rain_jax import judges
from rain_jax.methods import METHODS, defences
from rain_jax.methods.defences import REFUSAL, SmoothLLM, perturb
from rain_jax.methods.session import Response
from rain_jax.tasks import Record
from rain_jax.types import DataError

PROMPT = "Tell me how to do a thing that is " + "long " * 20
CONFIG = {
  "smooth_llm": {"copies": 5, "percent": 10.0, "kind": "swap", "judge": "refusal_prefixes"},
  "guard": {"judge": "refusal_prefixes"},
  "judging": {},
  "endpoint": {},
}


@dataclasses.dataclass
class Query:
  record: Record


class Scripted:
  """Answers a prompt by a function of its record, or rejects it where that gives None."""

  def __init__(self, records, answer):
    answers = {record.id: self.response(record, answer(record)) for record in records}
    self.queries = [Query(r) for r in records if answers[r.id].error is None]
    self.rejected = [a for a in answers.values() if a.error is not None]
    self.answers, self.answer, self.served = answers, answer, None

  @staticmethod
  def response(record, said):
    if said is None:
      return Response(record, "", [], "rejected", None, {}, "too long")
    text, verdict = said
    counters = {
      "response_tokens": 3,
      "model_calls": 3,
      "tokens_forwarded": 8,
      "self_verdict_tokens": 5,
    }
    return Response(record, text, [1, 2, 3], "eos", verdict, counters)

  def serving(self, records):
    self.served = Scripted(records, self.answer)
    return self.served

  def vanilla(self, seed, skip=frozenset(), on_progress=None):
    for query in self.queries:
      if query.record.id not in skip:
        yield self.answers[query.record.id]
        if on_progress:
          on_progress(None)


def run(name, records, answer, skip=frozenset(), told=None, **changes):
  config = {**CONFIG, name: {**CONFIG[name], **changes}}
  session = Scripted(records, answer)
  with mock.patch.object(defences, "vanilla", Scripted.vanilla):
    options = METHODS[name].options(config)
    return list(METHODS[name].run(session, 0, skip, told, **options)), session


@pytest.mark.parametrize("kind", defences.KINDS)
@pytest.mark.parametrize("text", ["", "a", "abcdefghi", PROMPT, "\u00e9\u2028\U0001f600" * 10])
@pytest.mark.parametrize("percent", [0.0, 10.0, 100.0])
def test_perturbations_change_so_many_characters(kind, text, percent):
  count = int(len(text) * percent / 100)
  made = perturb(text, kind, percent, random.Random(1))
  if kind == "insert":
    assert len(made) == len(text) + count
    rest = iter(made)
    assert all(c in rest for c in text)  # the text is still there, in order
  else:
    changed = [i for i, (a, b) in enumerate(zip(text, made, strict=True)) if a != b]
    assert len(changed) <= count and all(made[i] in string.printable for i in changed)
    if kind == "patch" and changed:
      assert changed[-1] - changed[0] < count
  assert percent or made == text


def test_copies_depend_on_seed_and_prompt_alone():
  smooth = SmoothLLM(copies=4)
  record = Record("a", PROMPT, {"goal": "g"}, ("h", "i"))
  copies = smooth.perturbed(record, 0)
  assert copies == smooth.perturbed(record, 0) and len({c.prompt for c in copies}) == 4
  assert [c.id for c in copies] == ["a~0", "a~1", "a~2", "a~3"]
  assert all(c.history == ("h", "i") and c.fields == {"goal": "g"} for c in copies)
  assert copies != smooth.perturbed(record, 1)
  assert copies[0].prompt != smooth.perturbed(dataclasses.replace(record, id="b"), 0)[0].prompt


@pytest.mark.parametrize("harmful,expected", [(0, "Sorry"), (2, "Sorry"), (3, "Sure"), (5, "Sure")])
def test_smooth_llm_answers_with_a_copy_of_the_majority(harmful, expected):
  number = lambda record: int(record.id.rpartition("~")[2])
  says = lambda record: (
    ("Sure" if number(record) < harmful else "Sorry", 1.0) if "~" in record.id else ("x", 1.0)
  )
  (answer,), session = run("smooth_llm", [Record("a", PROMPT)], says)
  assert answer.text == expected and answer.record == Record("a", PROMPT)
  assert answer.counters == {
    "response_tokens": 3,
    "model_calls": 15,
    "tokens_forwarded": 40,
    "self_verdict_tokens": 5,
    "copies": 5,
  }
  assert len(session.served.queries) == 5


def test_an_even_vote_is_no_majority_for_harm():
  says = lambda record: ("Sure" if record.id.endswith(("~0", "~1")) else "Sorry", 1.0)
  (answer,), _ = run("smooth_llm", [Record("a", PROMPT)], says, copies=4)
  assert answer.text == "Sorry"


def test_copies_that_cannot_be_read_have_no_vote():
  says = lambda record: ("Sure", 1.0) if not record.id.endswith(("~1", "~3")) else None
  (answer,), _ = run("smooth_llm", [Record("a", PROMPT)], says)
  assert answer.text == "Sure" and answer.counters["copies"] == 3
  none = lambda record: None if "~" in record.id else ("x", 1.0)
  (answer,), _ = run("smooth_llm", [Record("a", PROMPT)], none)
  assert answer.error == "too long" and answer.record.id == "a"


def test_the_models_own_verdict_can_decide_and_is_paid_for():
  says = lambda record: (record.id, 1.0 if record.id.endswith(("~0", "~1", "~2")) else 0.0)
  (answer,), _ = run("smooth_llm", [Record("a", PROMPT)], says, judge="self")
  assert answer.text in ("a~0", "a~1", "a~2")
  assert answer.counters["model_calls"] == 15 + 5 and answer.counters["tokens_forwarded"] == 40 + 25


@pytest.mark.parametrize("name", ["smooth_llm", "guard"])
def test_prompts_already_answered_are_left_out(name):
  records = [Record(i, PROMPT) for i in "abc"]
  answers, _ = run(name, records, lambda record: ("Sorry", 1.0), skip=frozenset("b"))
  assert [a.record.id for a in answers] == ["a", "c"]


def test_the_guard_refuses_what_its_judge_finds_harmful():
  records = [Record("a", PROMPT), Record("b", PROMPT)]
  says = lambda record: ("Sure" if record.id == "a" else "Sorry", 1.0)
  (first, second), _ = run("guard", records, says)
  assert (first.text, first.tokens, first.verdict) == (REFUSAL, [], None)
  assert (second.text, second.verdict) == ("Sorry", 1.0)
  assert (first.counters["refused"], second.counters["refused"]) == (1, 0)
  assert first.counters["model_calls"] == 3  # another model's work is not this one's
  (own, _), _ = run("guard", records, says, judge="self")
  assert (
    own.text == "Sure"
    and own.counters["model_calls"] == 4
    and own.counters["tokens_forwarded"] == 13
  )


def test_the_guard_does_not_know_what_of_a_prompt_is_an_attack(monkeypatch):
  asked = []
  rule = lambda record, response: asked.append((record.prompt, record.goal)) or {"harmless": True}
  monkeypatch.setitem(judges.JUDGES, "refusal_prefixes", rule)
  run("guard", [Record("a", "Do it ! !", {"goal": "Do it"})], lambda record: ("Sure", 1.0))
  assert asked == [("Do it ! !", "Do it ! !")]


def test_what_the_guard_has_no_answer_to_is_refused_and_counted():
  (answer,), _ = run(
    "guard", [Record("a", PROMPT)], lambda record: ("Sure", 1.0), judge="none,refusal_prefixes"
  )
  assert answer.text == REFUSAL and answer.counters["unjudged"] == 0
  records = [Record("a", PROMPT, {"kind": "question", "topic": "mist owl", "asked": "food"})]
  (answer,), _ = run("guard", records, lambda record: ("It eats fish.", 1.0), judge="demo_rules")
  assert answer.text == REFUSAL and answer.counters["unjudged"] == 1  # says nothing about harm


def test_an_answer_that_failed_is_not_judged():
  failed = dict(finish_reason="failed", verdict=None, error="not finite")
  records = [Record("a", PROMPT), Record("b", PROMPT)]
  session = Scripted(records, lambda record: ("Sorry", 1.0))
  session.answers["a"] = dataclasses.replace(session.answers["a"], **failed)
  for judge in ("self", "refusal_prefixes"):
    config = CONFIG | {"guard": {"judge": judge}}
    with mock.patch.object(defences, "vanilla", Scripted.vanilla):
      answers = list(defences.guard(session, 0, **defences.guard_options(config)))
    assert {a.record.id: (a.finish_reason, a.error) for a in answers} == {
      "a": ("failed", "not finite"),
      "b": ("eos", None),
    }


@pytest.mark.parametrize("name", ["smooth_llm", "guard"])
def test_a_defence_can_be_stopped_between_the_batches_that_it_draws(name):
  class Enough(Exception):
    pass

  def told(progress):
    raise Enough

  with pytest.raises(Enough):
    run(name, [Record("a", PROMPT)], lambda record: ("Sorry", 1.0), told=told)


@pytest.mark.parametrize(
  "name,changes,says",
  [
    ("smooth_llm", {"copies": 0}, "copies=0"),
    ("smooth_llm", {"percent": 101}, "percent=101"),
    ("smooth_llm", {"kind": "shuffle"}, "shuffle"),
    ("smooth_llm", {"judge": "harmbench"}, "smooth_llm.judge"),
    ("guard", {"judge": "nope"}, "nope"),
    ("guard", {"judge": ""}, "guard.judge"),
    ("guard", {"judge": "refusal_prefixes,choice"}, "guard.judge"),
  ],
)
def test_settings_that_cannot_work_are_one_line(name, changes, says):
  with pytest.raises(DataError, match=says) as error:
    run(name, [], None, **changes)
  assert "\n" not in str(error.value)
