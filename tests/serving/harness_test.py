"""The model of lm-evaluation-harness: its own evaluator on local tasks, beside its model `hf`."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

lm_eval = pytest.importorskip("lm_eval", reason="pip install rain_jax[harness]")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

import rain_jax  # noqa: E402
from rain_jax import api, demo  # noqa: E402
from rain_jax.serving import engine, harness  # noqa: E402
from tests.helpers import docs  # noqa: E402
from tests.helpers.repository import ROOT  # noqa: E402

PAGE = ROOT / "docs" / "serving.md"
PROMPT = "Human: {}\n\nAssistant:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """The tasks and the data that the page shows."""
  made = tmp_path_factory.mktemp("harness")
  (lines,) = docs.blocks(PAGE, "json")
  (made / "ferry.jsonl").write_text(lines, "utf-8")
  for text in docs.blocks(PAGE, "yaml"):
    name = text.partition("\n")[0].removeprefix("task: ")
    (made / f"{name}.yaml").write_text(text, "utf-8")
  return made


@pytest.fixture(scope="module")
def model():
  return harness.RainModel("demo", method="vanilla", batch_size=4)


@pytest.fixture(scope="module")
def reference():
  return HFLM(str(demo.MODEL_DIR), device="cpu", dtype="float32", batch_size=1)


def asked(kind, *arguments):
  return [Instance(kind, {}, arguments, 0) for arguments in arguments]


def test_the_harness_evaluates_two_local_tasks(folder, model, reference, monkeypatch):
  monkeypatch.chdir(folder)
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  evaluate = lambda one: lm_eval.simple_evaluate(
    one, tasks=["ferry", "ferry_choice"], task_manager=TaskManager(include_path=str(folder))
  )
  found = evaluate(model)
  assert found["results"].keys() == {"ferry", "ferry_choice"}
  rows = [json.loads(line) for line in (folder / "ferry.jsonl").read_text("utf-8").splitlines()]
  raw = dataclasses.replace(engine.RAW, stop=("\n\n",))
  config = api.Config(format=raw, max_prompt=100, max_response=16)
  answers = rain_jax.load("demo").generate(
    [PROMPT.format(row["question"]) for row in rows], method="vanilla", config=config
  )
  said = [sample["resps"][0][0] for sample in found["samples"]["ferry"]]
  assert said == [answer.text for answer in answers] and all(said)
  theirs = evaluate(reference)
  value = lambda results: results["results"]["ferry_choice"]["acc,none"]
  assert value(found) == value(theirs)
  for ours, other in zip(found["samples"]["ferry_choice"], theirs["samples"]["ferry_choice"]):
    for (one, greedy), (two, likewise) in zip(ours["filtered_resps"], other["filtered_resps"]):
      assert one == pytest.approx(two, abs=1e-4) and greedy == likewise


def test_log_likelihoods_are_those_of_the_harness_with_torch(model, reference):
  long = " ".join(["The miller may lend the rope to the baker."] * 60)
  pairs = [("", "The valley"), ("The valley ", "is quiet"), (long, " At dusk"), ("Human:", long)]
  pairs.append((PROMPT.format("How do I rob the ferry?"), " I will not help with that part."))
  greedy = reference.tok_decode(
    reference._model_generate(
      reference.tokenizer("The", return_tensors="pt").input_ids, 4, ["zqx"]
    )[0].tolist()
  )
  pairs.append(("The", greedy.partition("The")[2]))
  ours = model.loglikelihood(asked("loglikelihood", *pairs))
  theirs = reference.loglikelihood(asked("loglikelihood", *pairs))
  for (value, likeliest), (other, likewise) in zip(ours, theirs, strict=True):
    assert value == pytest.approx(other, rel=1e-5, abs=1e-4) and likeliest == likewise
  texts = [("The valley is quiet.",), (long * 3,)]
  found = model.loglikelihood_rolling(asked("loglikelihood_rolling", *texts))
  expected = reference.loglikelihood_rolling(asked("loglikelihood_rolling", *texts))
  assert found == pytest.approx(expected, rel=1e-5)


def test_chats_are_put_in_the_format_and_cut_as_the_task_says(model):
  chat = [{"role": "user", "content": "How do I rob the ferry?"}]
  context = model.apply_chat_template(chat)
  assert context.endswith(PROMPT.format("How do I rob the ferry?"))
  whole, cut, none = model.generate_until(
    asked(
      "generate_until",
      (context, {"max_gen_toks": 16, "temperature": 0.0}),
      (context, {"max_gen_toks": 16, "until": "."}),
      ("word " * 5000, {"max_gen_toks": 16, "until": "."}),
    )
  )
  config = api.Config(max_response=16)
  (answer,) = rain_jax.load("demo").generate([chat], method="vanilla", config=config)
  assert whole == answer.text and "." not in cut and none == ""
  assert whole.startswith(cut)
  (likely,) = model.loglikelihood(asked("loglikelihood", (context, " I will not")))
  (plain,) = model.loglikelihood(asked("loglikelihood", (str(context), " I will not")))
  assert likely[0] == pytest.approx(plain[0], abs=1e-4)


def test_arguments_that_cannot_be_used_are_refused():
  for arguments, says in (
    ({"batch_size": "auto"}, "batch_size='auto'"),
    ({"max_gen_toks": 0}, "max_gen_toks=0"),
    ({"visits": 1}, "search.visits"),
    ({"format": "odd"}, "odd"),
    ({"preference": "odd.yaml"}, "odd.yaml"),
    ({"method": "odd"}, "Unknown method 'odd'"),
  ):
    with pytest.raises(ValueError, match=says):
      harness.RainModel("demo", **arguments)


@pytest.mark.slow
def test_the_command_of_the_page_ends_with_a_table(folder):
  (command,) = [words for words in docs.commands(PAGE) if words[0] == "scripts/harness.py"]
  small = "max_iterations=3,extra_iterations=1,max_nodes=128,max_visited=20,max_path=4,min_visits=1"
  words = [word + f",{small}" if word.startswith("pretrained=") else word for word in command]
  done = subprocess.run(
    [sys.executable, str(ROOT / words[0]), *words[1:]],
    cwd=folder,
    env=os.environ
    | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    | {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache")},
    text=True,
    capture_output=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert "|ferry " in done.stdout and "|ferry_choice" in done.stdout
