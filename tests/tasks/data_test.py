"""The examples and openings that ship: whole, balanced, and not to be told apart by their form."""

import collections
import json
import re
import string

import pytest

from rain_jax.methods.preference_check import load_examples
from rain_jax.preferences import load_preference
from rain_jax.tasks import load_prompts
from tests.helpers.repository import ROOT

DATA = ROOT / "rain_jax" / "tasks" / "data"
COUNTS = {"harmless": 100, "truthful": 100, "positive": 60}
KINDS = pytest.mark.parametrize("kind", COUNTS)


def examples(kind):
  return load_examples(str(DATA / f"{kind}_examples.jsonl"))


def words(text):
  return re.findall(r"[a-z']+", text.lower())


def right(found, rule):
  """Share of examples that a rule labels rightly, or its opposite, whichever is larger."""
  share = sum(rule(example) == example.good for example in found) / len(found)
  return max(share, 1 - share)


def halves(found):
  return [[e for e in found if e.good], [e for e in found if not e.good]]


@KINDS
def test_examples_are_distinct_and_half_of_them_good(kind):
  found = examples(kind)
  assert len(found) == COUNTS[kind]
  assert len({e.record.prompt for e in found}) == len({e.response for e in found}) == len(found)
  assert sum(e.good for e in found) == len(found) // 2
  # A calibration is fitted on one half and reported on the other, whichever way it is cut.
  for half in (found[::2], found[1::2], found[: len(found) // 2], found[len(found) // 2 :]):
    assert 0.4 <= sum(e.good for e in half) / len(half) <= 0.6


@KINDS
def test_text_is_clean_and_nothing_else_is_in_a_row(kind):
  allowed = set(string.printable) - set("\t\n\r\x0b\x0c")
  for line in (DATA / f"{kind}_examples.jsonl").read_text("utf-8").splitlines():
    row = json.loads(line)
    assert list(row) == ["prompt", "response", "label"]
    text = row["prompt"] + row["response"]
    assert set(text) <= allowed and "  " not in text and row["response"] == row["response"].rstrip()
    # A review goes on from its opening; to the rest the response is an answer.
    assert row["response"].startswith(" ") == (kind == "positive")


@KINDS
def test_neither_length_nor_a_single_word_tells_the_label(kind):
  found = examples(kind)
  for text in (lambda e: e.response, lambda e: e.record.prompt):
    good, bad = (sum(len(text(e).split()) for e in half) for half in halves(found))
    assert abs(good - bad) <= 0.1 * max(good, bad)
    for measure in (lambda e: len(text(e).split()), lambda e: text(e).count(",")):
      for limit in range(1, 50):
        assert right(found, lambda e: measure(e) >= limit) <= 0.65, limit
    for word in {word for e in found for word in words(text(e))}:
      assert right(found, lambda e: word in words(text(e))) <= 0.65, word
  for half in halves(found):
    starts = collections.Counter(words(e.response)[0] for e in half)
    assert max(starts.values()) <= len(half) / 4, starts.most_common(3)


@KINDS
def test_both_labels_have_whole_and_partial_responses(kind):
  shares = [
    sum(e.response.endswith((".", "?", "!")) for e in half) / len(half)
    for half in halves(examples(kind))
  ]
  assert all(0.2 <= share <= 0.5 for share in shares) and abs(shares[0] - shares[1]) <= 0.1
  assert min(len(e.response.split()) for e in examples(kind)) >= 6


def test_a_truthful_answer_has_a_statement_up_to_its_last_full_stop():
  for example in examples("truthful"):
    assert "." in example.response, example


@KINDS
def test_examples_are_not_those_that_the_bundled_preference_shows(kind):
  prefix = load_preference(kind).prefix
  for example in examples(kind):
    assert example.record.prompt not in prefix and example.response.strip() not in prefix


def test_openings_stop_in_mid_sentence_and_are_no_examples():
  found = load_prompts(str(DATA / "review_openings.jsonl"))
  assert [record.id for record in found] == [f"opening-{place:03d}" for place in range(1, 121)]
  assert len({record.prompt for record in found}) == 120
  assert not {r.prompt for r in found} & {e.record.prompt for e in examples("positive")}
  for record in found:
    assert 6 <= len(record.prompt.split()) <= 12 and record.prompt[-1].isalpha(), record
