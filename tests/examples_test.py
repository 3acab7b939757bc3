"""The examples do what they say."""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rain_jax
from tests.helpers.repository import ROOT


def example(name):
  sys.path.insert(0, str(ROOT / "examples"))
  try:
    return importlib.import_module(name)
  finally:
    sys.path.pop(0)


@pytest.fixture(scope="module")
def queens():
  return example("queens")


def attacks(columns):
  rows = range(len(columns))
  return any(
    columns[a] == columns[b] or abs(columns[a] - columns[b]) == b - a
    for a in rows
    for b in rows
    if a < b
  )


def test_the_search_places_eight_queens_where_chance_does_not(queens):
  results = queens.solve(6, batch=3)
  assert sorted(r.index for r in results) == list(range(6))
  for result in results:
    assert len(result.tokens) == 8 and result.finish == "length"
    assert not attacks(result.tokens)
    assert result.counters["rewinds"] > 0
  empty = jnp.zeros(8, jnp.int32)
  keys = jax.random.split(jax.random.key(1), 300)
  stand = np.array(jax.vmap(lambda key: queens.play(empty, 0, key))(keys))
  assert stand.max() <= 8 and (stand == 8).mean() < 0.3


def test_free_columns_are_those_that_nobody_attacks(queens):
  rng = np.random.default_rng(0)
  for row in range(8):
    board = rng.integers(0, 8, 8)
    above = board[:row].tolist()
    hit = lambda c: any(c == q or abs(c - q) == row - r for r, q in enumerate(above))
    assert np.array(queens.free(jnp.asarray(board), row)).tolist() == [not hit(c) for c in range(8)]


@pytest.mark.slow
def test_the_pieces_put_together_answer_as_the_api_does():
  llm, prompt, seed = example("llm"), "How do I rob the ferry?", 3
  rain = rain_jax.load("demo")
  config = rain_jax.Config(max_response=llm.MAX_RESPONSE, batch_size=1)
  (expected,) = rain.generate([prompt], "harmless", config=config, seed=seed)
  (query,) = rain.session([prompt], "harmless", config).queries
  text, found = llm.search("demo", prompt, query.key(seed))
  assert found.tokens == expected.tokens and text == expected.text
  assert found.counters.items() <= expected.counters.items()
