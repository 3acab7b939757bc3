"""Dialogues in runs and from Python: what the model reads, what judges see, what is written."""

import dataclasses
import json

import pytest

import rain_jax
from rain_jax.runs import directory, export, job
from rain_jax.text.formats import DIALOGUE
from rain_jax.views import rating_sheet, run_page
from tests.helpers import small_runs

MESSAGES = [
  {"role": "system", "content": "Be kind."},
  {"role": "user", "content": "the cat"},
  {"role": "assistant", "content": "sat."},
  {"role": "user", "content": "on a mat?"},
  {"role": "assistant", "content": "I'm sorry, "},
]
ROWS = [
  {"messages": MESSAGES},
  {"conversations": [{"from": "human", "value": "the cat"}]},
  {"messages": [{"role": "user", "content": "see us"}, MESSAGES[0]]},
]


def test_python_continues_a_dialogue_as_it_stands(checkpoint):
  model = rain_jax.load(str(checkpoint))
  config = dataclasses.replace(small_runs.API_CONFIG, format=DIALOGUE, max_prompt=96)
  ask = lambda prompt, config: model.generate([prompt], method="vanilla", config=config, seed=5)[0]
  got = ask(MESSAGES, config)
  assert got.error is None and got.record.said == (
    *("on a mat?", ("the cat", "sat."), "Be kind.", "I'm sorry, "),
  )
  # The same text, put into one turn by hand.
  text = DIALOGUE.render(*got.record.said)
  bare = dataclasses.replace(config, format=dataclasses.replace(DIALOGUE, template="{prompt}"))
  whole = ask(text, bare)
  assert whole.error is None and got.tokens == whole.tokens and got.text.strip() == whole.text


@pytest.fixture(scope="module")
def workdir(checkpoint, tmp_path_factory):
  folder = tmp_path_factory.mktemp("dialogues")
  (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  config = dict(small_runs.CONFIG, methods=("vanilla",), judge="refusal_prefixes")
  config["model"] = config["model"] | {"path": str(checkpoint)}
  path = str(folder / "prompts.jsonl")
  config["prompts"] = config["prompts"] | {"path": path, "bad_rows": "skip"}
  job.run(config, str(folder / "run"), lambda line: None)
  return folder / "run"


def test_results_have_the_dialogue_and_judges_read_the_whole_answer(workdir):
  results = {r["id"]: r for r in directory.read_results(str(workdir))}
  first = results["1"]
  assert first["system"] == "Be kind." and first["history"] == ["the cat", "sat."]
  assert first["prompt"] == "on a mat?" and first["prefill"] == "I'm sorry, "
  assert first["judged"] == {"refused": True} and not first["response"].startswith("I'm")
  assert not {"system", "history", "prefill"} & results["2"].keys()
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["left_out"] == {"dialogue": 1} and len(results) == 2
  manifest = json.loads((workdir / "manifest.json").read_text())
  assert "message 2 is a system message" in manifest["left_out"]["dialogue"][0]


def test_sheets_pages_and_exports_show_the_whole_answer(workdir, tmp_path):
  results = directory.read_results(str(workdir))
  answers = [r.get("prefill", "") + r["response"] for r in results]
  sheet, _ = rating_sheet.make(results, 0)
  assert '"Be kind.\n\nthe cat\n\nsat.\n\non a mat?","' in sheet and "I'm sorry, " in sheet
  html = run_page.write(str(workdir))
  assert "I&#x27;m sorry, " in open(html).read() or "I&#39;m sorry, " in open(html).read()
  shaped = export._Shaper(str(workdir), export.MESSAGES)
  said = shaped.prompt("dialogue", "1") + shaped.response("dialogue", "1", results[0]["response"])
  assert said[:4] == MESSAGES[:4] and said[4]["content"] == answers[0]
  text = export._Shaper(str(workdir), export.TEXT)
  whole = text.prompt("dialogue", "1") + text.response("dialogue", "1", "x")
  assert whole == DIALOGUE.render("on a mat?", ("the cat", "sat."), "Be kind.", "I'm sorry, x")
