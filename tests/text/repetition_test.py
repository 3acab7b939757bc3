"""Repeated sentences and runs of words are found, whatever their case, and nothing else."""

import pytest

from rain_jax.text.repetition import distinct_2, repeats

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
