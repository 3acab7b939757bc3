"""Verdicts by a model of another tokenizer: what torch reads of the same texts."""

import copy
import dataclasses
import functools

import jax
import numpy as np
import pytest
import tokenizers

from rain_jax import api, types
from rain_jax.judges import models
from rain_jax.methods import preference_check, recording
from rain_jax.methods.session import Session
from rain_jax.models import hf, loading
from rain_jax.models.cache import Paths
from rain_jax.policy import translation
from rain_jax.policy.translation import Translation
from rain_jax.policy.usage import VERDICT
from rain_jax.preferences import PreferenceError, guard, load_preference
from rain_jax.preferences.calibration import Calibration
from rain_jax.runs import job
from rain_jax.tasks import Record
from rain_jax.types import DataError
from tests.helpers import checkpoints, results
from tests.helpers.small_runs import API_CONFIG, CONFIG

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = "the cat, sat. on a mat; and: then? it was gone far away to see us all again Yes No"
LABELS = ("safe", "unsafe")
PROMPTS = ["the cat sat", "was it then?"]


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
  """A tiny random model that writes ASCII."""
  folder = tmp_path_factory.mktemp("writer")
  tokenizer = checkpoints.byte_bpe(150, [WORDS] * 4, ascii=True)
  model, config = checkpoints.llama(tokenizer, 2048)
  hf.save(folder, config, model.params)
  tokenizer.save_pretrained(folder)
  return loading.load(str(folder))


SHAPE = dict(
  hidden_size=48,
  intermediate_size=64,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=4096,
  initializer_range=0.2,
)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
  """A tiny random model of another tokenizer, and the margins that torch finds in its answers."""
  folder = tmp_path_factory.mktemp("judge")
  texts = [f"{WORDS} safe unsafe Human: Assistant: Agent: User:".upper() + " safe unsafe"] * 4
  tokenizer = checkpoints.byte_bpe(340, texts, (*checkpoints.SPECIAL, *checkpoints.CHAT))
  torch.manual_seed(0)
  theirs = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=len(tokenizer),
      **SHAPE,
      pad_token_id=0,
      eos_token_id=1,
    )
  ).eval()
  with torch.no_grad():  # to the labels it says much, and now this, now that
    first = lambda label: tokenizer(label, add_special_tokens=False).input_ids[0]
    labels = [first(label) for label in ("A", "B", *LABELS)]
    theirs.lm_head.weight[labels] *= 12
  theirs.save_pretrained(folder)
  tokenizer.save_pretrained(folder)

  def margins(compiled, prompt, response):
    """float[readings] of the response as it stands after the prompt."""
    said = f" {response.strip()}" if response.strip() else ""
    ids = tokenizer(said, add_special_tokens=False).input_ids
    text = [*compiled.prefix_ids, *compiled.conversation_ids(prompt), *ids]
    found = []
    readings = zip(compiled.suffix_ids, compiled.good_ids, compiled.bad_ids, strict=True)
    for suffix, good, bad in readings:
      with torch.no_grad():
        chances = theirs(torch.tensor([[*text, *suffix]])).logits[0, -1].softmax(-1)
      found.append((chances[list(good)].max() - chances[list(bad)].max()).item())
    return found

  return loading.load(str(folder)), margins


def config_of():
  return dataclasses.replace(API_CONFIG, soft_verdicts=True)


def session_of(loaded):
  settings = api.make_session_config("harmless", config_of(), loaded.judging.tokenizer)
  return Session(loaded, settings, [Record(str(i), prompt) for i, prompt in enumerate(PROMPTS)])


def test_the_texts_of_a_tree_are_read_whole_after_their_prompts(writer, judge):
  other, margins = judge
  session = session_of(writer.judged_by(other))
  lm, params, L = session.lm, session.params, session.config.search.max_set_length
  state, start = lm.init(2, params), jax.jit(lm.start)
  sides = [session.prompts(session.queries, side) for side in ("proposing", "evaluating")]
  for slot in range(2):
    state = start(params, state, slot, *jax.tree.map(lambda a, i=slot: a[i], sides))
  assert state.evaluating.pooled.shape == (2, 1)  # nothing is kept of what may be tokenised anew

  def rows(texts, size):
    """Tokens of texts with their lengths."""
    ids = [writer.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    padded = np.array([(one + [types.NO_TOKEN] * size)[:size] for one in ids], np.int32)
    return padded, np.array(list(map(len, ids)), np.int32)

  said, nodes, tails = (
    [" the cat", " was"],
    [" sat", "", " on"] * 2,
    ["", "? Gone", " a mat, it"] * 2,
  )
  tokens, length = rows(said, L)
  pages, running = (np.full(2, value, np.int32) for value in (types.NO_PAGE, types.RUNNING))
  commit = types.Commit(np.ones(2, bool), pages, tokens, length, running)
  state = lm.commit(params, state, commit)
  (on_path, lengths), (tail, ends) = rows(nodes, L), rows(tails, lm.max_response)
  paths = Paths(
    pages=np.zeros((2, 3, 1), np.int32),
    tokens=on_path.reshape(2, 3, 1, L),
    lengths=lengths.reshape(2, 3, 1),
    tail=tail.reshape(2, 3, -1),
  )
  judged = (np.repeat(length, 3) + lengths + ends).reshape(2, 3)
  judged[1, 2] -= 1
  asked = np.array([[True, True, True], [True, False, True]])
  read = jax.jit(functools.partial(translation.read_verdicts, lm))
  found = read(params, state, paths, judged, asked, state.usage)
  texts = [said[i // 3] + nodes[i] + tails[i] for i in range(6)]
  last = writer.tokenizer.decode(tail[5][ends[5] - 1])
  texts[5] = texts[5].removesuffix(last)
  compiled, size = lm.preference, 0
  for i in np.flatnonzero(asked.ravel()):
    want = margins(compiled, PROMPTS[i // 3], texts[i])
    np.testing.assert_allclose(found.margins[i // 3, i % 3], want, atol=1e-4)
    assert np.abs(want).max() > 0.001
    size += len(other.tokenizer(texts[i], add_special_tokens=False).input_ids)
    size += sum(map(len, compiled.suffix_ids))
  spent = found.usage.tokens - state.usage.tokens
  assert spent[:, VERDICT].sum() == size == spent.sum()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rain", "adaptive", "segments"])
def test_a_search_believes_what_torch_reads(writer, judge, method):
  other, margins = judge
  loaded = writer.judged_by(other)
  compiled = session_of(loaded).preference
  check_search(api.Rain(loaded), method, config_of(), functools.partial(margins, compiled))


def check_search(rain, method, config, margins):
  """That a search has verdicts which are the mean of `margins` of prompt and text."""
  record = method != "segments"
  answers = rain.generate(PROMPTS, "harmless", method, config, record=record)
  for prompt, answer in zip(PROMPTS, answers, strict=True):
    assert answer.error is None
    value = np.mean(margins(prompt, answer.text))
    assert answer.verdict == pytest.approx(value, abs=1e-4)
    assert answer.counters["tokens_verdict"] > answer.counters["verdicts_read"] > 0
    if not record:
      continue
    search, found, want = answer.recording, [], []
    for visit in (visit for frame in search.frames for visit in frame.visits):
      before = "".join(search.nodes[n].text for n in recording.path(search.nodes, visit.node))
      text = before + visit.rollout
      if visit.finish != "stop" and text:  # of nothing, templates make something else
        found.append(visit.verdict)
        want.append(np.mean(margins(prompt, text)))
    np.testing.assert_allclose(found, want, atol=1e-4)
    assert len(want) > 4 and np.std(want) > 0.001


def test_a_guard_reads_its_own_prompt(writer, judge, tmp_path):
  other, margins = judge
  loaded = writer.judged_by(other, guard=True)
  compiled = session_of(loaded).preference
  conversation = compiled.conversation_ids("hi", ["who?", "me."], "Be kind.")
  whole = [*compiled.prefix_ids, *conversation, *compiled.suffix_ids[0]]
  said = "User: Be kind.\n\nwho?\n\nAgent: me.\n\nUser: hi\n\nAgent:"
  assert other.tokenizer.decode(whole) == guard.TEMPLATE.replace("{conversation}", said)
  assert not set(other.tokenizer.convert_tokens_to_ids(list(checkpoints.CHAT))) - set(whole)
  # The judge of that name reads the same.
  ids = other.tokenizer(" It is, yes", add_special_tokens=False).input_ids
  whole = [*compiled.prefix_ids, *conversation, *ids, *compiled.suffix_ids[0]]
  record = Record("0", "hi", {}, ("who?", "me."), "Be kind.")
  form = models.FORMS["llama_guard"]
  assert models.prompt_ids(form, other.tokenizer, record, "It is, yes") == whole
  labels = [other.tokenizer(label, add_special_tokens=False).input_ids[0] for label in LABELS]
  assert [*compiled.good_ids, *compiled.bad_ids] == [(label,) for label in labels]
  assert session_of(loaded).aligned_with.endswith(f", guarded by {other.name}")
  prompts = tmp_path / "prompts.txt"
  prompts.write_text("\n".join(PROMPTS))
  printed = []
  run = CONFIG | {
    "model": CONFIG["model"] | {"path": writer.name},
    "verdict": {"model": other.name, "kind": "guard"},
    "prompts": CONFIG["prompts"] | {"path": str(prompts)},
    "methods": ("best_of_n",),
    "best_of_n": {"samples": 3},
    "soft_verdicts": True,
  }
  job.run(run, str(tmp_path / "run"), printed.append)
  found = results.once(tmp_path / "run")
  verdicts = [one["verdict"] for one in found]
  want = [margins(compiled, one["prompt"], one["response"])[0] for one in found]
  np.testing.assert_allclose(verdicts, want, atol=1e-4)
  assert len(want) == 2 and np.ptp(want) > 0.01
  assert f"by {other.name} (guard): no self-evaluation" in "\n".join(printed)
  rain = api.load(writer.name, verdict=other.name, verdict_kind="guard")
  answers = rain.generate(PROMPTS, method="best_of_n", config=config_of())
  want = [margins(compiled, one.record.prompt, one.text)[0] for one in answers]
  np.testing.assert_allclose([one.verdict for one in answers], want, atol=1e-4)


def test_examples_are_checked_in_the_other_models_tokens(writer, judge):
  other, margins = judge
  loaded = writer.judged_by(other)
  examples = [
    preference_check.Example(Record(str(i), prompt), response, i % 2 == 0)
    for i, (prompt, response) in enumerate(
      zip(PROMPTS * 2, ["Yes.", " on a mat", "No", "gone; No"])
    )
  ]
  session = session_of(loaded)
  found = preference_check.check(loaded, session.config, examples)
  said = [(example.record.prompt, example.response) for example in examples]
  want = [margins(session.preference, *pair) for pair in said]
  np.testing.assert_allclose(found.answers.margins, want, atol=1e-4)
  assert np.std(want) > 0.01 and found.calibration.fingerprint == other.fingerprint


@pytest.mark.slow
def test_a_search_believes_the_scores_of_another_tokenizer(writer, scorer, tmp_path):
  folder, score = scorer(SPACES)
  path, session = tmp_path / "reward.yaml", session_of(writer.judged_by(load_scorer(folder)))
  fitted = Calibration(
    *("", session.loaded.judging.fingerprint, session.config.preference.label),
    *(session.preference.digest, "", (0.1,), (0.5,)),
  )
  path.write_text(fitted.as_yaml())
  config = dataclasses.replace(config_of(), calibration=path)
  rain = api.load(writer.name, verdict=folder, verdict_kind="reward")
  check_search(rain, "rain", config, lambda *said: fitted.margins(np.array([score(*said)])))


# As LLaMA 3 puts turns, and as LLaMA 2 does, whose answers follow a space.
LINES = (
  "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
  "{{ m.content | trim }}<|eot_id|>{% endfor %}"
  "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SPACES = (
  "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content | trim }} [/INST]"
  "{% else %} {{ m.content | trim }} </s>{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def scorer(judge, tmp_path_factory):
  """A tiny random reward model of the judge's tokenizer: how to load it, and what torch makes of it."""
  torch.manual_seed(1)
  config = transformers.LlamaConfig(
    vocab_size=len(judge[0].tokenizer),
    **SHAPE,
    num_labels=1,
    pad_token_id=0,
    eos_token_id=1,
  )
  theirs = transformers.LlamaForSequenceClassification(config).eval()

  def saved(template):
    folder = tmp_path_factory.mktemp("scorer")
    tokenizer = copy.deepcopy(judge[0].tokenizer)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    theirs.save_pretrained(folder)

    def score(*turns):
      roles = ("user", "assistant")
      messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
      ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
      with torch.no_grad():
        return theirs(ids["input_ids"]).logits.item()

    return str(folder), score

  return saved


def load_scorer(folder):
  return loading.load(folder, scores=True)


@pytest.mark.parametrize("template", [LINES, SPACES], ids=["lines", "spaces"])
def test_scores_of_another_tokenizer_are_those_of_transformers(writer, scorer, tmp_path, template):
  folder, score = scorer(template)
  loaded = writer.judged_by(load_scorer(folder))
  said = [("the cat sat", "on a mat."), ("was it?", "No; it was gone"), ("the cat", "Yes, we all")]
  examples = [
    preference_check.Example(Record(str(i), prompt), response, i % 2 == 0)
    for i, (prompt, response) in enumerate([*said, *said])
  ]
  history = Record("1", "was it?", history=("the cat", "sat."))
  examples[1] = dataclasses.replace(examples[1], record=history)
  session = session_of(loaded)
  found = preference_check.check(loaded, session.config, examples)
  want = [score(*one.record.history, one.record.prompt, one.response) for one in examples]
  np.testing.assert_allclose(found.answers.leads[:, 0], want, atol=1e-4)
  assert np.std(want) > 0.01
  # And of what the model writes.
  path = tmp_path / "reward.yaml"
  path.write_text(found.calibration.as_yaml())
  rain = api.load(writer.name, verdict=folder, verdict_kind="reward")
  config = dataclasses.replace(config_of(), calibration=path)
  answers = rain.generate(PROMPTS, method="best_of_n", config=config)
  leads = np.array([[score(one.record.prompt, one.text)] for one in answers])
  want = found.calibration.margins(leads)[:, 0]
  np.testing.assert_allclose([one.verdict for one in answers], want, atol=1e-4)
  assert np.ptp(want) > 0.01


def test_other_tokenizers_are_told_apart(writer, judge, checkpoint):
  other, _ = judge
  assert writer.judged_by(other).translated and other.judged_by(writer).translated
  own = loading.load(str(checkpoint))
  assert not own.judged_by(own).translated and not own.translated
  spread = dataclasses.replace(writer, mesh=object()).judged_by(other)
  with pytest.raises(DataError, match="CUDA_VISIBLE_DEVICES=0") as caught:
    session_of(spread)
  assert "\n" not in str(caught.value)


def test_models_that_cannot_say_the_labels_are_no_guards():
  letters = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({"?": 0, **{c: i for i, c in enumerate("ae:\n", 1)}}, "?")
  )
  letters.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
  letters.decoder = tokenizers.decoders.Fuse()
  odd = transformers.PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="?")
  with pytest.raises(PreferenceError, match="'safe' and 'unsafe' begin with no tokens") as caught:
    guard.compile_guard(load_preference("harmless"), odd)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "before, said, read",
  [
    ("Agent:", "yes", " yes"),
    ("Agent:", " yes\n", " yes"),
    ("Agent:", "  ", ""),
    ("User\n", " yes", "yes"),
    ("</s>", " yes", "yes"),
    ("Sure", ", I can", ", I can"),
    ("Sur", "e", "e"),
  ],
)
def test_a_response_follows_what_stands_before_it(writer, judge, before, said, read):
  translated = Translation(writer.tokenizer, judge[0].tokenizer)
  last = judge[0].tokenizer(before, add_special_tokens=False).input_ids[-1]
  tokens = writer.tokenizer(said, add_special_tokens=False).input_ids
  found = translated.ids(tokens, last)
  assert judge[0].tokenizer.decode(found) == read
  rows = np.array([[tokens, tokens]], np.int32)
  ids, length = translated.texts(rows, np.array([[len(tokens), 0]]), [last])
  assert ids.shape == (1, 2, 32) and length.tolist() == [[len(found), 0]]
  assert ids[0, 0, : len(found)].tolist() == found


def test_what_takes_far_more_tokens_has_no_verdict(writer, judge):
  translated = Translation(writer.tokenizer, judge[0].tokenizer)
  word = writer.tokenizer(" gone", add_special_tokens=False).input_ids
  letters = judge[0].tokenizer(" gone", add_special_tokens=False).input_ids
  assert len(word) == 1 and len(letters) == 5 > translated.room(1)
  before = judge[0].tokenizer("a", add_special_tokens=False).input_ids[-1:]
  rows, length = np.array([[word * 2, word * 2]], np.int32), np.array([[2, 1]], np.int32)
  asked = np.array([[True, True]])
  ids, count = translated.traced(rows, length, np.array(before), asked)
  assert ids.shape == (1, 2, 8) and count.tolist() == [[translation.UNREADABLE, 5]]
  assert ids[0, 1, :5].tolist() == letters
  assert translated.traced(rows, length, np.array(before), ~asked)[1].tolist() == [[0, 0]]
