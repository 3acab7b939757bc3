"""Exports: the best and the worst finished path of a prompt, in the shapes that trainers read."""

import dataclasses
import json

import pytest

from rain_jax.methods import recording
from rain_jax.runs import directory, export
from rain_jax.text import formats
from tests.helpers import recordings, small_runs

MANIFEST = {
  "config": json.loads(json.dumps(small_runs.CONFIG)),
  "model": {"path": "demo"},
  "versions": {},
  "formats": {
    "dialogue": dataclasses.asdict(formats.find_format("dialogue")),
    "odd": dataclasses.asdict(formats.Format(prefix="Before.", template="{prompt}\n", stop=())),
  },
}


def searched(response, verdict, *visits):
  nodes = [recording.Node(-1, 0, [], "", "running", 0)]
  frames = [
    recording.Frame(
      i, recording.SEARCH, [recording.Visit(0, value, text, "eos" if text else "running", text)]
    )
    for i, (text, value) in enumerate(visits)
  ]
  return recordings.made_recording(nodes, frames, response=response, verdict=verdict).as_json()


@pytest.fixture
def workdir(tmp_path):
  out = directory.Run.open(str(tmp_path), MANIFEST)
  line = lambda name, task, **more: out.append(
    {
      "id": name,
      "task": task,
      "method": "rain",
      "prompt": f"ask {name} {{prompt}}",
      "response": "good é",
      "verdict": 1.0,
    }
    | more
  )
  line("a", "dialogue", history=["hello", "well"])
  line("a", "odd", response="bad", verdict=-1.0)
  line("same", "dialogue")
  line("bad", "dialogue", response="", verdict=None)
  line("a", "dialogue", method="vanilla", response="other", history=["hello", "well"], verdict=0.0)
  line("none", "dialogue")
  line("none", "dialogue", method="best_of_n", response="awful", verdict=-1.0)
  out.keep_recording(
    "dialogue",
    "rain",
    "a",
    searched("good é", 1.0, ("so-so", 0.0), (None, 1.0), ("bad", -1.0), ("worse", -1.0)),
  )
  out.keep_recording(
    "odd", "rain", "a", searched("bad", -1.0, ("good", 1.0), ("bad", 1.0), ("great", 1.0))
  )
  out.keep_recording("dialogue", "rain", "same", searched("good é", 1.0, ("also good", 1.0)))
  out.close()
  return tmp_path


def lines(path):
  return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_pairs_are_the_best_and_the_worst_finished_response(workdir):
  path = workdir / "pairs.jsonl"
  assert export.write_pairs(str(workdir), str(path), export.MESSAGES) == (3, 4)
  first, second, third = lines(path)
  assert first == {
    "id": "a",
    "task": "dialogue",
    "prompt": [
      {"role": "user", "content": "hello"},
      {"role": "assistant", "content": "well"},
      {"role": "user", "content": "ask a {prompt}"},
    ],
    "chosen": [{"role": "assistant", "content": "good é"}],
    "chosen_value": 1.0,
    "chosen_from": "committed",
    "rejected": [{"role": "assistant", "content": "bad"}],
    "rejected_value": -1.0,
    "rejected_from": "searched",
  }
  said = lambda line, side: (line[side][0]["content"], line[f"{side}_value"], line[f"{side}_from"])
  assert said(second, "chosen") == ("great", 1.0, "searched")
  assert said(second, "rejected") == ("bad", -1.0, "committed")
  # Without a recorded search, the methods' responses are what there is.
  assert said(third, "chosen") == ("good é", 1.0, "committed")
  assert said(third, "rejected") == ("awful", -1.0, "best_of_n")


def test_text_is_what_the_model_read(workdir):
  path = workdir / "pairs.jsonl"
  export.write_pairs(str(workdir), str(path), export.TEXT)
  first, second, _ = lines(path)
  assert first["prompt"] == "Human: hello\n\nAssistant: well\n\nHuman: ask a {prompt}\n\nAssistant:"
  assert first["chosen"] == " good é"
  assert second["prompt"] == "Before.\n\nask a {prompt}\n" and second["rejected"] == "bad"


def test_committed_responses_are_exported_with_their_verdicts(workdir):
  path = workdir / "sft.jsonl"
  assert export.write_sft(str(workdir), str(path), export.MESSAGES) == 4
  assert [m["content"] for m in lines(path)[0]["messages"]] == [
    "hello",
    "well",
    "ask a {prompt}",
    "good é",
  ]
  assert [m["role"] for m in lines(path)[1]["messages"]] == ["user", "assistant"]
  assert export.write_sft(str(workdir), str(path), export.TEXT) == 4
  assert lines(path)[1]["completion"] == "bad" and lines(path)[2]["completion"] == " good é"
  assert [line["verdict"] for line in lines(path)] == [1.0, -1.0, 1.0, 1.0]


def test_what_cannot_be_exported_is_one_line(tmp_path, workdir):
  empty = tmp_path / "empty"
  chat = MANIFEST | {"formats": {"dialogue": dataclasses.asdict(formats.find_format("chat"))}}
  directory.Run.open(str(empty), chat).close()
  target = str(tmp_path / "out.jsonl")
  cases = [
    (lambda: export.write_pairs(str(empty), target, export.MESSAGES), "no responses"),
    (lambda: export.write_pairs(str(empty), target, export.TEXT), "chat template"),
    (lambda: export.write_sft(str(empty), target, export.MESSAGES), "no response of RAIN"),
    (lambda: export.write_sft(str(tmp_path / "nowhere"), target, export.MESSAGES), "no manifest"),
    (
      lambda: export.write_sft(str(workdir), str(tmp_path / "no" / "x"), export.TEXT),
      "another file",
    ),
  ]
  for call, says in cases:
    with pytest.raises(ValueError, match=says) as caught:
      call()
    assert "\n" not in str(caught.value)
