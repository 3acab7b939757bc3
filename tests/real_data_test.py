"""The main job on real prompts: through the demo's model, and with the real LLaMA tokenizer.

Neither model can answer such prompts well; what is tested is that nothing crashes, that
every prompt is accounted for, and that what is stored is what the rules say.
"""

import copy
import csv
import json

import pytest
import transformers

from rain_jax import demo
from rain_jax.models import hf
from rain_jax.models import testing as models
from rain_jax.runs import directory, job
from rain_jax.tasks import find_task, load_prompts
from tests.helpers import small_runs

METHODS = ("vanilla", "rain")
SEARCH = {
  "max_iterations": 8,
  "extra_iterations": 4,
  "min_visits": 3,
  "max_nodes": 256,
  "max_visited": 24,
  "max_path": 6,
}
DEMO_PROMPTS = {"dialogue": 40, "adversarial": 20}  # task -> prompts


def prompt_file(data_dir, task):
  name = {
    "dialogue": "hh_harmless_test_prompts.jsonl",
    "adversarial": "advbench_harmful_behaviors.csv",
  }
  path = data_dir / name[task]
  if not path.is_file():
    pytest.skip(f"no {path}; set RAIN_JAX_TEST_DATA")
  return path


def demo_model():
  if not (demo.MODEL_DIR / "model.safetensors").is_file():
    pytest.skip(f"{demo.MODEL_DIR} has no weights; train them with scripts/train_demo.py")
  return "demo"


def config_of(model, task, path, count, **limits):
  config = copy.deepcopy(small_runs.CONFIG)
  config["model"]["path"] = str(model)
  config["tasks"], config["methods"] = (task,), METHODS
  config["prompts"] |= {"path": str(path), "limit": count}
  config["limits"] |= limits
  config["search"] = {"variant": "", **SEARCH}
  return config


def run(config, workdir):
  """Runs a job; its results by prompt and method, and its summary."""
  summary = job.run(config, str(workdir), lambda line: None)
  found = directory.read_results(str(workdir))
  results = {(r["id"], r["method"]): r for r in found}
  assert len(results) == len(found)
  return results, summary


def check(results, summary, task, path, count, limits):
  """Every prompt by every method, once; what is rejected says why; texts obey the limits."""
  records = load_prompts(str(path))[:count]
  assert len(records) == count
  assert results.keys() == {(r.id, method) for r in records for method in METHODS}
  stops = find_task(task).format.stop
  rejected = set()
  for record in records:
    for method in METHODS:
      line = results[record.id, method]
      assert line["prompt"] == record.prompt
      if line["finish_reason"] == "rejected":
        assert f"limits.max_prompt={limits['max_prompt']}" in line["error"]
        rejected.add(record.id)
        continue
      counters = line["counters"]
      assert 0 < counters["response_tokens"] <= limits["max_response"]
      assert line["finish_reason"] in ("eos", "stop", "length")
      assert (counters["response_tokens"] == limits["max_response"]) or line[
        "finish_reason"
      ] != "length"
      assert line["verdict"] in (-1.0, 0.0, 1.0)
      assert not any(stop in line["response"] for stop in stops)
      if method == "vanilla":
        assert counters["model_calls"] == counters["response_tokens"]
      else:
        assert counters["iterations"] >= 1 and counters["moves"] >= 1
        assert counters["iterations"] == counters["verdicts_read"] + counters["verdicts_remembered"]
  for method in METHODS:
    numbers = summary["methods"][method]
    assert numbers["responses"] + numbers["rejected"] == count
    assert numbers["rejected"] == len(rejected)
  return rejected


@pytest.mark.slow  # two searches to compile
@pytest.mark.parametrize("task", DEMO_PROMPTS)
def test_real_prompts_through_the_demo_model(data_dir, tmp_path, task):
  path, count = prompt_file(data_dir, task), DEMO_PROMPTS[task]
  limits = {"max_prompt": 96, "max_response": 16}
  config = config_of(demo_model(), task, path, count, **limits) | {"batch_size": 10}
  results, summary = run(config, tmp_path)
  rejected = check(results, summary, task, path, count, limits)
  print(f"\n{task}: {count} prompts, {len(rejected)} longer than {limits['max_prompt']} tokens")
  assert len(rejected) < count / 2  # most of them are answered
  assert (
    sum(
      r["counters"]["rewinds"] for (_, m), r in results.items() if m == "rain" and "counters" in r
    )
    > 0
  )


@pytest.fixture(scope="module")
def llama_folder(data_dir, tmp_path_factory):
  """A small random LLaMA with the real tokenizer of 32,000 pieces."""
  path = data_dir / "llama_tokenizer.model"
  if not path.is_file():
    pytest.skip(f"no {path}; set RAIN_JAX_TEST_DATA")
  tokenizer = transformers.LlamaTokenizer.from_pretrained(str(path), add_bos_token=True)
  assert len(tokenizer) == 32_000
  folder = tmp_path_factory.mktemp("llama")
  config = dict(models.FAMILIES["llama2"]) | {
    "vocab_size": 32_000,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
  }
  hf.save(folder, config, models.random_model("llama2", config=config).params)
  tokenizer.save_pretrained(folder)
  return folder


def test_real_prompts_with_the_real_tokenizer(llama_folder, data_dir, tmp_path):
  """Four prompts of either kind."""
  path = tmp_path / "prompts.jsonl"
  hh = load_prompts(str(prompt_file(data_dir, "dialogue")))[:4]
  with open(prompt_file(data_dir, "adversarial"), encoding="utf-8", newline="") as file:
    goals = [row["goal"] for _, row in zip(range(4), csv.DictReader(file))]
  lines = [{"id": r.id, "prompt": r.prompt} for r in hh]
  lines += [{"id": f"adv-{i}", "prompt": goal} for i, goal in enumerate(goals)]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
  limits = {"max_prompt": 128, "max_response": 16}
  config = config_of(llama_folder, "dialogue", path, 8, **limits) | {"batch_size": 4}
  results, summary = run(config, tmp_path / "run")
  assert not check(results, summary, "dialogue", path, 8, limits)
  # A model that knows nothing writes anything, in any script.
  texts = [r["response"] for r in results.values()]
  assert len(set(texts)) > 12 and any(ord(c) > 127 for text in texts for c in text)
