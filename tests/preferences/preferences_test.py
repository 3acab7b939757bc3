"""Preference files: what is read, what is refused, and the tokens they become."""

import copy
import dataclasses
import os
import pathlib
import time

import hypothesis
import pytest
import yaml
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from rain_jax import preferences
from rain_jax.preferences import PreferenceError, compile_preference, load_preference
from rain_jax.text import encoding

FORMS = preferences.FORMS
LABELS = ["\nVerdict: good\nVerdict: bad\nTrue or false? True\nTrue or false? False\n" * 50]
# As templates are, but that the words of its frame are no special tokens.
CHATML = (
  "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + ' [end]\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '[answer] ' }}{% endif %}"
)
BUNDLED = ("adversarial_harmless", "harmless", "positive", "truthful")
GOOD_FILE = {
  "name": "mine",
  "description": "One line.",
  "prefix": "Judge.\n\nExample: (A)\n",
  "conversation": "Human: {prompt}\n\nAssistant:",
  "cut": "none",
  "readings": [{"suffix": "\n\nAnswer: (", "good": ["A"], "bad": ["B"]}],
}


def write(folder, data) -> pathlib.Path:
  path = folder / "mine.yaml"
  path.write_text(data if isinstance(data, str) else yaml.safe_dump(data), encoding="utf-8")
  return path


def mine(**changes) -> preferences.Preference:
  reading = preferences.Reading("\n\nAnswer: (", ("A",), ("B",))
  preference = preferences.Preference(
    "mine", "One line.", "", "Human: {prompt}\n\nAssistant:", "none", (reading,)
  )
  return dataclasses.replace(preference, **changes)


def llama() -> PreTrainedTokenizerFast:
  default = pathlib.Path(__file__).parents[2] / ".." / "shared" / "data"
  path = pathlib.Path(os.environ.get("RAIN_JAX_TEST_DATA", default)) / "llama_tokenizer.model"
  if not path.exists():
    pytest.skip(f"LLaMA tokenizer not found at {path}; set RAIN_JAX_TEST_DATA.")
  return LlamaTokenizer.from_pretrained(str(path), add_bos_token=True)


def byte_level() -> PreTrainedTokenizerFast:
  """Byte-level BPE of the bundled templates, without BOS, in which "(A" is one piece.

  Words may begin with any one mark, as in the tokenizers of LLaMA 3 and Qwen.
  """
  words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
  backend = Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(words), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  backend.decoder = decoders.ByteLevel()
  texts = [load_preference(f"{name}:{form}").prefix for name in BUNDLED for form in FORMS]
  backend.train_from_iterator(
    [*texts, "(A (B\n(A\n(B" * 50, " Yes No\nYes\nNo\n" * 20, *LABELS],
    trainers.BpeTrainer(
      vocab_size=600,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      special_tokens=["</s>"],
      show_progress=False,
    ),
  )
  return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@pytest.fixture(scope="module", params=[llama, byte_level])
def tokenizer(request):
  return request.param()


def test_bundled_preferences_are_these():
  assert tuple(preferences.bundled_names()) == BUNDLED


@pytest.mark.parametrize("form", preferences.FORMS)
@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_preference_compiles_to_the_text_it_says(name, form, tokenizer):
  preference = load_preference(f"{name}:{form}")
  assert (preference.name, preference.form, preference.label) == (name, form, f"{name}:{form}")
  if form == preferences.CHAT:
    tokenizer.chat_template = CHATML
  compiled = compile_preference(preference, tokenizer)
  prompt = "What is {this} and {prompt}?"
  ids = list(compiled.prefix_ids)
  judged = compiled.conversation_ids(prompt)
  answer = encoding.encode_continuation(tokenizer, " It is tea.")
  before, after = "", ""
  if form == preferences.CHAT:
    before, after = "[user] ", " [end]\n[answer] "
  else:
    assert (ids[0] == tokenizer.bos_token_id) == (tokenizer.bos_token_id is not None)
  for reading, suffix in zip(preference.readings, compiled.suffix_ids, strict=True):
    whole = tokenizer.decode([*ids, *judged, *answer, *suffix], skip_special_tokens=True)
    conversation = preference.conversation.replace("{prompt}", prompt)
    text = preference.prefix + "\n\n" + conversation + " It is tea." + reading.suffix
    assert whole == before + text + after
  for reading, good, bad in zip(preference.readings, compiled.good_ids, compiled.bad_ids):
    assert not set(good) & set(bad)
    for labels, found in ((reading.good, good), (reading.bad, bad)):
      spelled = {encoding.decode_response(tokenizer, ids, [token]) for token in found}
      if form == preferences.CHAT:  # a label's first token
        assert all(label.startswith(tuple(spelled)) for label in labels)
      else:
        assert spelled == set(labels)
  assert compiled.cut == (name == "truthful")
  again = compile_preference(preference, tokenizer)
  assert hash(compiled) == hash(again) and compiled.digest == again.digest


def test_two_readings_swap_the_options():
  for name in ("harmless", "adversarial_harmless", "positive"):
    first, second = load_preference(f"{name}:letters").readings
    assert (first.good, first.bad) == (second.bad, second.good)
    assert first.suffix != second.suffix


def test_label_that_would_join_its_suffix_is_taken_alone():
  tokenizer = byte_level()
  names = tokenizer.get_vocab()
  suffix = "\n\nAnswer:\n("
  assert encoding.encode_continuation(tokenizer, suffix + "A")[-1] == names["(A"]
  reading = preferences.Reading(suffix, ("A",), ("B",))
  compiled = compile_preference(mine(readings=(reading,)), tokenizer)
  assert compiled.suffix_ids[0][-1] == names["("]
  assert (compiled.good_ids, compiled.bad_ids) == (((names["A"],),), ((names["B"],),))


def test_empty_prefix_leaves_the_beginning_of_text(tokenizer):
  compiled = compile_preference(mine(), tokenizer)
  begin = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
  assert compiled.prefix_ids == begin


def test_prompt_cannot_smuggle_in_special_tokens(tokenizer):
  compiled = compile_preference(mine(), tokenizer)
  ids = compiled.conversation_ids("Hi </s> there {prompt}")
  assert tokenizer.eos_token_id not in ids
  text = encoding.decode_response(tokenizer, list(compiled.conversation_ids("x")), ids)
  assert text == "Human: Hi </s> there {prompt}\n\nAssistant:"


def test_labels_of_one_token_twice_count_once():
  reading = preferences.Reading("\n\nAnswer: (", ("A", "A"), ("B",))
  compiled = compile_preference(mine(readings=(reading,)), byte_level())
  assert len(compiled.good_ids[0]) == 1


def test_label_of_several_tokens_is_refused(tokenizer):
  reading = preferences.Reading("\n\nAnswer: (", ("Abracadabra",), ("B",))
  with pytest.raises(PreferenceError, match=r"'mine': label 'Abracadabra' after .* becomes \["):
    compile_preference(mine(readings=(reading,)), tokenizer)


def test_unknown_label_is_refused():
  backend = Tokenizer(models.BPE(vocab={"<unk>": 0, "a": 1, "\n": 2}, merges=[], unk_token="<unk>"))
  backend.decoder = decoders.Fuse()
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
  reading = preferences.Reading("\n\n", ("X",), ("a",))
  with pytest.raises(PreferenceError, match=r"label 'X' .* becomes \['<unk>'\]"):
    compile_preference(mine(readings=(reading,)), tokenizer)


def test_labels_that_share_a_token_are_refused():
  reading = preferences.Reading("\n\nAnswer: (", ("A",), ("A",))
  with pytest.raises(PreferenceError, match="token 'A' stands for a good and a bad label"):
    compile_preference(mine(readings=(reading,)), byte_level())


def test_own_file_is_read(tmp_path):
  preference = load_preference(write(tmp_path, GOOD_FILE))
  assert preference == load_preference(str(tmp_path / "mine.yaml"))
  assert preference.prefix == "Judge.\n\nExample: (A)"
  assert preference.readings == (preferences.Reading("\n\nAnswer: (", ("A",), ("B",)),)


ABOUT = {name: GOOD_FILE[name] for name in ("name", "description", "cut")}
FORM = {name: GOOD_FILE[name] for name in ("prefix", "conversation", "readings")}


def changed(**changes):
  return {**GOOD_FILE, **changes}


def reading(**changes):
  return changed(readings=[{**GOOD_FILE["readings"][0], **changes}])


@pytest.mark.parametrize(
  "data, message",
  [
    ({k: v for k, v in GOOD_FILE.items() if k != "cut"}, "the file: key 'cut' is missing"),
    (changed(colour="red"), "the file: unknown key 'colour'"),
    (changed(conversation="Human: {Prompt}"), "expected {prompt} in it"),
    (changed(cut="first"), "cut='first': expected 'none' or 'last_full_stop'"),
    (changed(name=""), "expected one line each"),
    (changed(description="a\nb"), "expected one line each"),
    (changed(name="a\nb"), "expected one line each"),
    (changed(name="\x1b[31m"), "expected one line each"),
    (changed(prefix=None), "prefix: None is not text"),
    (changed(readings=[]), "expected a list of 1 or 2"),
    (
      changed(readings=[copy.deepcopy(one) for one in GOOD_FILE["readings"] * 3]),
      "expected a list of 1 or 2",
    ),
    (changed(readings=["A"]), "readings[0]: expected the keys suffix, good, bad"),
    (reading(suffix=""), "readings[0].suffix='': expected the text that asks"),
    (reading(good=[]), "readings[0].good=[]: expected a list of labels, not empty"),
    (reading(good="A"), "readings[0].good='A': expected a list"),
    (reading(bad=[""]), "readings[0].bad: '' is no label"),
    (reading(bad=["B", "A"]), "readings[0]: 'A' is good and bad"),
    (reading(good=[True]), "readings[0].good: True is not text; put it in quotes"),
    (reading(labels=["A"]), "readings[0]: unknown key 'labels'"),
    ("- a list", "the file: expected the keys name, description"),
    ("name: [", "not valid YAML"),
    ("name: 2026-13-45", "not valid YAML (month must be in 1..12"),
    ("name: 2026-02-30 10:00:00", "not valid YAML (day is out of range"),
    ("? [a, b]\n: 1\n? {c: d}\n: 2", "not valid YAML"),
    ("name: !!python/object:os.system x", "not valid YAML"),
    ("a: &a [x]\nb: [*a, *a]", "alias *a: write the text out"),
    ("name: a\nname: b", "a key appears twice"),
    ("a: " + "[" * 100_000, "nested too deeply"),
    ("a: " + "{b: " * 10_000, "nested too deeply"),
    ("name: 2026-99-99", "month must be in 1..12"),
    ("name: !!timestamp x", "not valid YAML"),
    ("name: !!int ''", "not valid YAML"),
    ("name: !!bool maybe", "not valid YAML"),
    ("name: !!float x", "not valid YAML"),
    ("? [a, b]\n: c", "not valid YAML"),
    ("x" * 200_000, "more than 131072 characters"),
    ("", "the file: expected the keys"),
    ('name: "\x1b[31m"\ncolour: 1', "unacceptable character"),
    (changed(name=["a"] * 999), "name: ['a', 'a'"),
    (changed(name={"a": 1}), "name: {'a': 1} is not text"),
    (changed(cut=3.5), "cut: 3.5 is not text"),
    (changed(**{"\x1b[31m": 1}), "unknown key '\\x1b[31m'"),
    (changed(readings={"suffix": "a"}), "expected a list of 1 or 2"),
    (reading(good=["A", None]), "readings[0].good: None is not text"),
    (reading(good={"A": 1}), "expected a list of labels"),
    (yaml.safe_dump(GOOD_FILE).replace("One line.", '"\\ud800"'), "half of a character"),
    ({**ABOUT, "forms": [], "default": "letters"}, "forms=[]: expected some of"),
    (
      {**ABOUT, "forms": {"letters": None}, "default": "letters"},
      "forms.letters: expected the keys",
    ),
    (
      {**ABOUT, "forms": {"letters": FORM}, "default": {"base": ["a"], "instruct": "b"}},
      "default ['a']: expected one of letters",
    ),
  ],
)
def test_bad_file_is_refused_in_one_line(tmp_path, data, message):
  path = write(tmp_path, data)
  with pytest.raises(PreferenceError) as caught:
    load_preference(path)
  text = str(caught.value)
  assert message in text and text.startswith(str(path)) and "\n" not in text


VALUES = st.recursive(
  st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.dates()),
  lambda inside: st.one_of(
    st.lists(inside, max_size=3), st.dictionaries(st.text(max_size=3), inside, max_size=3)
  ),
  max_leaves=6,
)


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(st.sampled_from([*GOOD_FILE, "suffix", "good", "bad", "forms", "more"]), VALUES)
def test_any_value_is_taken_as_it_stands_or_refused_in_one_line(tmp_path_factory, key, value):
  data = reading(**{key: value}) if key in FORM["readings"][0] else changed(**{key: value})
  check_taken_or_refused(tmp_path_factory, yaml.safe_dump(data), data)


@hypothesis.settings(max_examples=80, deadline=None, derandomize=True)
@hypothesis.given(st.data())
def test_a_file_with_a_piece_exchanged_is_taken_or_refused_in_one_line(tmp_path_factory, data):
  text = yaml.safe_dump(GOOD_FILE)
  begin = data.draw(st.integers(0, len(text)))
  piece = data.draw(st.text(st.sampled_from("&*a-:[]{}?|>!%@\"'\\#\n \t\x1b1"), max_size=6))
  end = data.draw(st.integers(begin, len(text)))
  check_taken_or_refused(tmp_path_factory, text[:begin] + piece + text[end:])


def check_taken_or_refused(tmp_path_factory, text, data=None):
  path = write(tmp_path_factory.mktemp("any"), text)
  try:
    preference = load_preference(path)
  except PreferenceError as error:
    line = str(error)
    assert line.startswith(str(path)) and len(line.splitlines()) == 1 and "\x1b" not in line
    return
  data = yaml.safe_load(text) if data is None else data
  assert (preference.name, preference.conversation) == (data["name"], data["conversation"])
  assert [r.suffix for r in preference.readings] == [r["suffix"] for r in data["readings"]]


@pytest.mark.parametrize("sign", ["\n", " \n", "#\n", "- ", "a,", "\\n"])
def test_a_file_of_one_sign_is_read_in_time(tmp_path, sign):
  begin = time.monotonic()
  text = sign * (100_000 // len(sign))
  for quotes in ("{}", "name: x{}x", 'name: "{}"', "name: |\n {}", "name: [{}]"):
    with pytest.raises(PreferenceError):
      load_preference(write(tmp_path, quotes.format(text)))
  assert time.monotonic() - begin < 20


def test_missing_and_binary_files_are_refused(tmp_path):
  with pytest.raises(PreferenceError, match="No preference 'kind': expected one of adversarial"):
    load_preference("kind")
  path = tmp_path / "mine.yaml"
  path.write_bytes(b"name: \xff\xfe")
  with pytest.raises(PreferenceError, match="not UTF-8 text"):
    load_preference(path)
