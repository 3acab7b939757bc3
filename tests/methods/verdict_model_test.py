"""Verdicts by another model: what it would say alone, and whose they are said to be."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest

from rain_jax import api
from rain_jax.attacks import AttackError
from rain_jax.attacks import job as attack_job
from rain_jax.methods import METHODS, preference_check
from rain_jax.methods.session import Session
from rain_jax.models import hf, loading, testing
from rain_jax.models.hf import CheckpointError
from rain_jax.preferences import PreferenceError
from rain_jax.runs import from_config, job, manifest
from rain_jax.runs.summary import table
from rain_jax.tasks import Record
from rain_jax.types import DataError
from tests.helpers import repository, small_runs
from tests.helpers.small_runs import API_CONFIG, CONFIG

EXAMPLES = [
  preference_check.Example(Record("0", "the cat"), "sat on a mat,", True),
  preference_check.Example(Record("1", "was it then?"), " It was gone far away.", False),
  preference_check.Example(Record("2", "the cat"), "was gone.", True),
  preference_check.Example(Record("3", "on a mat"), "Yes, it sat", False),
]


@pytest.fixture(scope="module")
def model(checkpoint):
  return loading.load(str(checkpoint))


@pytest.fixture(scope="module")
def other(checkpoint, bpe_tokenizer, tmp_path_factory):
  """A model of other shapes and weights with the same tokenizer."""
  folder = tmp_path_factory.mktemp("other")
  config = json.loads((checkpoint / "config.json").read_text())
  config |= {"num_hidden_layers": 2, "hidden_size": 48, "num_key_value_heads": 4}
  hf.save(folder, config, testing.random_model("llama2", seed=7, config=config).params)
  bpe_tokenizer.save_pretrained(folder)
  return loading.load(str(folder))


def answers(loaded):
  config = api.make_session_config("harmless", API_CONFIG, loaded.judging.tokenizer)
  return preference_check.check(loaded, config, EXAMPLES), config


def test_answers_and_calibrations_are_the_other_models(model, other):
  (mine, _), (theirs, _) = answers(model), answers(other)
  both, config = answers(model.judged_by(other))
  np.testing.assert_allclose(both.answers.leads, theirs.answers.leads, atol=1e-5)
  assert np.abs(both.answers.leads - mine.answers.leads).max() > 0.01
  fitted = both.calibration
  assert (fitted.model, fitted.fingerprint) == (other.name, other.fingerprint)
  calibrated = dataclasses.replace(config, calibration=fitted)
  calibrated.compiled(model.judged_by(other))
  with pytest.raises(PreferenceError, match="calibration"):
    calibrated.compiled(model)


def test_a_copy_of_the_model_says_what_it_says_itself(checkpoint, model):
  prompts = ["the cat sat", "on a mat"]
  of = lambda loaded: api.Rain(loaded).generate(prompts, method="vanilla", config=API_CONFIG)
  said = [
    [(r.text, r.verdict, r.counters) for r in of(loaded)]
    for loaded in (model, model.judged_by(loading.load(str(checkpoint))))
  ]
  assert said[0] == said[1] and all(text for text, _, _ in said[0])


def test_who_judges_is_planned_named_and_remembered(model, other):
  loaded = model.judged_by(other)
  config = api.make_session_config("harmless", API_CONFIG, other.tokenizer)
  session = Session(loaded, config, [Record("0", "the cat")])
  assert session.aligned_with == f"harmless:letters, judged by {other.name}"
  plan = session.plan().parts
  size = (loading.nbytes(one.model.params) for one in (model, other))
  assert [plan["weights"], plan["weights of the verdict's model"]] == list(size)
  named = CONFIG | {"model": CONFIG["model"] | {"path": model.name}}
  named |= {"verdict": {"model": other.name}}
  assert from_config.load_on(named).verdict.fingerprint == other.fingerprint
  made = manifest.make(named, loaded, {"dialogue": config}, {"dialogue": []})
  assert made["helpers"]["verdict"] == other.fingerprint
  assert manifest.verdicts_by(made) == other.name
  for odd in ({}, {"verdict": 3}, {"verdict": {"model": [1]}}, {"verdict": {}}):
    assert manifest.verdicts_by({"config": odd}) == ""
  said = table({"methods": {"rain": {"self_verdict": 0.5}}, "verdicts_by": other.name})
  assert f"by {other.name}: no self-evaluation" in said and "self verdict" not in said


TEMPLATE = (
  "{{ bos_token }}{% for m in messages %}Human: {{ m.content }}</s>\nwas{% endfor %}"
  "{% if add_generation_prompt %}Human: {% endif %}"
)


@pytest.fixture(scope="module")
def reward(checkpoint, bpe_tokenizer, tmp_path_factory):
  """A reward model with random weights as transformers writes it, and what transformers reads."""
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  folder = tmp_path_factory.mktemp("reward")
  config = json.loads((checkpoint / "config.json").read_text())
  config |= {"num_hidden_layers": 2, "hidden_size": 48, "num_key_value_heads": 4, "pad_token_id": 0}
  torch.manual_seed(0)
  theirs = transformers.LlamaForSequenceClassification(
    transformers.LlamaConfig(**config, num_labels=1, initializer_range=0.3)
  ).eval()
  theirs.save_pretrained(folder)
  tokenizer = copy.deepcopy(bpe_tokenizer)
  tokenizer.chat_template = TEMPLATE
  tokenizer.save_pretrained(folder)

  def score(*turns):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
      return theirs(ids).logits.item()

  return loading.load(str(folder), scores=True), score


def test_scores_are_those_of_transformers(model, reward):
  loaded, score = reward
  found, config = answers(model.judged_by(loaded))
  said = [(one.record.prompt, f" {one.response.strip()}") for one in EXAMPLES]
  want = [score(prompt, text) for prompt, text in said]
  np.testing.assert_allclose(found.answers.leads[:, 0], want, atol=1e-4)
  assert np.std(want) > 0.01
  fitted = found.calibration
  calibrated = dataclasses.replace(config, calibration=fitted, soft_verdicts=True)
  session = Session(model.judged_by(loaded), calibrated, [Record("0", "the cat")])
  assert f", score of {loaded.name}" in session.aligned_with
  (answer,) = METHODS["vanilla"].run(session, 0)
  assert answer.verdict is not None and -1 <= answer.verdict <= 1


@pytest.mark.parametrize(
  "changes, said",
  [
    ({"architectures": ["LlamaForCausalLM"]}, "that is no reward model"),
    ({"architectures": None}, "expected a list of names"),
    ({"id2label": {"0": "no", "1": "yes"}}, "2 labels"),
    ({"id2label": None}, "2 labels"),
  ],
)
def test_other_checkpoints_are_no_reward_models(reward, tmp_path, changes, said):
  folder = shutil.copytree(reward[0].name, tmp_path / "copy")
  config = json.loads((folder / "config.json").read_text()) | changes
  (folder / "config.json").write_text(json.dumps(config))
  with pytest.raises(CheckpointError, match=said) as caught:
    loading.load(str(folder), scores=True)
  assert "\n" not in str(caught.value)


def test_what_another_models_verdict_needs_is_said_in_python_too(checkpoint, reward):
  own, folder = str(checkpoint), reward[0].name
  for options, said in (
    ({"verdict_kind": "odd"}, "verdict.kind='odd': expected preference, guard, reward."),
    ({"verdict_kind": "guard"}, "verdict.kind=guard: set verdict.model to the guard model."),
    ({"verdict": own, "verdict_kind": "reward"}, "expected a list of names"),
    ({"verdict": folder}, "a reward model gives verdicts with verdict.kind=reward"),
  ):
    with pytest.raises((CheckpointError, DataError), match=said) as caught:
      api.load(own, **options)
    assert "\n" not in str(caught.value)
  rain = api.load(own, verdict=folder, verdict_kind="reward")
  with pytest.raises(DataError, match="which scores are good is for config.calibration to say"):
    rain.generate(["the cat"], config=API_CONFIG)


def test_where_a_verdicts_model_cannot_be_used_is_said_before_anything_is_loaded():
  config = small_runs.CONFIG | {"verdict": {"model": "/nowhere", "kind": "reward"}}
  with pytest.raises(DataError, match="which scores are good is for config.calibration to say"):
    job.plans(config)
  attack = repository.load_config("attack").get_config().to_dict()
  attack["verdict"]["model"] = "/nowhere"
  with pytest.raises(AttackError, match="verdict.model: attacks are made against a model's own"):
    attack_job.run(attack, "/nowhere")
