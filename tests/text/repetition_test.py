"""Repeated sentences and runs of words are found, whatever their case, and nothing else."""

import random
import re

import pytest

from rain_jax.text.repetition import distinct_2, repeated_spans, repeats

EIGHT = "the water is cold and the night long"


@pytest.mark.parametrize(
  "text, expected",
  [
    ("", False),
    ("Yes. Yes. Yes.", False),  # a word is no sentence
    ("Go away! go  AWAY!", True),
    ("Go away\nGo away", True),
    ("Go away, go away.", False),
    (f"{EIGHT}, {EIGHT}", False),  # the comma belongs to its word
    (f"{EIGHT} , {EIGHT}", True),
    ("the water is cold and the night , the water is cold and the night", False),
    ("Mr. Fox ran. The fox ran.", False),
  ],
)
def test_repeats(text, expected):
  assert repeats(text) is expected


@pytest.mark.parametrize(
  "text, expected", [("", None), ("one", None), ("one two", 1.0), ("a b a b a", 0.5)]
)
def test_distinct_pairs(text, expected):
  assert distinct_2(text) == expected


@pytest.mark.parametrize(
  "text, expected",
  [
    ("Go on. Go away. Go away! Go away.", ["Go away."]),
    (" Stay here.\n\nstay  HERE.  Why? Stay here.", ["stay  HERE.", "Stay here."]),
    ("Go away. Go away. Go away. Yes.", ["Go away. Go away."]),
    (f"{EIGHT} , so {EIGHT} ; no", [EIGHT]),
    ("a b c d e f g h i j k , b c d e f g h i j", ["b c d e f g h i j"]),
    (f"Never. {EIGHT} today. Well, {EIGHT}", [EIGHT]),
  ],
)
def test_spans_hold_what_is_said_again(text, expected):
  assert [text[begin:end] for begin, end in repeated_spans(text)] == expected


def test_spans_are_there_where_whole_sentences_or_runs_come_twice():
  def twice(parts):
    return len(set(parts)) < len(parts)

  rng = random.Random(0)
  found = set()
  for _ in range(1000):
    pieces = ["a", "b", "A", "c.", "d!", " ", "\n", "\t", "\u3000", ". ", "?\n"]
    text = "".join(rng.choice(pieces) + " " * rng.randrange(2) for _ in range(rng.randrange(24)))
    # The definition, by splitting texts.
    sentences = [tuple(s.casefold().split()) for s in re.split(r"(?<=[.!?])\s+|\n+", text)]
    words = text.casefold().split()
    runs = [tuple(words[i : i + 8]) for i in range(len(words) - 7)]
    expected = twice([s for s in sentences if len(s) > 1]) or twice(runs)
    spans = repeated_spans(text)
    assert repeats(text) is bool(spans) is expected, text
    assert all(text[begin:end].strip() == text[begin:end] != "" for begin, end in spans)
    assert all(a[1] < b[0] for a, b in zip(spans, spans[1:]))
    found.add(expected)
  assert found == {True, False}
