"""Runs on prompts that are odd: nothing is lost, all is counted, each with its reason."""

import copy
import json
import logging
import time

import pytest

from rain_jax.runs import directory, job
from rain_jax.types import DataError, Stopped
from tests.helpers import small_runs
from tests.helpers.chat_server import Server


@pytest.fixture
def config(checkpoint, tmp_path):
  made = copy.deepcopy(small_runs.CONFIG)
  made["model"]["path"] = str(checkpoint)
  made["methods"] = ("vanilla",)
  made["prompts"]["path"] = str(tmp_path / "prompts.jsonl")
  return made


def write(config, *rows):
  with open(config["prompts"]["path"], "w", encoding="utf-8") as file:
    file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def test_odd_rows_are_refused_or_left_out_and_counted(config, tmp_path, caplog):
  write(config, {"prompt": "the cat"}, {"prompt": None}, "{", {"prompt": "a mat"})
  workdir = str(tmp_path / "run")
  with pytest.raises(
    DataError, match="line 2: .*config.prompts.bad_rows=skip leaves such rows out"
  ):
    job.run(config, workdir)
  assert not (tmp_path / "run").exists()
  config["prompts"]["bad_rows"] = "skip"
  said = []
  with caplog.at_level(logging.WARNING):
    summary = job.run(config, workdir, said.append)
  assert summary["left_out"] == {"dialogue": 2}
  assert summary["methods"]["vanilla"]["responses"] == 2
  assert "dialogue: 2 rows left out" in said[0]
  told = [m for m in caplog.messages if "rows left out" in m]
  assert len(told) == 1 and "line 2: 'prompt' is None" in told[0] and "line 3: not JSON" in told[0]
  left_out = directory.read_manifest(workdir)["left_out"]["dialogue"]
  assert [line.partition(": ")[0] for line in left_out] == [
    f"{config['prompts']['path']}, line {place}" for place in (2, 3)
  ]
  settings = {"judge": "refusal_prefixes", "judging": config["judging"], "endpoint": {}}
  assert job.judge_again(workdir, config, settings, said.append)["left_out"] == {"dialogue": 2}


def test_half_a_character_rejects_its_prompt_alone(config, tmp_path):
  write(
    config,
    '{"id": "a", "prompt": "the \\ud83d cat"}',
    '{"id": "\\ud800", "prompt": "the cat"}',
    {"id": "c", "prompt": "a mat 😀"},
  )
  workdir = str(tmp_path / "run")
  for _ in range(2):  # nothing is made again
    summary = job.run(config, workdir, lambda text: None)
    assert [summary["methods"]["vanilla"][n] for n in ("responses", "rejected")] == [1, 2]
    found = {r["id"]: r for r in directory.read_results(workdir)}
    assert list(found) == ["a", "\ud800", "c"]
    assert found["a"]["error"] == "half of a character in its text (a surrogate without its pair)"
    assert found["\ud800"]["error"].startswith("half of a character in its id")
    assert found["a"]["prompt"] == "the \ud83d cat" and "error" not in found["c"]


def test_half_a_character_on_the_command_line_is_a_rejected_prompt(config, tmp_path):
  config["prompts"] |= {"path": "", "text": "the \udcff cat"}
  summary = job.run(config, str(tmp_path / "run"), lambda text: None)
  assert summary["methods"]["vanilla"]["rejected"] == 1


def test_what_a_tasks_own_rules_are_not_for_is_answered_and_counted(config, tmp_path, caplog):
  write(config, {"prompt": "the cat"}, {"prompt": "a mat"}, {"prompt": " "})
  config["tasks"], workdir, said = ("demo_requests",), str(tmp_path / "run"), []
  with caplog.at_level(logging.WARNING):
    summary = job.run(config, workdir, said.append)
  numbers = summary["methods"]["vanilla"]
  assert (numbers["responses"], numbers["unjudged"], numbers["rejected"]) == (2, 2, 1)
  assert not [name for name in numbers if name.endswith("_rate")] and "unjudged" in said[0]
  (told,) = [m for m in caplog.messages if "not judged" in m]
  assert told.startswith("demo_requests: 3 of 3 prompts are answered and not judged. Prompt '1' is")
  results = [r for r in directory.read_results(workdir) if "error" not in r]
  assert all("not from the demo world" in r["unjudged"] and "judged" not in r for r in results)
  settings = {"judge": "", "judging": config["judging"], "endpoint": {}}
  again = job.judge_again(workdir, config, settings, said.append)
  assert again["judges"]["demo_rules"]["vanilla"] == {"judged": 0, "unjudged": 2}
  config["judge"] = "demo_rules"  # who names the rules means them
  with pytest.raises(DataError, match="not from the demo world"):
    job.run(config, str(tmp_path / "other"))


@pytest.mark.parametrize("method", ["vanilla", "guard"])
@pytest.mark.parametrize("act", ["hang", (429, {"Retry-After": "50"})])
def test_a_run_that_is_told_to_stop_does_so_while_its_judge_waits(config, tmp_path, act, method):
  write(config, {"prompt": "the cat"})
  config["methods"], config["guard"] = (method,), {"judge": "endpoint:harmless"}
  asked = []

  def stopping():
    if server.seen:
      asked.append(time.monotonic())
    return bool(asked) and time.monotonic() - asked[0] > 0.5

  with Server([act]) as server:
    config["judge"] = "endpoint:harmless"
    config["endpoint"] |= {"url": server.url, "model": "m", "timeout": 60.0, "retries": 4}
    with pytest.raises(Stopped):
      job.run(config, str(tmp_path / "run"), stopping=stopping)
  assert time.monotonic() - asked[0] < 3
  assert len(directory.read_results(str(tmp_path / "run"))) == (method == "vanilla")


def test_the_first_reason_of_a_judge_is_told(config, tmp_path, caplog):
  write(config, {"prompt": "the cat"}, {"prompt": "a mat"})
  with Server([(401, {"body": b"\x1b[31mwrong key"})]) as server:
    config["judge"] = "endpoint:harmless"
    config["endpoint"] |= {"url": server.url, "model": "m"}
    with caplog.at_level(logging.WARNING):
      job.run(config, str(tmp_path / "run"), lambda text: None)
  (told,) = [m for m in caplog.messages if "unjudged" in m]
  assert told.startswith("endpoint:harmless: the first that stays unjudged, 1: HTTP 401")
  assert "wrong key" in told and "\x1b" not in told
