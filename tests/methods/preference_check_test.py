"""Checking a preference: the numbers by hand, the margins of texts read whole, bad examples."""

import dataclasses
import json

import numpy as np
import pytest

from rain_jax import methods, preferences
from rain_jax.demo import world
from rain_jax.methods import Answers, calibrate, preference_check
from rain_jax.methods.session import Session, SessionConfig, search_config
from rain_jax.methods.verdict_statistics import measure
from rain_jax.models import loading
from rain_jax.policy import labels
from rain_jax.policy.embedders import HiddenStates
from rain_jax.runs import check
from rain_jax.tasks import Record
from rain_jax.text import encoding, formats
from rain_jax.types import DataError
from rain_jax.views import check_page

READINGS = (
  preferences.Reading("\n\nAnswer: (", ("A",), ("B",)),
  preferences.Reading("\n\nSo: (", ("B", "C"), ("A",)),
)
MINE = preferences.Preference(
  "mine", "One line.", "Judge.\n\nsat: (A)", "Human: {prompt}\n\nAssistant:", "none", READINGS
)
EXAMPLES = [
  preference_check.Example(Record("0", "the cat"), "sat on a mat,", True),
  preference_check.Example(Record("1", "was it then?"), " It was gone far away.", False),
  preference_check.Example(Record("2", "the cat", history=("on a mat", "then")), "\nYes", False),
]


@pytest.fixture(scope="module")
def loaded(checkpoint):
  return loading.load(str(checkpoint))


def config_of(preference=MINE, **changes):
  search = search_config("harmless", {}, HiddenStates())
  return SessionConfig(formats.DIALOGUE, preference, search, batch_size=2, **changes)


def test_answers_are_those_of_whole_texts(loaded):
  answers = preference_check.check(loaded, config_of(), EXAMPLES).answers
  found = answers.margins
  assert found.shape == answers.leads.shape == (3, 2)
  compiled = preferences.compile_preference(MINE, loaded.tokenizer)
  spoken = [" sat on a mat,", " It was gone far away.", "\nYes"]
  for reading in range(2):
    texts = []
    for example, text in zip(EXAMPLES, spoken):
      texts.append(
        [
          *compiled.prefix_ids,
          *compiled.conversation_ids(example.record.prompt, example.record.history),
          *encoding.encode_continuation(loaded.tokenizer, text),
          *compiled.suffix_ids[reading],
        ]
      )
    tokens = [*compiled.good_ids[reading], *compiled.bad_ids[reading]]
    read = labels.probabilities(loaded.model, texts, [[token] for token in tokens], 4)
    count = len(compiled.good_ids[reading])
    good, bad = read[:, :count].max(-1), read[:, count:].max(-1)
    np.testing.assert_allclose(found[:, reading], good - bad, atol=1e-5)
    np.testing.assert_allclose(answers.leads[:, reading], np.log(good / bad), atol=1e-4)


def test_the_page_shows_the_worst_first_and_no_markup_of_others():
  examples = [dataclasses.replace(e, response=f"<script>{n}") for n, e in enumerate(EXAMPLES)]
  good = np.array([example.good for example in examples])
  answers = Answers(
    np.array([[0.9, 0.9], [0.2, 0.2], [0.6, 0.4]]), np.array([[3, 3], [1, 1], [2, 2]])
  )
  checked = preference_check.Check("mine", good, answers, measure(good, answers.margins))
  html = check_page.render("title", check.table(checked), checked, examples)
  assert "<script>" not in html and html.index("&lt;script&gt;2") < html.index("&lt;script&gt;1")
  assert "&lt;script&gt;0" not in html and html.count("<svg") == 4


@pytest.mark.parametrize("preference", preferences.bundled_names())
def test_the_demo_world_has_examples_for_every_bundled_template(preference):
  examples = preference_check.demo_examples(preference, 41)
  assert [e.record.id for e in examples] == [str(n) for n in range(41)]
  assert sum(e.good for e in examples) == 21
  assert (
    preference_check.demo_examples(preference, 41)
    == examples
    != preference_check.demo_examples(preference, 41, seed=1)
  )
  if preference != "truthful":
    kind = preference_check.DEMO_KINDS[preference]
    assert all(world.has_flaw(kind, {}, e.response) != e.good for e in examples)


def test_examples_for_the_model_that_walks_into_traps_have_traps():
  harm = lambda **model: preference_check.demo_examples("harmless", 40, **model)
  into = lambda examples: sum(" open the " in e.response for e in examples)
  assert into(harm(model="demo:traps")) > 5
  assert into(harm()) == 0 and harm() == harm(model="/models/mine")
  truthful = preference_check.demo_examples("truthful", 8, model="demo:traps")
  assert truthful == preference_check.demo_examples("truthful", 8)  # questions are the same


def test_examples_from_a_file_and_what_is_wrong_with_others(tmp_path):
  path = tmp_path / "examples.jsonl"

  def read(*rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return preference_check.load_examples(str(path))

  row = {"prompt": "p", "response": "r", "label": "good"}
  assert read(row, row | {"label": "bad", "history": ["a", "b"], "id": 7}) == [
    preference_check.Example(Record("0", "p"), "r", True),
    preference_check.Example(Record("1", "p", history=("a", "b")), "r", False),
  ]
  for change, says in (
    ({"label": "fine"}, "expected 'good' or 'bad'"),
    ({"response": " "}, "'response'"),
    ({"history": "a"}, "'history'"),
    ({"prompt": None}, "'prompt'"),
    ({"prompt": 3}, "is 3, expected text"),
  ):
    with pytest.raises(DataError, match=f"examples.jsonl, line 2: .*{says}"):
      read(row, row | change)
  with pytest.raises(DataError, match="line 1: 'response' is missing; expected prompt, response"):
    read({"prompt": "p", "label": "good"})
  with pytest.raises(DataError, match="harmless, adversarial_harmless, truthful, positive only"):
    preference_check.demo_examples("mine", 4)


def labelled(count=12):
  """Examples of either label, for fits."""
  words = ("sat on a mat,", "gone far away.", "Yes", "it was;")
  return [
    preference_check.Example(
      Record(str(n), "the cat"), words[n % 4] + " the" * (n // 4), n % 2 == 0
    )
    for n in range(count)
  ]


def test_a_check_fits_on_one_half_and_reports_on_the_other(loaded):
  examples = labelled()
  found = preference_check.check(loaded, config_of(), examples)
  assert found.found["all"]["examples"] == 12
  assert found.before["all"]["examples"] == found.after["all"]["examples"] == 6
  fitted, leads = ~found.reported, found.answers.leads
  fits = calibrate.fit_labelled(leads[fitted], found.good[fitted])
  calibration = found.calibration
  assert calibration.offsets == pytest.approx([fit.offset for fit in fits], abs=1e-4)
  rest = found.reported
  margins = calibration.margins(leads[rest])
  assert found.after == measure(
    found.good[rest], margins, calibration.log_odds(leads[rest]).mean(-1)
  )
  assert "6 labelled examples" in check.table(found)
  given = preference_check.check(loaded, config_of(calibration=calibration), examples)
  assert given.calibration == calibration and given.reported.all()
  assert json.dumps(check.as_json(found))


def test_a_fit_without_labels_reads_responses_of_the_models_own(loaded):
  found = preference_check.check(loaded, config_of(max_response=8), labelled(), labelled=False)
  assert found.reported.all() and "of its own, without labels" in found.calibration.source
  leads = []
  answers = methods.answers

  def kept(session, responses):
    leads.append(answers(session, responses).leads)
    return answers(session, responses)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(methods, "answers", kept)
    again = preference_check.fit_prompts(
      loaded, config_of(max_response=8), [e.record for e in labelled()], 0
    )
  assert again == found.calibration
  fits = calibrate.fit_unlabelled(leads[-1])
  assert again.offsets == pytest.approx([fit.offset for fit in fits], abs=1e-3)


def test_a_calibration_for_something_else_is_refused(loaded):
  calibration = preference_check.check(loaded, config_of(), labelled()).calibration
  other = dataclasses.replace(MINE, prefix="Another.")
  for preference, calibrated, says in (
    (MINE, dataclasses.replace(calibration, fingerprint="0" * 64), "another model"),
    (dataclasses.replace(MINE, form="words"), calibration, "another preference"),
    (other, calibration, "another template or tokenizer"),
  ):
    with pytest.raises(preferences.PreferenceError, match=says):
      Session(loaded, config_of(preference, calibration=calibrated), [])


def test_forms_are_compared_in_one_table(loaded):
  good = np.array([e.good for e in labelled()])
  rng = np.random.default_rng(0)
  checks = {"chat": "the tokenizer has no chat template"}
  for name, apart in (("letters", 0.2), ("words", 3.0)):
    leads = (rng.normal(size=12) + apart * good)[:, None]
    answers = Answers(np.tanh(leads), leads)
    found = measure(good, answers.margins)
    checks[name] = preference_check.Check(f"mine:{name}", good, answers, found)
  text = check.comparison(checks)
  assert "take mine:words" in text and "no chat template" in text
  del checks["words"]
  assert "take none" in check.comparison(checks)
  assert len({line.index("[") for line in text.splitlines() if " [" in line}) <= 2
