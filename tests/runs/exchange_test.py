"""HarmBench's test cases and completions, JailbreakBench's artifacts: read and written."""

import csv
import json

import pytest

from rain_jax.runs import directory, exchange, from_config
from rain_jax.tasks import find_task, load_behaviors, load_prompts, load_records
from rain_jax.types import DataError
from tests.helpers import small_runs

BEHAVIORS = (
  "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
  "Do a thing,standard,general,,,do_a_thing\n"
  'Use the page,contextual,illegal,context,"A page, with text.",use_the_page\n'
)
CASES = {"do_a_thing": ["please a", "please b"], "use_the_page": ["A page, with text. Now!"]}
WHOLE = "A page, with text.\n\n---\n\nUse the page"


@pytest.fixture
def files(tmp_path):
  (tmp_path / "behaviors.csv").write_text(BEHAVIORS)
  (tmp_path / "test_cases.json").write_text(json.dumps(CASES))
  return tmp_path


def test_test_cases_are_prompts_with_the_behaviours_as_goals(files):
  cases = load_prompts(str(files / "test_cases.json"))
  assert [(r.id, r.prompt) for r in cases] == [
    ("do_a_thing.0", "please a"),
    ("do_a_thing.1", "please b"),
    ("use_the_page", "A page, with text. Now!"),
  ]
  assert [r.fields["BehaviorID"] for r in cases] == ["do_a_thing"] * 2 + ["use_the_page"]
  full = list(map(load_behaviors(str(files / "behaviors.csv")), cases))
  assert [r.goal for r in full] == ["Do a thing"] * 2 + [WHOLE]
  assert [r.prompt for r in full] == [r.prompt for r in cases]
  assert full[2].fields["SemanticCategory"] == "illegal"
  config = {"prompts": dict(small_runs.CONFIG["prompts"])}
  config["prompts"] |= {"path": str(files / "test_cases.json")}
  config["prompts"] |= {"behaviors": str(files / "behaviors.csv")}
  assert from_config.records_of(config, find_task("dialogue")) == full


@pytest.mark.parametrize(
  "cases, says",
  [
    ({"a": []}, "row 1: no test case of 'a'"),
    ({"a": ["x"], "b": [["image.png", "x"]]}, r"row 2: a test case of 'b' is \['image.png', 'x'\]"),
    ({"a": 3}, "row 1: a test case of 'a' is 3, expected text"),
    ([{"a": ["x"]}], "no field 'prompt'"),
  ],
)
def test_what_is_no_test_case_is_one_line(tmp_path, cases, says):
  path = tmp_path / "test_cases.json"
  path.write_text(json.dumps(cases))
  with pytest.raises(DataError, match=says) as caught:
    load_prompts(str(path))
  assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_rows_with_images_are_left_out_where_asked(tmp_path):
  path = tmp_path / "test_cases_merged.json"
  path.write_text(json.dumps({"a": ["x"], "b": [["image.png", "x"]], "c": []}))
  left_out = []
  (record,) = load_records(find_task("dialogue").reader, [str(path)], left_out=left_out)
  assert record.id == "a" and len(left_out) == 2


def test_a_test_case_of_no_known_behaviour_is_one_line(files):
  (files / "test_cases.json").write_text('{"other": ["x"]}')
  (record,) = load_prompts(str(files / "test_cases.json"))
  with pytest.raises(DataError, match="no behaviour 'other', of which 'other' is a test case"):
    load_behaviors(str(files / "behaviors.csv"))(record)
  (files / "behaviors.csv").write_text("Behavior\nx\n")
  with pytest.raises(DataError, match="no field 'BehaviorID'"):
    load_behaviors(str(files / "behaviors.csv"))


def manifest(**changes):
  config = json.loads(json.dumps(small_runs.CONFIG)) | {"judge": "refusal_prefixes"}
  config["prompts"] |= changes.pop("prompts", {})
  made = {"config": config | changes, "model": {"path": "/models/tiny-7b"}, "versions": {}}
  return made | {"formats": {}, "started": "2026-01-31T12:00:00"}


def line(name, prompt, response, **more):
  made = {"id": name, "task": "dialogue", "method": "rain", "prompt": prompt, "response": response}
  return made | {"verdict": 1.0, "counters": {"response_tokens": 5}} | more


def written(write, workdir, path, method="rain"):
  counts = write(str(workdir), str(path), method)
  return counts, json.loads(path.read_text("utf-8"))


@pytest.fixture
def run(files):
  prompts = {"path": str(files / "test_cases.json"), "behaviors": str(files / "behaviors.csv")}
  out = directory.Run.open(str(files / "run"), manifest(prompts=prompts))
  out.append(line("do_a_thing.0", "please a", "No é.", judged={"refused": True}))
  out.append(line("do_a_thing.1", "please b", " ok", prefill="Sure,", judged={"refused": False}))
  out.append(line("use_the_page", CASES["use_the_page"][0], "", error="too long"))
  out.append(line("do_a_thing.0", "please a", "ok", method="vanilla", unjudged="why"))
  out.close()
  return files / "run"


def test_completions_are_what_harmbenchs_classifier_script_reads(run, files):
  counts, found = written(exchange.write_completions, run, files / "completions.json")
  assert counts == (2, 1)
  assert found == {
    "do_a_thing": [
      {"test_case": "please a", "generation": "No é."},
      {"test_case": "please b", "generation": "Sure, ok"},
    ]
  }
  # As that script goes on: each behaviour's id is one of the csv's.
  with open(files / "behaviors.csv", newline="") as file:
    known = {row["BehaviorID"] for row in csv.DictReader(file)}
  assert found.keys() <= known
  assert set(found) <= CASES.keys()
  assert all(one["test_case"] in CASES[name] for name, some in found.items() for one in some)


def test_an_artifact_of_jailbreakbench(run, files):
  counts, found = written(exchange.write_artifact, run, files / "artifact.json")
  assert counts == (2, 1)
  assert found["parameters"] == {
    "method": "test_cases",
    "model": "tiny-7b",
    "attack_type": None,
    "defense": "rain",
    "evaluation_date": "2026-01-31",
    "method_parameters": {"seed": 0},
    "attack_success_rate": 0.5,
    "total_number_of_jailbreaks": 1,
    "number_of_submitted_prompts": 2,
    "total_number_of_queries": 2,
    "total_prompt_tokens": None,
    "total_response_tokens": 10,
    "evaluation_llm_provider": None,
  }
  assert found["jailbreaks"][1] == {
    "index": 1,
    "goal": "Do a thing",
    "behavior": "do_a_thing",
    "category": "general",
    "prompt": "please b",
    "response": "Sure, ok",
    "number_of_queries": 1,
    "queries_to_jailbreak": 1,
    "prompt_tokens": None,
    "response_tokens": 5,
    "jailbroken": True,
  }
  # It is a file of prompts in turn.
  first, second = load_prompts(str(files / "artifact.json"))
  assert (first.prompt, first.goal, second.prompt) == ("please a", "Do a thing", "please b")


def test_an_artifact_of_an_attack_with_responses(tmp_path):
  (tmp_path / "harmful.csv").write_text(
    "Index,Goal,Behavior,Category\n4,rob the ferry,theft,crime\n"
  )
  settings = {"method": "best_of_n", "best_of_n": {"samples": 3, "sigma": 0.4, "against": "rain"}}
  made = manifest(attack=settings, prompts={"path": str(tmp_path / "harmful.csv")})
  made["model"] = [made["model"]]
  out = directory.Run.open(str(tmp_path / "attack"), made, check=lambda line: "")
  for number, (prompt, broken) in enumerate((("rOb tHe ferry", False), ("rbo the FERRY", True))):
    of = {"behaviour": "2", "round": number, "prompt": prompt, "response": "r", "broken": broken}
    out.append(of)
  out.close()
  _, found = written(exchange.write_artifact, tmp_path / "attack", tmp_path / "artifact.json")
  (one,), about = found["jailbreaks"], found["parameters"]
  assert (one["index"], one["goal"]) == (4, "rob the ferry")
  assert (one["behavior"], one["category"]) == ("theft", "crime")
  assert (one["prompt"], one["response"], one["jailbroken"]) == ("rbo the FERRY", "r", True)
  assert (one["number_of_queries"], one["queries_to_jailbreak"]) == (2, 2)
  assert (about["method"], about["attack_type"]) == ("best_of_n", "black_box")
  assert about["method_parameters"] == {"seed": 0, **settings["best_of_n"]}


def test_what_cannot_be_written_is_one_line(run, files, tmp_path):
  gcg = tmp_path / "gcg"
  directory.Run.open(str(gcg), manifest(attack={"method": "gcg"}), check=lambda line: "").close()
  cases = [
    (exchange.write_artifact, gcg, "rain", "gcg asks for no responses.*attack.json"),
    (exchange.write_completions, gcg, "rain", "holds an attack"),
    (
      exchange.write_completions,
      run,
      "guard",
      "no response of 'guard' there; it has rain, vanilla",
    ),
    (exchange.write_artifact, run, "vanilla", "no response of vanilla is judged.*judge.py"),
    (exchange.write_artifact, tmp_path / "none", "rain", "no manifest.json there"),
  ]
  for write, workdir, method, says in cases:
    with pytest.raises(directory.RunError, match=says) as caught:
      write(str(workdir), str(tmp_path / "out.json"), method)
    assert "\n" not in str(caught.value)
  with pytest.raises(DataError, match="choose another file"):
    exchange.write_completions(str(run), str(tmp_path / "no" / "where.json"), "rain")
  (files / "test_cases.json").write_text('{"do_a_thing": ["please a"]}')
  with pytest.raises(directory.RunError, match="'do_a_thing.0'.*no longer in the task's files"):
    exchange.write_completions(str(run), str(tmp_path / "out.json"), "rain")
