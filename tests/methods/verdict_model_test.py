"""Verdicts by another model: what it would say alone, and whose they are said to be."""

import dataclasses
import json

import numpy as np
import pytest

from rain_jax import api
from rain_jax.methods import preference_check
from rain_jax.methods.session import Session
from rain_jax.models import hf, loading, testing
from rain_jax.models.hf import CheckpointError
from rain_jax.preferences import PreferenceError
from rain_jax.runs import from_config, manifest
from rain_jax.runs.summary import table
from rain_jax.tasks import Record
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
  said = table({"methods": {"rain": {"self_verdict": 0.5}}, "verdicts_by": other.name})
  assert f"by {other.name}: no self-evaluation" in said and "self verdict" not in said


def test_other_tokenizers_are_refused(model, judge_checkpoint):
  with pytest.raises(CheckpointError, match="of the 300 tokens of .*: take one of its") as caught:
    model.judged_by(loading.load(str(judge_checkpoint)))
  assert "\n" not in str(caught.value)
