"""Models that think before they answer: what is sampled, what is judged, what is written."""

import dataclasses
import json

import pytest

import rain_jax
from rain_jax import methods
from rain_jax.methods import thoughts
from rain_jax.preferences import PreferenceError, compile_preference, load_preference
from rain_jax.runs import directory, job, manifest
from rain_jax.text import formats
from rain_jax.text.formats import CHAT, DIALOGUE, Format
from rain_jax.types import DataError
from tests.helpers import checkpoints, small_runs
from tests.helpers.thinking import QWEN, R1, labelled, with_template

STRIPPED = dataclasses.replace(CHAT, thinking="strip")
PROMPTS = ["the cat", "sat on a mat", "gone far away", "see us all", "it was", "and then?"]
CONFIG = dataclasses.replace(
  small_runs.API_CONFIG, format=STRIPPED, max_thought=24, batch_size=2, max_prompt=128
)


@pytest.fixture(scope="module")
def folder(bpe_tokenizer, tmp_path_factory):
  """A random model that now and then ends a thought."""
  path = tmp_path_factory.mktemp("thinker")
  checkpoints.write_thinker(path, with_template(bpe_tokenizer, QWEN))
  return path


@pytest.fixture(scope="module")
def model(folder):
  return rain_jax.load(str(folder))


@pytest.fixture(scope="module")
def answers(model):
  return model.generate(PROMPTS, method="vanilla", config=CONFIG, seed=2)


def test_a_thought_is_context_and_the_answer_begins_after_it(model, answers):
  tokenizer, ended = model.loaded.tokenizer, [a for a in answers if a.error is None]
  assert len(ended) >= 2 and any(a.reasoning for a in ended)
  session = model.session(PROMPTS, "harmless", CONFIG)
  thought, lost = thoughts.think(session, 2)
  mark = tokenizer.convert_tokens_to_ids("</think>")
  plain = {query.record.id: query for query in session.queries}
  assert {one.record.id for one in lost} == {a.record.id for a in answers if a.error}
  for query in thought.queries:
    before, answer = plain[query.record.id], answers[int(query.record.id)]
    added = query.proposing[len(before.proposing) :]
    assert query.proposing[: len(before.proposing)] == before.proposing
    if added:
      assert added.count(mark) == 1 and tokenizer.decode(added).endswith("</think>\n\n")
      said = tokenizer.decode(added[: added.index(mark)])
      assert answer.reasoning == said.strip().removeprefix("<think>").strip() and query.ends
    # The verdict's text has no thought in it.
    assert query.evaluating == before.evaluating
    assert answer.counters["thought_tokens"] > 0
    assert len(answer.tokens) <= CONFIG.max_response
    assert answer.reasoning == query.thought.text


def test_every_method_of_a_session_shares_the_thoughts(model, answers, monkeypatch):
  session, draws = model.session(PROMPTS, "harmless", CONFIG), []
  draw = thoughts._drawn
  counted = lambda session, queries, seed: (
    draws.append(len(queries)) or draw(session, queries, seed)
  )
  monkeypatch.setattr(thoughts, "_drawn", counted)
  told = lambda found: {a.record.id: (a.text, a.reasoning, a.error) for a in found}
  first = told(methods.vanilla(session, 2))
  assert first == told(answers)
  assert told(methods.vanilla(session, 2, frozenset("02"))) == {
    name: one for name, one in first.items() if name not in "02"
  }
  assert draws == [2, 2, 2]
  # A thought depends on the seed and on its prompt, not on who is asked beside it.
  again = methods.vanilla(session.serving([q.record for q in session.queries[::-1]]), 2)
  assert told(again) == first


def test_answers_follow_a_few_batches_of_thoughts_each(model, answers, monkeypatch):
  """So that a run that is stopped has lost little, and hears of it in between."""
  monkeypatch.setattr(thoughts, "_AHEAD", 1)
  session = model.session(PROMPTS, "harmless", CONFIG)
  told, seen = [], []
  for answer in methods.vanilla(session, 2, frozenset("1"), told.append):
    seen.append((answer.record.id, len(session.thoughts)))
    plain = answers[int(answer.record.id)]
    assert (answer.reasoning, answer.error is None) == (plain.reasoning, plain.error is None)
  assert dict(seen).keys() == set("02345") and len(told) >= 3
  assert all(count <= 2 for name, count in seen if name in "02")


def test_thoughts_without_an_end_are_one_line(model, answers):
  for answer in answers:
    if answer.error is None:
      continue
    assert answer.text == answer.reasoning == "" and answer.finish_reason == "rejected"
    assert "limits.max_thought=24" in answer.error or "in the middle of a" in answer.error
    assert "\n" not in answer.error and answer.counters["thought_tokens"] > 0


def test_a_prefilled_answer_has_no_thought(model):
  said = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
  session = model.session([said], "harmless", CONFIG)
  (query,) = thoughts.think(session, 2)[0].queries
  assert query.thought is None and query == session.queries[0]
  assert model.loaded.tokenizer.decode(query.proposing).endswith("<think>\n\n</think>\n\nsat")


def outcome(model, ids, template=QWEN, finish=1, **changes):
  """What `_after` makes of sampled tokens."""
  form = dataclasses.replace(STRIPPED, **changes)
  config = dataclasses.replace(CONFIG, format=form)
  loaded = dataclasses.replace(
    model.loaded, tokenizer=with_template(model.loaded.tokenizer, template)
  )
  session = rain_jax.api.Rain(loaded).session(["the cat"], "harmless:letters", config)
  (query,) = session.queries
  tokens = loaded.tokenizer(ids, add_special_tokens=False).input_ids
  mark = form.think_end.strip()
  opening = form.opening_of_answers(loaded.tokenizer)
  return thoughts._after(session, query, tokens, finish, mark in ids, {}, opening)


def test_what_a_thought_comes_to(model):
  got = outcome(model, "<think>\nhm</think>")
  assert got.thought.text == "hm" and got.ends
  got = outcome(model, "it was. gone", think_end="gone")
  assert got.thought.text == "it was." and not got.ends
  assert outcome(model, "just so").thought.text == ""  # an answer without a thought
  assert outcome(model, "just so").proposing == outcome(model, "so").proposing
  assert "in the middle" in outcome(model, "<think>\nhm").error
  assert "in the middle" in outcome(model, "hm", R1).error  # whose prompts begin a thought
  assert outcome(model, "hm</think>", R1).thought.text == "hm"
  assert "max_thought=24" in outcome(model, "hm", finish=3).error


def test_what_the_template_is_given_reaches_it(bpe_tokenizer):
  tokenizer = with_template(bpe_tokenizer, QWEN)
  form = Format(stop=(), chat=True, template_kwargs={"enable_thinking": False})
  text = tokenizer.decode(form.encode(tokenizer, "hi")[0])
  assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
  assert form.opening_of_answers(tokenizer).endswith("</think>\n\n") and hash(form)
  assert manifest.chat_digest(form, tokenizer) != manifest.chat_digest(CHAT, tokenizer)
  kept = json.loads(json.dumps(dataclasses.asdict(form)))
  assert Format(**kept | {"stop": ()}) == form


BAD = {
  "no dict": ({"template_kwargs": 3, "chat": True}, "template_kwargs=3: expected a dict"),
  "list": ({"template_kwargs": {"tools": []}, "chat": True}, r"template_kwargs.tools=\[\]"),
  "no chat": ({"template_kwargs": {"a": 1}}, "set format.name=chat"),
  "thinking": ({"thinking": "yes"}, "thinking='yes': expected strip"),
  "mark": ({"think_end": " "}, "think_end=' ': expected the text of a mark"),
  "mark kind": ({"think_end": 1}, "think_end=1"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_setting_is_one_line(name):
  fields, says = BAD[name]
  with pytest.raises(DataError, match=says) as caught:
    Format(**fields)
  assert "\n" not in str(caught.value)


def test_a_template_that_takes_no_such_name_is_one_line(bpe_tokenizer):
  form = dataclasses.replace(CHAT, template_kwargs={"tokenize": True})
  with pytest.raises(DataError, match="does not take this conversation.*tokenize"):
    form.encode(with_template(bpe_tokenizer, QWEN), "hi")


def test_labels_are_not_read_in_the_middle_of_a_thought(model, bpe_tokenizer):
  refused = {
    "strip": (model.loaded.tokenizer, STRIPPED, "format.thinking='strip'.*labels"),
    "r1": (with_template(model.loaded.tokenizer, R1), CHAT, "in the middle of a thought"),
  }
  for tokenizer, form, says in refused.values():
    loaded = dataclasses.replace(model.loaded, tokenizer=tokenizer)
    config = dataclasses.replace(CONFIG, format=form)
    session = rain_jax.api.Rain(loaded).session(["the cat"], "harmless:letters", config)
    with pytest.raises(DataError, match=says):
      next(methods.METHODS["choose"].run(session, 0))
  thoughts.check_labels(
    model.session(PROMPTS, "harmless", dataclasses.replace(CONFIG, format=CHAT))
  )
  preference = load_preference("harmless:chat")
  with pytest.raises(PreferenceError, match="middle of a thought.*another form"):
    compile_preference(preference, with_template(bpe_tokenizer, R1))


@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": False}])
def test_a_verdict_in_the_chat_form_is_asked_after_a_closed_thought(bpe_tokenizer, kwargs):
  tokenizer = with_template(bpe_tokenizer, QWEN)
  preference = labelled(load_preference("harmless:chat"))
  form = dataclasses.replace(CHAT, template_kwargs=kwargs)
  compiled = compile_preference(preference, tokenizer, form)
  end = tokenizer.decode(compiled.suffix_ids[0])
  assert end.endswith("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
  (good,), (bad,) = compiled.good_ids[0], compiled.bad_ids[0]
  assert tokenizer.convert_ids_to_tokens([good, bad]) == ["A", "B"]


def test_formats_without_thoughts_stay_what_they_were():
  assert not formats.FORMATS["chat"].thinking
  old = dataclasses.asdict(DIALOGUE)
  lasting = manifest._lasting(old)
  assert old.keys() - lasting.keys() == {"now", "template_kwargs", "thinking", "think_end"}
  assert "thinking" in manifest._lasting(dataclasses.asdict(STRIPPED))


def test_a_run_keeps_the_reasoning_and_judges_the_answer(folder, tmp_path, monkeypatch):
  prompts = tmp_path / "prompts.txt"
  prompts.write_text("\n".join(PROMPTS))
  config = dict(small_runs.CONFIG, methods=("vanilla",), judge="refusal_prefixes", seed=2)
  config |= {"model": config["model"] | {"path": str(folder)}, "batch_size": 2}
  config["prompts"] = config["prompts"] | {"path": str(prompts)}
  config["limits"] = {"max_prompt": 128, "max_response": 12, "max_thought": 24}
  config["format"] = {"name": "chat", "thinking": "strip", "template_kwargs": {}}
  seen = []
  refusals = job.judges.JUDGES["refusal_prefixes"]
  tell = lambda record, text: seen.append(text) or refusals(record, text)
  monkeypatch.setitem(job.judges.JUDGES, "refusal_prefixes", tell)
  job.run(config, str(tmp_path / "run"), lambda line: None)
  results = directory.read_results(str(tmp_path / "run"))
  ended = [r for r in results if "error" not in r]
  assert len(results) == len(PROMPTS) and any("reasoning" in r for r in ended)
  assert {r["response"] for r in ended} <= set(seen)
  assert not [r for r in ended if any(r.get("reasoning", "no") in text for text in seen)]
  assert all(r["counters"]["thought_tokens"] for r in ended)
  stored = json.loads((tmp_path / "run" / "manifest.json").read_text())
  assert stored["formats"]["dialogue"]["thinking"] == "strip"
  with pytest.raises(directory.RunError, match="another config|other prompt formats"):
    job.run(
      config | {"format": config["format"] | {"thinking": ""}},
      str(tmp_path / "run"),
      lambda _: None,
    )


@pytest.mark.slow
def test_a_search_has_the_thought_in_context_and_never_rewinds_it(model, answers):
  plain = {a.record.id: a for a in answers}
  for record in (False, True):
    found = model.generate(PROMPTS, method="rain", config=CONFIG, seed=2, record=record)
    for answer in found:
      before = plain[answer.record.id]
      assert (answer.reasoning, answer.error) == (before.reasoning, before.error)
      assert record is False or answer.error or answer.recording.response == answer.text
      if not answer.error:
        assert answer.counters["iterations"] and answer.counters["thought_tokens"]
        assert answer.verdict in (-1.0, 0.0, 1.0)


def test_a_search_with_thoughts_is_planned_with_room_for_them(model):
  bare = dataclasses.replace(CONFIG, format=CHAT)
  with_room, without = (model.session(PROMPTS, "harmless", c).max_prompt for c in (CONFIG, bare))
  assert with_room - without >= CONFIG.max_thought
