"""The outer loop with scripted models: slots that refill, neighbours, limits, reports."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rain_jax import decode, types
from rain_jax.methods.rain import STEPS
from rain_jax.types import NO_TOKEN
from tests.helpers import invariants, scripted, scripts
from tests.helpers.serving import (
  BATCH,
  CONFIG,
  LONGEST,
  MODEL,
  PROMPTS,
  fresh,
  in_slot,
  key_of,
  serve,
  shares_of_useful_slots,
)


@pytest.fixture(scope="module")
def params():
  return jax.tree.map(jnp.asarray, scripted.make_tables())


def started(state, prompts):
  """`state` with `prompts`, by slot, about to be answered."""
  mask = jnp.array([slot in prompts for slot in range(BATCH)])
  keys = jnp.stack([key_of(slot) for slot in range(BATCH)])
  state = decode.reset_slots(state, mask, keys, CONFIG)
  return state.replace(model=MODEL.start(state.model, prompts))


def assert_same(a, b):
  """Two pytrees, bit for bit; says which array differs."""
  for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))
    assert x.dtype == y.dtype


def stripped(result):
  return {k: v for k, v in vars(result).items() if k not in ("slot", "index")}


def test_every_prompt_is_answered_once_however_many_wait(params):
  """More prompts than slots, as many, fewer, one, none."""
  for count in (13, BATCH, 2, 1, 0):
    found, begun = serve(params, range(count))
    assert sorted(result.index for result, _ in found) == list(range(count))
    put = collections.Counter(p for new in begun for p in new.values())
    assert put == collections.Counter(PROMPTS[:count])
    assert sum(len(new) for new in begun) == count
    for result, _ in found:
      limit = PROMPTS[result.index].limit
      assert len(result.tokens) <= limit and all(t >= 0 for t in result.tokens)
      assert result.finish in ("eos", "stop", "length", "exhausted")
      assert (len(result.tokens) == limit) or result.finish != "length"
      assert result.counters["moves"] <= result.counters["iterations"] + 1
  # Slots come free and are taken again while the others go on.
  found, begun = serve(params, range(13))
  assert len(begun) > 3 and all(len(new) < BATCH for new in begun[1:])
  assert len({result.slot for result, _ in found}) == BATCH


def test_prompts_are_read_as_slots_come_free(params):
  read = []

  def queue():
    for i in range(9):
      read.append(i)
      yield i, key_of(i), PROMPTS[i]

  start = lambda state, new: state.replace(model=MODEL.start(state.model, new))
  served = decode.serve(fresh(), MODEL, params, CONFIG, queue(), start)
  for done, _ in enumerate(served):
    assert len(read) <= done + BATCH
  assert read == list(range(9))


def test_a_batch_is_fed_while_it_runs_and_gives_up_slots_that_nobody_waits_for(params):
  alone = {result.index: stripped(result) for result, _ in serve(params, range(9))[0]}
  ended, given_up, visits = {}, {2, 5}, 0

  def queue():
    for i in range(9):
      yield decode.NOT_YET
      yield i, key_of(i), PROMPTS[i]
    yield decode.NOT_YET

  start = lambda state, new: state.replace(model=MODEL.start(state.model, new))
  dropped = lambda index: index in given_up and index in seen
  seen = set()
  for results, held, state in decode.rounds(
    fresh(), MODEL, params, CONFIG, queue(), start, max_steps=1, dropped=dropped
  ):
    assert not seen & given_up & set(held.values())  # free within a step
    seen |= set(held.values())
    assert sorted(held) == np.flatnonzero(state.active).tolist()
    ended |= {result.index: stripped(result) for result in results}
    visits += 1
  assert seen >= given_up and visits > 9
  assert ended == {index: one for index, one in alone.items() if index not in given_up}


def test_a_result_is_what_its_slot_held(params):
  found, _ = serve(params, range(9))
  for result, held in found:
    length = int(held.response_length)
    assert held.response[:length].tolist() == result.tokens
    assert (held.response[length:] == NO_TOKEN).all()
    assert types.FINISH_REASONS[int(held.finish)] == result.finish
    assert not held.active
    assert {k: int(v) for k, v in vars(held.counters).items()} == result.counters
    invariants.check(held.tree)
    assert int(held.model["length"]) == length  # the model committed the same tokens


def test_a_refilled_slot_starts_anew_and_the_others_keep_still(params):
  state = started(fresh(), dict(enumerate(PROMPTS[:BATCH])))
  state = decode.advance(state, MODEL, params, CONFIG, 20)
  before = [in_slot(state, slot) for slot in range(BATCH)]
  mask = jnp.array([False, True, False, False])
  state = decode.reset_slots(state, mask, jnp.stack([key_of(i + 50) for i in range(BATCH)]), CONFIG)
  untouched = in_slot(fresh(), 1)
  for slot in range(BATCH):
    after = in_slot(state, slot)
    if slot != 1:
      assert_same(after, before[slot])
      continue
    np.testing.assert_array_equal(after.keys, jax.random.key_data(key_of(51)))
    assert after.active
    assert_same(
      after.replace(keys=untouched.keys, active=untouched.active, model=untouched.model), untouched
    )


@pytest.mark.parametrize("company", [[0, 1, 2, 3], [3, 2, 1, 0], [12, 11, 10, 5, 4, 3, 2, 1, 0]])
def test_neighbours_and_slots_do_not_matter_bit_for_bit(params, company):
  """Down to the last float of the tree that is left in the slot at the end."""
  target = 2
  (alone,), _ = serve(params, [target])
  assert alone[0].slot == 0
  found, _ = serve(params, company)
  (together,) = [pair for pair in found if pair[0].index == target]
  assert together[0].slot != 0
  assert stripped(together[0]) == stripped(alone[0])
  assert_same(together[1].tree, alone[1].tree)
  assert_same(together[1], alone[1])


def test_a_slot_used_before_gives_the_same_as_a_fresh_one(params):
  """Nothing of an earlier prompt is left over that counts; only freed entries differ."""
  (alone,), _ = serve(params, [9])
  found, _ = serve(params, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
  ((result, held),) = [pair for pair in found if pair[0].index == 9]
  assert stripped(result) == stripped(alone[0])
  assert_same(held.tree, alone[1].tree)


def test_the_key_of_a_step_comes_from_the_prompts_key_and_its_count_alone(params):
  state = started(fresh(), {1: PROMPTS[0], 3: PROMPTS[1]})
  for step in range(5):
    if step == 3:  # one that comes later counts from its own beginning
      state = decode.reset_slots(
        state, jnp.arange(BATCH) == 2, jnp.stack([key_of(60)] * BATCH), CONFIG
      )
      state = state.replace(model=MODEL.start(state.model, {2: PROMPTS[2]}))
    state = decode.advance(state, MODEL, params, CONFIG, 1)
    told = np.array(state.model["key"])
    expected = {1: (key_of(1), step), 3: (key_of(3), step), 2: (key_of(60), step - 3)}
    for slot, (key, count) in expected.items():
      if (
        count >= 0 and np.array(state.counters.iterations + state.counters.grows)[slot] == count + 1
      ):
        np.testing.assert_array_equal(
          told[slot], jax.random.key_data(jax.random.fold_in(key, count))
        )
  assert (told[[1, 2, 3]] != 0).all() and (told[0] == 0).all()


def test_max_steps_bounds_a_call_and_reports_progress(params):
  reports = []

  def report(state):
    reports.append((np.array(state.counters.steps), np.array(state.active)))

  cut, _ = serve(params, range(9), max_steps=3, on_progress=report)
  whole, _ = serve(params, range(9))
  by_index = lambda found: {r.index: stripped(r) for r, _ in found}
  assert by_index(cut) == by_index(whole)
  assert len(reports) > len(cut)
  for (before, active), (after, _) in zip(reports, reports[1:]):
    grown = (after - before)[active]  # a slot that was free may begin at 0 again
    assert ((0 <= grown) & (grown <= 3)).all()
  # Without a limit there is one report per end at most.
  few = []
  serve(params, range(9), on_progress=lambda state: few.append(state.active.sum()))
  assert len(few) <= 9 < len(reports)


def test_advance_stops_at_the_first_end_or_waits_for_all(params):
  state = started(fresh(), dict(enumerate(PROMPTS[:BATCH])))
  first = decode.advance(state, MODEL, params, CONFIG, 10_000)
  assert 0 < int(first.active.sum()) < BATCH
  steps = int(first.counters.steps.max())
  ended = ~np.asarray(first.active)
  snapshot = {s: in_slot(first, s) for s in np.flatnonzero(ended)}
  # Going on changes nothing in the slots whose responses have ended.
  state = decode.advance(first, MODEL, params, CONFIG, 10_000, wait_for_all=True)
  assert not state.active.any() and int(state.counters.steps.max()) > steps
  for slot, held in snapshot.items():
    assert_same(in_slot(state, int(slot)).tree, held.tree)
    assert_same(in_slot(state, int(slot)).counters, held.counters)
    assert_same(in_slot(state, int(slot)).response, held.response)
  # Nothing to do, nothing done.
  before = [in_slot(state, s) for s in range(BATCH)]
  state = decode.advance(state, MODEL, params, CONFIG, 10_000, wait_for_all=True)
  for slot in range(BATCH):
    assert_same(in_slot(state, slot), before[slot])


def test_a_root_without_children_ends_the_response(params):
  barren = {**params, "barren": jnp.ones_like(params["barren"])}
  found, _ = serve(barren, range(6))
  assert sorted(r.index for r, _ in found) == list(range(6))
  for result, held in found:
    assert (result.finish, result.tokens, result.counters["moves"]) == ("exhausted", [], 0)
    # All that a root may be tried, and no more.
    assert result.counters["iterations"] == CONFIG.max_iterations == int(held.tree.visits[0])


def test_a_response_may_be_one_token_long(params):
  shortest = [dataclasses.replace(p, limit=1) for p in PROMPTS]
  found, _ = serve(params, range(7), prompts=shortest)
  for result, _ in found:
    assert len(result.tokens) <= 1 and result.counters["moves"] <= 1
    assert result.finish in ("length", "eos", "stop", "exhausted")
  assert any(r.finish == "length" for r, _ in found)


def test_moves_for_want_of_room_are_counted_as_such(params):
  config = dataclasses.replace(CONFIG, max_nodes=24, max_visited=5)
  model = scripted.TableModel(config)
  state = decode.init(BATCH, model.init(BATCH), config, model.embedding_size, LONGEST)
  state = decode.reset_slots(
    state, jnp.ones(BATCH, bool), jnp.stack([key_of(i) for i in range(BATCH)]), config
  )
  state = state.replace(model=model.start(state.model, dict(enumerate(PROMPTS[:BATCH]))))
  while state.active.any():
    before = jax.tree.map(np.array, state.counters)
    was = np.array(state.active)
    state = decode.advance(state, model, params, config, 1)
    more = jax.tree.map(lambda new, old: np.array(new) - old, state.counters, before)
    # A step visits a leaf, grows a node, or gives up for want of room and moves.
    np.testing.assert_array_equal(more.iterations + more.grows + more.early_commits, was)
    early = more.early_commits > 0
    ended = np.array(state.finish) == types.EXHAUSTED
    assert (more.moves[early & ~ended] == 1).all()
    for slot in np.flatnonzero(state.active):
      invariants.check(invariants.one(jax.tree.map(np.asarray, state.tree), slot))
  assert (np.asarray(state.counters.early_commits) > 0).any()
  found, _ = serve(params, range(BATCH))
  assert all(r.counters["early_commits"] == 0 for r, _ in found)  # with room, none


def test_slots_are_busy_though_lengths_differ_tenfold(params):
  """A batch that waits for its longest member does nothing in about half of its slots."""
  useful, waiting = shares_of_useful_slots(params, fresh(), 100, STEPS)
  assert useful >= 0.85 and waiting < 0.7, (useful, waiting)


@pytest.mark.slow
def test_slots_on_eight_devices_are_busy_though_lengths_differ_tenfold():
  scripts.on_eight_devices("parallel/decode_sharded.py")
