"""The adaptive mode against a plain program of it, with scripted models; slots and neighbours."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rain_jax import decode, types
from rain_jax.methods.adaptive import with_drafts
from tests.helpers import adaptive_oracle, invariants, scripted, scripted_drafts

BATCH, COUNT = 32, 500
MODEL, CONFIG = scripted_drafts.MODEL, scripted_drafts.MODEL.config
PROMPTS = scripted.make_prompts(COUNT, seed=7, shortest=2, longest=MODEL.longest)
# Ours -> the plain program's.
COUNTERS = dict(
  steps="steps",
  iterations="iterations",
  moves="moves",
  rewinds="rewinds",
  grows="grows",
  joined="joined",
  similarity_updates="similarity_update",
  duplicates="duplicate_dropped",
  revisits="finished_revisited",
  drafts="drafts",
  taken_back="taken_back",
  searched_moves="searched_moves",
  kept_best="kept_best",
)


def answer(order, batch=BATCH, model=MODEL):
  """The library's responses by prompt, begun in `order`, each with what its slot holds at the end."""
  with jax.enable_x64(True):
    params = jax.tree.map(jnp.asarray, scripted_drafts.make_tables())
    config = model.config
    state = decode.init(batch, model.init(batch), config, model.embedding_size, model.longest)
    key = jax.random.key(0)
    queue = [(i, jax.random.fold_in(key, i), PROMPTS[i]) for i in order]
    start = lambda state, new: state.replace(model=model.start(state.model, new))
    served = decode.serve(state, model, params, config, queue, start)
    host = lambda state, slot: jax.tree.map(
      lambda a: np.array(np.asarray(a)[slot]), state.replace(keys=jax.random.key_data(state.keys))
    )
    return {result.index: (result, host(state, result.slot)) for result, state in served}


@pytest.fixture(scope="module")
def found():
  return answer(range(COUNT))


def planned(config):
  tables = scripted_drafts.make_tables()
  scripts = [scripted_drafts.Script(tables, prompt, config) for prompt in PROMPTS]
  return [adaptive_oracle.Adaptive(script, config).run() for script in scripts]


@pytest.fixture(scope="module")
def plain():
  return planned(CONFIG)


def test_same_responses_as_the_plain_program(found, plain):
  check(found, plain)


def test_without_a_search_the_best_draft_stands_in_its_place():
  config = with_drafts(dataclasses.replace(CONFIG, search_below=-1.0))
  own = planned(config)
  check(answer(range(COUNT), model=dataclasses.replace(MODEL, config=config)), own)
  count = sum((one.count for one in own), collections.Counter())
  assert count["iterations"] == 0 < min(count["taken_back"], count["kept_though_taken_back"])
  assert config.max_nodes < CONFIG.max_nodes  # nor is there room for a tree


def check(found, plain):
  torn = 0
  for i, own in enumerate(plain):
    result, held = found[i]
    pairs = {ours: (result.counters[ours], own.count[theirs]) for ours, theirs in COUNTERS.items()}
    pairs["tokens"] = result.tokens, [token for piece in own.pieces for token in piece]
    pairs["finish"] = result.finish, own.finish
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if different and min(own.gaps.values(), default=1.0) < 1e-9:
      torn += 1  # a tie but for rounding
      continue
    assert not different, (i, PROMPTS[i], different)
    length = len(result.tokens)
    assert held.response[:length].tolist() == result.tokens
    assert (held.response[length:] == types.NO_TOKEN).all()
    assert int(held.model["length"]) == length  # the model went back, too
    invariants.check(held.tree)
  assert torn <= 0.01 * COUNT


def test_every_branch_was_taken(plain):
  count = sum((own.count for own in plain), collections.Counter())
  assert not [branch for branch in adaptive_oracle.BRANCHES if count[branch] == 0]


def test_slots_and_neighbours_do_not_matter(found):
  """Down to what is left in the slot at the end; the keys of a step are among it."""
  some = np.random.default_rng(0).permutation(60).tolist()
  again = answer(some)
  slots = [(found[i][0].slot, again[i][0].slot) for i in some]
  assert sum(one != other for one, other in slots) > 30
  for i in some:
    one, other = (dataclasses.replace(answers[i][0], slot=0) for answers in (found, again))
    assert one == other
    for name in ("response", "counters", "revocable"):
      jax.tree.map(
        np.testing.assert_array_equal, getattr(found[i][1], name), getattr(again[i][1], name)
      )
