"""inspect_ai's own command on the task of the page, against the server."""

import json
import os
import re
import shutil
import subprocess

import pytest

import rain_jax
from rain_jax import api
from tests.helpers import docs
from tests.helpers.repository import ROOT

pytest.importorskip("uvicorn")

from rain_jax.serving import engine  # noqa: E402
from tests.helpers.served import KEY, serving  # noqa: E402

PAGE = ROOT / "docs" / "serving.md"
CONFIG = api.Config(max_prompt=64, max_response=16, batch_size=4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("inspect") is None, reason="pip install inspect-ai, and its PATH")
def test_the_command_of_the_page_evaluates_its_task_by_both_methods(tmp_path):
  _, task = docs.blocks(PAGE, "python")
  (tmp_path / "ferry.py").write_text(task, "utf-8")
  (command,) = [text for text in docs.blocks(PAGE, "") if "inspect eval" in text]
  _, found, shown = command.partition("export")  # without what is installed
  (extra,) = re.findall(r"`(--extra-body .*?)`", PAGE.read_text("utf-8"))
  model = rain_jax.load("demo")
  settings = [api.make_session_config("harmless", CONFIG, model.loaded.tokenizer)]
  made = engine.Engine(model.loaded, "demo", settings, {"rain": {}, "vanilla": {}}, 64)
  with serving(made) as (_, url):
    small = shown.replace("http://127.0.0.1:8000/v1", url).replace(
      "RAIN_API_KEY=none", f"RAIN_API_KEY='{KEY}'"
    )
    small = small.replace("--max-tokens 64", f"--max-tokens 8 --log-format json --seed 3 {extra}")
    assert url in small and KEY in small and extra in small
    done = subprocess.run(
      ["bash", "-ec", found + small],
      cwd=tmp_path,
      env={**os.environ, "PYTHONPATH": ""},
      capture_output=True,
      text=True,
      timeout=900,
    )
  made.close()
  assert done.returncode == 0 and done.stdout.count("accuracy") >= 2, done.stdout + done.stderr
  logs = {}
  for path in (tmp_path / "logs").glob("*.json"):
    log = json.loads(path.read_text("utf-8"))
    assert log["status"] == "success" and log["results"]["completed_samples"] == 8
    logs[log["eval"]["model"].rpartition(":")[2]] = log["samples"]
  assert logs.keys() == {"rain", "vanilla"}
  for method, samples in logs.items():
    sample = samples[0]
    (answer,) = model.generate([sample["input"]], method=method, config=CONFIG, seed=3)
    said = sample["output"]["choices"][0]["message"]["content"]
    assert said and answer.text.startswith(said)
