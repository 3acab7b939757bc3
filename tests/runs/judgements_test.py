"""A run's results before several judges: every answer judged or listed, kept, tried again."""

import json
import random

import pytest

from rain_jax import judges
from rain_jax.demo import world
from rain_jax.judges import RuleJudge, Verdict
from rain_jax.runs import directory, judgements
from rain_jax.runs.directory import RunError, Stopped
from rain_jax.tasks import Record
from tests.helpers import chat_server

TASK = "demo_requests"


class Scripted:
  """A judge that answers from a list; what is not in it stays unjudged."""

  def __init__(self, name, answers, by="1"):
    self.name, self.by, self.answers, self.asked = name, by, answers, []

  def judge(self, items):
    for place, (record, _) in reversed(list(enumerate(items))):
      self.asked.append(record.id)
      known = self.answers.get(record.id)
      yield place, Verdict({"harmless": known}) if known is not None else Verdict(unjudged="shy")


def made(count=6):
  """Records of the demo world with two methods' results; one prompt was rejected."""
  rng = random.Random(0)
  rows = world.held_out_prompts("harmful", count)
  records = [Record(r["id"], r["prompt"], {k: r[k] for k in ("kind", "topic")}) for r in rows]
  results = []
  for row, record in zip(rows, records):
    for method, chance in (("vanilla", 0.0), ("rain", 1.0)):
      results.append(
        {
          "id": record.id,
          "task": TASK,
          "method": method,
          "prompt": record.prompt,
          "response": world.sample_response(rng, row, chance),
          "counters": {},
        }
      )
  results.append(
    {"id": "x", "task": TASK, "method": "rain", "prompt": "", "response": "", "error": "empty"}
  )
  return records, results


def run(workdir, *panel, results=None):
  records, found = made()
  judgements.judge_results(str(workdir), results or found, {TASK: records}, {TASK: panel})
  return judgements.read_judged(str(workdir))


def test_judging_that_is_stopped_keeps_its_verdicts_and_goes_on(tmp_path):
  records, results = made()
  judge = Scripted("shy", {r.id: True for r in records})
  stopping = lambda: len(judge.asked) == 3
  with pytest.raises(Stopped):
    judgements.judge_results(str(tmp_path), results, {TASK: records}, {TASK: [judge]}, stopping)
  assert len(judgements.read_judged(str(tmp_path))) == 3
  run(tmp_path, judge)
  assert len(judge.asked) == 12 == len(judgements.read_judged(str(tmp_path)))


def test_every_answer_is_judged_or_listed_and_kept(tmp_path):
  records, results = made()
  shy = Scripted("shy", {r.id: True for r in records[:4]})
  lines = run(tmp_path, RuleJudge("demo_rules"), shy)
  assert len(lines) == 2 * 12 and len(shy.asked) == 12
  assert sum("unjudged" in line for line in lines.values()) == 4
  run(tmp_path, RuleJudge("demo_rules"), shy)
  assert len(shy.asked) == 16  # only what was left unjudged is asked again
  shy.answers |= {r.id: False for r in records}
  lines = run(tmp_path, shy)
  assert not any("unjudged" in line for line in lines.values())
  other = Scripted("shy", {r.id: True for r in records}, by="another checkpoint")
  run(tmp_path, other)
  assert len(other.asked) == 12  # verdicts of another checkpoint do not count


def test_summary_with_rates_by_judge_and_agreement(tmp_path):
  records, results = made()
  run(tmp_path, RuleJudge("demo_rules"), Scripted("second", {r.id: True for r in records[:4]}))
  summary = judgements.add_to(
    {"methods": {"vanilla": {"responses": 6}, "rain": {"responses": 6}}},
    str(tmp_path),
    {TASK: ["demo_rules", "second"]},
  )
  assert summary["methods"]["vanilla"] == {"responses": 6, "harmless_rate": 0.0}
  assert summary["methods"]["rain"]["harmless_rate"] == 1.0
  assert summary["judges"]["second"]["vanilla"] == {
    "harmless_rate": 1.0,
    "judged": 4,
    "unjudged": 2,
  }
  (one,) = summary["agreement"]
  assert (one["measure"], one["judges"], one["n"], one["percent"]) == (
    "harmless",
    ["demo_rules", "second"],
    8,
    50.0,
  )
  assert one["kappa"] == pytest.approx(0)
  said = []
  judgements.table(summary, said.append)
  assert "second: vanilla: harmless 100.0% of 4, 2 unjudged" in said
  assert any("agree on harmless: 50.0% of 8" in line for line in said)
  first = judgements.add_to(
    {"methods": {"vanilla": {}, "rain": {}}}, str(tmp_path), {TASK: ["second"]}
  )
  assert first["methods"]["vanilla"]["harmless_rate"] == 1.0
  assert judgements.add_to({"methods": {}}, str(tmp_path / "none"), {TASK: ["demo_rules"]}) == {
    "methods": {}
  }


def test_the_one_rule_of_a_run_is_first_among_judges_who_come_later(tmp_path):
  records, results = made()
  rule = judges.find_judge("demo_rules")
  by_id = {record.id: record for record in records}
  with open(tmp_path / directory.RESULTS, "w", encoding="utf-8") as file:
    for line in results:
      judged = {} if "error" in line else {"judged": rule(by_id[line["id"]], line["response"])}
      file.write(json.dumps(line | judged) + "\n")
  own = {TASK: ["demo_rules"]}
  assert judgements.summarise(str(tmp_path), own) == {"rates": {}, "judges": {}, "agreement": []}
  run(tmp_path, Scripted("second", {r.id: True for r in records[:4]}))
  found = judgements.summarise(str(tmp_path), own)
  assert list(found["judges"]) == ["demo_rules", "second"]
  assert found["judges"]["demo_rules"]["rain"] == {"harmless_rate": 1.0, "judged": 6, "unjudged": 0}
  assert found["rates"] == {"vanilla": {"harmless_rate": 0.0}, "rain": {"harmless_rate": 1.0}}
  (one,) = found["agreement"]
  assert (one["judges"], one["n"], one["percent"]) == (["demo_rules", "second"], 8, 50.0)
  run(tmp_path, RuleJudge("demo_rules"))  # asked again by name, it says the same
  assert judgements.summarise(str(tmp_path), own) == found


@pytest.mark.parametrize(
  "own", [["demo_rules"], ["second", "demo_rules"], ["demo_rules", "second"]]
)
def test_answers_that_are_counted_give_the_rates(tmp_path, own):
  records, results = made()
  run(tmp_path, RuleJudge("demo_rules"), Scripted("second", {r.id: True for r in records[:4]}))
  rates = judgements.summarise(str(tmp_path), {TASK: own})["rates"]
  # What the results hold themselves is of a measure that nobody else answers, and of one that is.
  lines = [r | {"judged": {"harmless": True, "long": r["method"] == "rain"}} for r in results]
  found = judgements.counted(str(tmp_path), {TASK: own}, lines)
  for method, long in (("vanilla", 0.0), ("rain", 1.0)):
    mine = [answers for key, answers in found.items() if key[2] == method]
    assert judges.rate(mine) == rates[method] | {"long_rate": long}
  assert len(found) == 12  # all but the rejected prompt
  nothing = judgements.counted(str(tmp_path / "none"), {TASK: own}, lines)
  assert all(answers["harmless"] for answers in nothing.values())


def test_a_killed_run_loses_one_line_at_most(tmp_path):
  run(tmp_path, RuleJudge("demo_rules"))
  path = tmp_path / judgements.JUDGED
  whole = path.read_bytes()
  path.write_bytes(whole[:-20])
  assert len(judgements.read_judged(str(tmp_path))) == 11
  run(tmp_path, RuleJudge("demo_rules"))
  assert path.read_bytes() == whole
  path.write_bytes(b"{}x\n" + whole)
  with pytest.raises(RunError, match="line 1: not JSON"):
    judgements.read_judged(str(tmp_path))


def test_prompts_that_are_gone_are_named(tmp_path):
  _, results = made()
  results[0]["prompt"] = "another"
  with pytest.raises(RunError, match="harmful-000.*put the files back"):
    run(tmp_path, RuleJudge("demo_rules"), results=results)


def test_a_run_before_a_bad_endpoint_ends_with_everything_accounted_for(tmp_path):
  """Slow, wrong, 429, 500, hanging up: each answer is judged or listed with a reason."""
  reply = chat_server.reply
  acts = [
    (429, {"Retry-After": "1"}),
    reply("yes"),
    500,
    reply("no"),
    "hang",
    reply("yes"),
    b"<html>",
    reply("no"),
    reply("perhaps"),
    "drop",
    "drop",
    reply("yes"),
    "drop",
  ]
  with chat_server.Server(acts) as server:
    judge = chat_server.judge_of(server, timeout=0.3, retries=1)
    lines = run(tmp_path, judge)
  assert len(lines) == 12
  for line in lines.values():
    assert ("answers" in line) != bool(line.get("unjudged"))
  judged = [line["answers"]["harmless"] for line in lines.values() if "answers" in line]
  assert judged == [True, False, True, False, True]
  reasons = [line["unjudged"] for line in lines.values() if "unjudged" in line]
  assert "neither yes nor no: 'perhaps'" in reasons and any("not asked" in r for r in reasons)
  assert "http" in json.dumps([line["by"] for line in lines.values()])


def test_panel_rules_stand_in_results_with_the_first_ahead():
  panel = judges.panel("refusal_prefixes,demo_rules", {})
  records, results = made(1)
  assert judges.rule_of(panel)(records[0], "I cannot.") == {"refused": True, "harmless": True}
  assert judges.rule_of([])(records[0], "x") == {}


def test_what_fails_in_a_judge_is_not_said_of_the_file(tmp_path):
  class Broken(Scripted):
    def judge(self, items):
      yield 0, Verdict({"harmless": True})
      raise FileNotFoundError(2, "No such file", "/models/judge/tokenizer.json")

  with pytest.raises(FileNotFoundError, match="tokenizer.json"):
    run(tmp_path, Broken("broken", {}))
  assert len(judgements.read_judged(str(tmp_path))) == 1
