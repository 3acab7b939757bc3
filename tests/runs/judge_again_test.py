"""A job with several judges and defences on a tiny random checkpoint, judged again afterwards."""

import copy
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from rain_jax.runs import directory, job, judgements
from rain_jax.types import DataError
from tests.helpers import small_runs

PROMPTS = [
  {
    "id": "one",
    "chosen": "\n\nHuman: the cat\n\nAssistant: sat.\n\nHuman: on a mat?\n\nAssistant: yes",
  },
  {"id": "two", "prompt": "the mat; \u2028 and </s>"},
  {"id": "empty", "prompt": " "},
]
METHODS = ("vanilla", "smooth_llm", "guard")


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
  """The configuration, the directory and the summary of a run, and what it said."""
  folder = tmp_path_factory.mktemp("judged")
  config = copy.deepcopy(small_runs.CONFIG)
  path = folder / "prompts.jsonl"
  path.write_text("".join(json.dumps(p, ensure_ascii=False) + "\n" for p in PROMPTS), "utf-8")
  config["model"]["path"], config["prompts"]["path"] = str(checkpoint), str(path)
  config |= {
    "methods": METHODS,
    "judge": f"refusal_prefixes,preference:harmless={checkpoint}",
    "smooth_llm": {"copies": 2, "percent": 20.0, "kind": "insert", "judge": "self"},
    "guard": {"judge": "self"},
  }
  config["limits"] = {"max_prompt": 128, "max_response": 12}
  said = []
  summary = job.run(config, str(folder / "run"), said.append)
  return config, str(folder / "run"), summary, said


def test_every_answer_has_every_judges_verdict_or_a_reason(made):
  config, workdir, summary, said = made
  results = directory.read_results(workdir)
  assert len(results) == len(PROMPTS) * len(METHODS)
  judged = judgements.read_judged(workdir)
  answered = [r for r in results if "error" not in r]
  assert len(answered) == 6 and len(judged) == 12
  for line in judged.values():
    assert ("answers" in line) != ("unjudged" in line)
  assert all(r["judged"] == {"refused": r["response"].startswith("I'm sorry")} for r in answered)
  for method in METHODS:
    assert summary["methods"][method]["refused_rate"] in (0.0, 0.5, 1.0)
    second = summary["judges"]["preference:harmless"][method]
    assert second["judged"] + second["unjudged"] == 2
  assert summary["agreement"] == []  # they answer different questions
  assert any(line.startswith("refusal_prefixes: guard: refused") for line in said)


def test_several_turns_are_kept_with_the_result(made):
  lines = {(r["id"], r["method"]): r for r in directory.read_results(made[1])}
  first = lines["one", "vanilla"]
  assert first["history"] == ["the cat", "sat."] and first["prompt"] == "on a mat?"
  assert "history" not in lines["two", "vanilla"]


def test_defences_stand_beside_what_they_defend(made):
  lines = {(r["id"], r["method"]): r for r in directory.read_results(made[1])}
  for name in ("one", "two"):
    plain, guard, smooth = (lines[name, m] for m in ("vanilla", "guard", "smooth_llm"))
    kept = plain["verdict"] == 1.0
    assert guard["response"] == (
      plain["response"] if kept else "I'm sorry, but I can't help with that."
    )
    assert guard["counters"]["refused"] == (not kept)
    assert guard["counters"]["model_calls"] == plain["counters"]["model_calls"] + 1
    assert smooth["counters"]["copies"] == 2 and smooth["prompt"] == plain["prompt"]
    assert smooth["counters"]["tokens_forwarded"] > plain["counters"]["tokens_forwarded"]


def test_judged_again_by_others_and_by_the_same(made):
  config, workdir, summary, _ = made
  before = judgements.read_judged(workdir)
  settings = {"judging": config["judging"], "endpoint": config["endpoint"]}
  said = []
  again = job.judge_again(workdir, config, {**settings, "judge": "refusal_prefixes"}, said.append)
  assert judgements.read_judged(workdir) == before and again["methods"] == summary["methods"]
  name = f"preference:adversarial_harmless={config['model']['path']}"
  more = job.judge_again(workdir, config, {**settings, "judge": name}, said.append)
  assert "preference:adversarial_harmless" in more["judges"]
  assert json.loads(open(f"{workdir}/{directory.SUMMARY}", encoding="utf-8").read()) == more
  with pytest.raises(DataError, match="Unknown judge"):
    job.judge_again(workdir, config, {**settings, "judge": "nobody"}, said.append)


def test_output_that_is_no_number_fails_each_prompt_and_not_the_run(made, checkpoint, tmp_path):
  broken = tmp_path / "broken"
  shutil.copytree(checkpoint, broken)
  weights = safetensors.numpy.load_file(broken / "model.safetensors")
  # Finite, as a checkpoint has to be; what comes of them is not.
  weights["model.norm.weight"] = np.full_like(weights["model.norm.weight"], 3e38)
  safetensors.numpy.save_file(weights, broken / "model.safetensors", {"format": "pt"})
  methods = ("guard", "choose")
  config = made[0] | {
    "methods": methods,
    "judge": "refusal_prefixes",
    "model": {"path": str(broken), "dtype": "float32"},
  }
  for _ in range(2):  # what failed is written, and not tried again
    summary = job.run(config, str(tmp_path / "run"), lambda line: None)
    lines = {(r["id"], r["method"]): r for r in directory.read_results(str(tmp_path / "run"))}
    assert len(lines) == len(PROMPTS) * len(methods)
    for method in methods:
      numbers = summary["methods"][method]
      assert (numbers["failed"], numbers["rejected"], numbers["responses"]) == (2, 1, 0)
      for name in ("one", "two"):
        line = lines[name, method]
        assert line["finish_reason"] == "failed" and "not a finite number" in line["error"]
        assert line["verdict"] is None and "judged" not in line


@pytest.mark.parametrize(
  "changes,says",
  [
    ({"judge": "nobody"}, "Unknown judge"),
    ({"judge": "endpoint:harmless"}, "endpoint.url"),
    ({"guard": {"judge": "nobody"}}, "Unknown judge"),
    ({"smooth_llm": {"copies": 0}}, "copies=0"),
    ({"format": {"name": "nope"}}, "Unknown format"),
    ({"format": {"name": "chat"}}, "no chat template"),
  ],
)
def test_what_cannot_work_is_known_before_anything_is_made(made, tmp_path, changes, says):
  with pytest.raises(DataError, match=says) as error:
    job.run({**made[0], **changes}, str(tmp_path / "run"))
  assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
