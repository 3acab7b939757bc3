"""The Python API: what goes in, in which order it comes out, and what is refused."""

import dataclasses
import importlib
import subprocess
import sys

import pytest

import rain_jax
from rain_jax import api, methods, tasks, types
from rain_jax.methods import events, recording
from rain_jax.preferences import load_preference
from rain_jax.text import formats
from tests.helpers import small_runs
from tests.helpers.events import follow
from tests.helpers.repository import ROOT

PROMPTS = ["the cat sat", " ", "far away we see the mat; and then it was gone far away to see us"]
CONFIG = small_runs.API_CONFIG


@pytest.fixture(scope="module")
def model(checkpoint):
  return rain_jax.load(str(checkpoint))


def records(prompts):
  return [tasks.Record(str(place), prompt) for place, prompt in enumerate(prompts)]


def shown(answer):
  return answer.text, answer.tokens, answer.verdict, answer.finish_reason, answer.counters


@pytest.mark.parametrize("method", ["rain", "vanilla", "best_of_n"])
def test_one_result_per_prompt_in_their_order(model, method):
  answers = model.generate(PROMPTS, method=method, config=CONFIG, seed=3)
  assert [answer.record.prompt for answer in answers] == PROMPTS
  assert "empty" in answers[1].error and answers[1].text == ""
  for answer in (answers[0], answers[2]):
    assert answer.error is None and answer.verdict in (-1.0, 0.0, 1.0)
    assert 0 < len(answer.tokens) <= 12 + 10
    assert answer.counters["response_tokens"] == len(answer.tokens)
    assert ("rewinds" in answer.counters) == (method == "rain")
  if method == "best_of_n":
    assert answers[0].counters["samples"] == 3
  # Again, in other company: the session is used again and the answer is the same.
  again = model.generate([PROMPTS[0], PROMPTS[2][:-5]], method=method, config=CONFIG, seed=3)
  assert shown(again[0]) == shown(answers[0])
  if method == "vanilla":
    other = model.generate(PROMPTS[:1] + PROMPTS[:1], method=method, config=CONFIG, seed=4)
    assert other[0].tokens != answers[0].tokens
    assert other[0].tokens != other[1].tokens  # each place has its own random numbers


def test_of_one_token_to_choose_from_every_number_draws_the_same(checkpoint):
  alone = dataclasses.replace(CONFIG, search={**CONFIG.search, "sample_top_k": 1})
  model = rain_jax.load(str(checkpoint))
  one, other = model.generate(PROMPTS[:1] * 2, method="vanilla", config=alone, seed=4)
  assert one.tokens == other.tokens and one.error is None


def test_best_of_n_is_heard_of_while_it_samples(model, monkeypatch):
  monkeypatch.setattr(methods.sampling, "_ROUND", 1)
  session = model.session(PROMPTS[:1], "harmless", CONFIG)
  heard = []
  (answer,) = methods.best_of_n(session, 3, on_progress=heard.append, samples=3)
  assert answer.counters["samples"] == 3
  assert [(p.busy, p.samples, p.samples_wanted) for p in heard] == [
    (1, 1, 3),
    (1, 2, 3),
    (1, 3, 3),
    (0, 0, 0),
  ]
  forwarded = [p.tokens_forwarded for p in heard[:-1]]
  assert 0 < forwarded[0] < forwarded[1] < forwarded[2] == answer.counters["tokens_forwarded"]
  assert heard[2].response_tokens == len(answer.tokens)


def test_a_recorded_search_gives_the_same_responses_and_its_events_spell_them(model):
  plain = model.generate(PROMPTS, config=CONFIG, seed=3)
  recorded = model.generate(PROMPTS, config=CONFIG, seed=3, record=True)
  assert list(map(shown, recorded)) == list(map(shown, plain))
  assert [answer.recording is None for answer in recorded] == [False, True, False]
  for answer in recorded:
    if answer.recording:
      moves = [f.node for f in answer.recording.frames if f.kind == recording.COMMIT]
      tokens = [t for node in moves for t in answer.recording.nodes[node].tokens]
      assert tokens == answer.tokens
      assert answer.recording.response == answer.text and answer.recording.verdict == answer.verdict
  (session,) = model._sessions.values()
  progress = [
    step
    for step in methods.watch(session.serving(records(PROMPTS)), 3)
    if step.query.record.id == "0"
  ]
  for event, final, trial in follow(events.events(progress)):
    pass
  assert event.kind == events.END and event.response.text == event.text == plain[0].text
  assert trial == ""
  # Pieces with a character cut in two spell it differently; the rest is the same.
  plainly = lambda text: text.replace("\ufffd", "").replace(" ", "")
  assert plainly(final).startswith(plainly(plain[0].text)[:6])


@pytest.mark.slow
def test_a_stream_ends_in_the_response(model):
  told = list(model.stream(PROMPTS[0], config=CONFIG, seed=3))
  (answer,) = model.generate(PROMPTS[:1], config=CONFIG, seed=3)
  assert shown(told[-1].response) == shown(answer)
  with pytest.raises(types.DataError, match="empty prompt"):
    next(model.stream("", config=CONFIG))


def test_a_preference_brings_the_format_and_the_variant_of_its_task():
  session_config = api.make_session_config("truthful", api.Config())
  assert session_config.format == formats.QUESTION and session_config.search.rollout_to_eos
  own = api.make_session_config("truthful", api.Config(format=formats.DIALOGUE, variant="harmless"))
  assert own.format == formats.DIALOGUE and not own.search.rollout_to_eos
  plain = load_preference("positive")
  renamed = type(plain)(**{**vars(plain), "name": "my own"})
  assert api.make_session_config(renamed, api.Config()).format == formats.DIALOGUE
  assert (
    api.make_session_config("harmless", api.Config(search={"min_visits": 9})).search.min_visits == 9
  )


@pytest.mark.parametrize(
  "arguments,says",
  [
    (dict(prompts="the cat"), "list of texts"),
    (dict(prompts=[1]), "list of texts"),
    (dict(prompts=PROMPTS, method="magic"), "magic"),
    (dict(prompts=PROMPTS, method="vanilla", record=True), "vanilla has no search to record"),
    (dict(prompts=PROMPTS, preference="nowhere.yaml"), "nowhere.yaml"),
    (dict(prompts=PROMPTS, config=api.Config(variant="odd")), "odd"),
    (dict(prompts=PROMPTS, config=api.Config(search={"visits": 1})), "visits"),
    (
      dict(prompts=PROMPTS, config=api.Config(batch_size=0)),
      "batch_size=0: expected a whole number from 1 to 1048576",
    ),
    (dict(prompts=PROMPTS, method="best_of_n", config=api.Config(samples=0)), "samples=0"),
  ],
)
def test_what_cannot_be_is_one_line(model, arguments, says):
  with pytest.raises(ValueError, match=says) as caught:
    model.generate(**arguments)
  assert "\n" not in str(caught.value)


def test_nothing_asked_nothing_answered(model):
  assert model.generate([], config=CONFIG) == []


def test_the_package_offers_its_modules_and_the_search_loads_alone():
  for name in rain_jax.__dir__():
    assert getattr(rain_jax, name) is not None
  assert set(dir(rain_jax)) == {*rain_jax.__all__, "__version__"} and "Any" not in dir(rain_jax)
  assert rain_jax.SearchConfig is types.SearchConfig
  assert rain_jax.search is importlib.import_module("rain_jax.search")
  assert rain_jax.types is types
  with pytest.raises(AttributeError, match="magic"):
    rain_jax.magic
  code = "import rain_jax, sys; rain_jax.search.step, rain_jax.decode.serve; print('transformers' in sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
  )
  assert done.stdout.strip() == "False"
