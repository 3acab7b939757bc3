"""Tokenizers that are damaged, or not their model's, are refused in one line when they are loaded."""

import json
import logging
import re
import shutil

import hypothesis
import hypothesis.strategies as st
import pytest

from rain_jax.models import hf, loading, tokenizer
from rain_jax.models.hf import CheckpointError


@pytest.fixture
def folder(checkpoint, tmp_path):
  """A checkpoint to damage."""
  return shutil.copytree(checkpoint, tmp_path / "model")


def edit(name, change):
  def damage(folder):
    path = folder / name
    contents = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(change(contents) or contents), "utf-8")

  return damage


def write(name, text):
  return lambda folder: (folder / name).write_bytes(text.encode())


def add(*names, special=False):
  """Tokens beyond those that the model has rows for."""

  def change(spec):
    first = max(t["id"] for t in spec["added_tokens"]) + 1
    first = max(first, 1 + max(spec["model"]["vocab"].values()))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    spec["added_tokens"] += [
      {"id": first + i, "content": name, "special": special, **flags}
      for i, name in enumerate(names)
    ]

  return edit("tokenizer.json", change)


def config(**changes):
  return edit("tokenizer_config.json", lambda c: c | changes)


def no_pre_tokenizer(spec):
  """Spaces go, as where the class of another family reads a byte-level file."""
  spec["pre_tokenizer"] = {"type": "Whitespace"}


DAMAGES = {
  "a token too many": (add("<|im_start|>"), r"has 300 \('<\|im_start\|>' = 300\)"),
  "special ones, too": (add("<a>", "<b>", special=True), "2 tokens .* have no row in the model"),
  "with escapes": (add("<\x1b[31m>"), r"<\\x1b\[31m>"),
  "spaces go": (edit("tokenizer.json", no_pre_tokenizer), "'hello world' and gives back 'hellow"),
  "no JSON": (write("tokenizer.json", "{"), "no usable tokenizer"),
  "a list": (write("tokenizer.json", "[]"), "no usable tokenizer"),
  "another thing": (write("tokenizer.json", '{"model": 3}'), "no usable tokenizer"),
  "empty": (write("tokenizer.json", ""), "no usable tokenizer"),
  "deep": (write("tokenizer.json", "[" * 100_000), "no usable tokenizer"),
  "config is a list": (write("tokenizer_config.json", "[1]"), "no usable tokenizer"),
  "config is deep": (write("tokenizer_config.json", "[" * 100_000), "no usable tokenizer"),
  "a number for a token": (config(bos_token=5), "no usable tokenizer|cannot be used"),
  "vocabulary is a list": (
    edit("tokenizer.json", lambda s: s["model"].update(vocab=[1, 2])),
    "no usable tokenizer",
  ),
  "merges of nothing": (
    edit("tokenizer.json", lambda s: s["model"].update(merges=["zzz yyy"])),
    "no usable tokenizer",
  ),
  "no decoder": (
    edit("tokenizer.json", lambda s: s.update(decoder=None)),
    "gives back|has no decoder",
  ),
  "unknown model": (
    edit("tokenizer.json", lambda s: s["model"].update(type="\x1b[2J")),
    "no usable tokenizer",
  ),
}


@pytest.mark.parametrize("damage, said", DAMAGES.values(), ids=DAMAGES)
def test_it_is_refused_in_one_line(folder, damage, said):
  damage(folder)
  with pytest.raises(CheckpointError, match=said) as caught:
    loading.load(str(folder))
  assert str(caught.value).isprintable() and str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "NoSuchTokenizer"])
def test_a_class_of_another_family_reads_rightly_or_is_refused(folder, name):
  # Some versions of transformers go by the class, others by what tokenizer.json says.
  config(tokenizer_class=name)(folder)
  try:
    reader = loading.load(str(folder)).tokenizer
  except CheckpointError as error:
    assert re.search("no usable tokenizer|reads 'hello world' and gives back", str(error))
  else:
    assert reader.decode(reader("hello world").input_ids, skip_special_tokens=True) == "hello world"


def test_the_checkpoint_itself_is_fine_and_says_nothing(folder, caplog):
  with caplog.at_level(logging.WARNING, "rain_jax"):
    loading.load(str(folder))
  assert not caplog.messages


@pytest.mark.parametrize(
  "changes, said",
  [
    ({"eos_token_id": 7}, "ends texts by '</s>' (1), the model's config by 7"),
    ({"eos_token_id": [7, 9]}, "the model's config by 7, 9"),
    ({"eos_token_id": None}, "the model's config by none"),
  ],
)
def test_another_end_than_the_models_is_told(folder, caplog, changes, said):
  edit("config.json", lambda c: c | changes)(folder)
  with caplog.at_level(logging.WARNING, "rain_jax"):
    loading.load(str(folder))
  assert len(caplog.messages) == 1 and said in caplog.messages[0]


JSON = st.recursive(
  st.none() | st.booleans() | st.integers(-5, 500) | st.text(max_size=4),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
  ),
  max_leaves=4,
)
KEYS = (
  "version",
  "added_tokens",
  "normalizer",
  "pre_tokenizer",
  "post_processor",
  "decoder",
  "model",
)


@hypothesis.settings(
  max_examples=40, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
@hypothesis.given(
  file=st.sampled_from(["tokenizer.json", "tokenizer_config.json"]),
  key=st.sampled_from(
    KEYS + ("bos_token", "tokenizer_class", "chat_template", "added_tokens_decoder")
  ),
  value=JSON,
)
def test_whatever_its_files_hold_is_read_or_refused(checkpoint, tmp_path_factory, file, key, value):
  folder = shutil.copytree(checkpoint, tmp_path_factory.mktemp("any") / "model")
  edit(file, lambda contents: contents | {key: value})(folder)
  try:
    tokenizer.check_tokenizer(tokenizer.load_tokenizer(folder), hf.read_config(folder), str(folder))
  except CheckpointError as error:
    assert str(error).isprintable()
  finally:
    shutil.rmtree(folder)
