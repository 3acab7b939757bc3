"""Segment-level rejection and adaptive RAIN against plain programs that read whole texts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rain_jax import decode, types
from rain_jax.methods.segments import without_tree
from rain_jax.models import forward
from rain_jax.policy import decoding, prompts, sampling, segments, self_evaluation
from rain_jax.policy.params import Override
from rain_jax.policy.usage import CONTEXT
from rain_jax.text import scanner, vocab
from tests.helpers.tiny_lm import JUDGED, PROMPTS, R, make, padded_reader, search_all

THRESHOLD = 0.0012
SEARCH = without_tree(types.SearchConfig(draft_rows=2, draft_tries=4, draft_threshold=THRESHOLD))

ADAPTIVE = types.SearchConfig(
  mode="adaptive",
  set_lengths=(1, 2, 4),
  num_candidates=3,
  max_children=4,
  min_visits=1,
  max_iterations=4,
  extra_iterations=2,
  max_nodes=64,
  max_visited=16,
  max_path=4,
  root_rows=2,
  root_tries=2,
  max_rewinds=4,
  search_after=3,
)

SEEDS = range(2)
MORE_ENDS = range(2, 300, 5)  # tokens that are made text ends, so that segments are short
SCAN = jax.jit(scanner.advance_all)


def plain(tokenizer, lm, read, number, key):
  """The response to one prompt, its finish and counters, and the margins of what was committed."""
  search, response, finish, step = lm.search, [], "running", 0
  counters = dict.fromkeys(("drafts", "moves", "kept_best"), 0)
  margins = []
  while finish == "running":
    best, tried = (-np.inf, [], ""), 0
    while best[0] <= search.draft_threshold and tried < search.draft_tries:
      shape = search.draft_rows, min(search.draft_length or R, R)
      uniforms = jax.random.uniform(jax.random.fold_in(key, step), shape)
      step, tried = step + 1, tried + search.draft_rows
      for row in range(search.draft_rows):
        prompt, most = PROMPTS[number], search.draft_length
        drawn, why = draft(tokenizer, read, prompt, response, uniforms[row], most=most)
        value = margin(tokenizer, lm, read, JUDGED[number], response + drawn)
        best = max(best, (value, drawn, why), key=lambda one: one[0])
    counters["drafts"] += tried
    counters["moves"] += 1
    counters["kept_best"] += best[0] <= search.draft_threshold
    response, finish = response + best[1], best[2]
    margins.append(best[0])
  return response, finish, counters, margins


def draft(tokenizer, read, prompt, response, uniforms, more_ends=(), most=0):
  drawn = []
  while True:
    _, logits = read(prompt + response + drawn)
    drawn.append(int(sampling.categorical(uniforms[len(drawn)], jnp.float32(logits[-1]))[0]))
    text = tokenizer.decode(response + drawn, skip_special_tokens=True)
    if drawn[-1] == 1:
      return drawn, "eos"
    if "Human:" in text:
      return drawn, "stop"
    if len(response + drawn) >= R:
      return drawn, "length"
    if most:
      if len(drawn) == most:
        return drawn, "running"
      continue
    shown = [token for token in response + drawn if token > 1]  # that are no special tokens
    if (text and text[-1] in vocab.TEXT_ENDS) or (shown and shown[-1] in more_ends):
      return drawn, "running"


def margin(tokenizer, lm, read, judged, response):
  said = [token for token in response if token != 1]
  assert "Human:" not in tokenizer.decode(said)
  found = []
  for suffix, (good,), (bad,) in zip(
    lm.preference.suffix_ids, lm.preference.good_ids, lm.preference.bad_ids
  ):
    _, logits = read([*lm.preference.prefix_ids, *judged, *said, *suffix])
    chance = np.exp(logits[-1] - logits[-1].max())
    found.append((chance[good] - chance[bad]) / chance.sum())
  return np.mean(found)


@pytest.fixture(scope="module")
def model(bpe_tokenizer):
  return make(bpe_tokenizer, SEARCH)


@pytest.mark.parametrize("length", [0, 5])
def test_responses_are_those_of_whole_texts(bpe_tokenizer, model, length):
  lm, params = model
  if length:  # whatever ends within a draft
    lm, params = make(bpe_tokenizer, dataclasses.replace(SEARCH, draft_length=length))
  found, usage, _ = search_all(lm, params)
  read, kept = padded_reader(lm, params), 0
  for number, result in found.items():
    key = jax.random.fold_in(jax.random.key(0), number)
    response, finish, counters, margins = plain(bpe_tokenizer, lm, read, number, key)
    assert (result.tokens, result.finish) == (response, finish)
    assert {name: result.counters[name] for name in counters} == counters
    assert usage[number].verdicts_read == counters["drafts"]
    # One call for the prompt of either side, and one for what each later segment begins after.
    assert usage[number].calls[CONTEXT] == 2 + counters["moves"] - 1
    kept += counters["kept_best"]
    assert min(map(abs, np.array(margins) - SEARCH.draft_threshold)) > 1e-6  # no near tie
  moves = sum(result.counters["moves"] for result in found.values())
  assert 0 < kept < moves and moves > len(PROMPTS)  # either way of committing was taken


def test_a_step_keeps_the_types_of_its_state(bpe_tokenizer):
  """A type that changed, be it only to a weak one, would have the search compiled twice."""
  lm, params = make(bpe_tokenizer, SEARCH)
  before = jax.eval_shape(lambda: lm.empty_slots(2, params))
  step = lambda state, params: decode.step(state, lm, params, lm.search)
  after = jax.eval_shape(step, before, params)
  assert after == before
  weak = lambda state: jax.tree.map(lambda leaf: leaf.weak_type, state)
  assert weak(after) == weak(before)


@pytest.mark.slow
def test_slots_and_neighbours_do_not_matter(model):
  lm, params = model
  alone, usage_alone, _ = search_all(lm, params, batch=3, prompts=[2])
  together, usage, _ = search_all(lm, params, batch=3, prompts=[4, 2, 0, 1, 3])
  assert alone[2].tokens == together[2].tokens and alone[2].counters == together[2].counters
  np.testing.assert_array_equal(usage_alone[2].tokens, usage[2].tokens)
  failing, _, _ = search_all(lm, params, batch=3, prompts=[4, 2, 0, 1, 3], broken=[1])
  assert failing.pop(1).finish == "failed"
  assert all(failing[n].tokens == together[n].tokens for n in failing)


@pytest.mark.slow
def test_every_committed_token_is_read_once_by_either_side(bpe_tokenizer, model, monkeypatch):
  """What was drafted is not read again when it is committed, and all that is read is counted."""
  calls = []

  def counted(graphdef, params, tokens, positions, segments=(), mask=None):
    jax.debug.callback(lambda p: calls.append(int((p >= 0).sum())), positions)
    return forward(graphdef, params, tokens, positions, segments, mask)

  for module in (decoding, segments, prompts, self_evaluation):
    monkeypatch.setattr(module, "forward", counted)
  # Every draft is good: one row, one try.
  search = without_tree(types.SearchConfig(draft_rows=1, draft_tries=1, draft_threshold=-1.0))
  lm, params = make(bpe_tokenizer, search)
  found, usage, state = search_all(lm, params, batch=1, prompts=[1, 3])
  jax.block_until_ready(state)
  jax.effects_barrier()
  asked = sum(map(len, lm.preference.suffix_ids))
  for number, result in found.items():
    drafts = result.counters["drafts"]
    context, _, rolled, verdict = usage[number].tokens
    # A segment's last token is read when the next one begins; the rest while it is drafted.
    assert context + rolled == len(PROMPTS[number]) + len(JUDGED[number]) + len(result.tokens) - 1
    ended = result.finish == "eos"  # whose token no verdict reads
    assert verdict == len(result.tokens) - ended + drafts * asked
  assert sum(calls) == sum(one.tokens.sum() for one in usage.values())


def text_hash(params, tokens):
  padded = jnp.asarray(tokens + [types.NO_TOKEN] * (R - len(tokens)), jnp.int32)
  return SCAN(params["tables"], scanner.empty(()), padded).hash


def plain_adaptive(tokenizer, lm, params, read, number, key):
  """The response as far as drafts alone make it, why it ends ("search" where they do not), what was
  taken back, and how many drafts there were."""
  search, response, finish = lm.search, [], "running"
  begins, gone, step = [], [], 0
  while finish == "running":
    best, tried = (-np.inf, [], ""), 0
    while best[0] <= search.draft_threshold and tried < search.root_tries:
      uniforms = jax.random.uniform(jax.random.fold_in(key, step), (search.root_rows, R))
      step, tried = step + 1, tried + search.root_rows
      for row in range(search.root_rows):
        drawn, why = draft(tokenizer, read, PROMPTS[number], response, uniforms[row], MORE_ENDS)
        if response + drawn not in gone:
          value = margin(tokenizer, lm, read, JUDGED[number], response + drawn)
          value = float(params["override"].apply(value, text_hash(params, response + drawn)))
          best = max(best, (value, drawn, why), key=lambda one: one[0])
    if best[0] > search.draft_threshold:
      begins.append(len(response))
      response, finish = response + best[1], best[2]
    elif begins and len(gone) < search.search_after:
      gone.append(response)
      response = response[: begins.pop()]
    else:
      finish = "search"
  return response, finish, gone, step * search.root_rows


@pytest.fixture(scope="module")
def adaptive(bpe_tokenizer):
  """The model, and the responses of some seeds with the state that they leave, each in its slot.

  Half of the verdicts change their sign, so that any text may be good or bad.
  """
  lm, params = make(bpe_tokenizer, ADAPTIVE)
  params["override"] = Override(flipped=jnp.float32(0.5))
  ends = params["tables"].ends.at[jnp.asarray(MORE_ENDS)].set(True)
  params["tables"] = params["tables"].replace(ends=ends)
  return lm, params, [search_all(lm, params, len(PROMPTS), seed=seed) for seed in SEEDS]


def test_adaptive_responses_are_those_of_whole_texts(bpe_tokenizer, adaptive):
  """Drafts, and what is taken back; searches are held against whole texts by the exact mode's tests."""
  lm, params, found = adaptive
  read, whole, taken_back = padded_reader(lm, params), 0, 0
  for seed, (results, _, _) in zip(SEEDS, found):
    for number, result in results.items():
      key = jax.random.fold_in(jax.random.key(seed), number)
      response, finish, gone, drafts = plain_adaptive(bpe_tokenizer, lm, params, read, number, key)
      if finish != "search":
        assert (result.tokens, result.finish) == (response, finish)
        assert result.counters["taken_back"] == len(gone)
        assert result.counters["drafts"] == drafts
        assert result.counters["searched_moves"] == result.counters["iterations"] == 0
        whole, taken_back = whole + 1, taken_back + len(gone)
      else:
        assert result.counters["iterations"] > 0
  counters = [result.counters for results, _, _ in found for result in results.values()]
  assert whole > 2 and taken_back > 5
  assert sum(c["searched_moves"] > 0 for c in counters) > 1
  assert sum(c["searched_moves"] > 0 and c["taken_back"] > 0 for c in counters) > 1


def test_adaptive_contexts_hold_what_was_committed(bpe_tokenizer, adaptive):
  """Keys, values and text of either side, whatever was drafted, searched and taken back before."""
  lm, params, found = adaptive
  whole = jax.jit(lambda ids: forward(lm.graphdef, params["model"], ids, jnp.arange(64))[1])
  results, _, state = found[0]
  model = state.model
  text = SCAN(params["tables"], scanner.empty((len(PROMPTS),)), state.response[:, :R])
  for number, result in results.items():
    slot = result.slot
    jax.tree.map(
      lambda held, scanned: np.testing.assert_array_equal(held[slot], scanned[slot]),
      model.text,
      text,
    )
    sides = (model.proposing, [], PROMPTS), (model.evaluating, lm.preference.prefix_ids, JUDGED)
    for cache, prefix, prompts_of in sides:
      ids = [*prefix, *prompts_of[number], *result.tokens]
      length, cached = int(cache.length[slot]), int(cache.cached[slot])
      assert length == len(ids) - len(prefix)
      assert cache.tokens[slot, :length].tolist() == ids[len(prefix) :]
      assert cached >= length - lm.search.max_set_length
      fresh = whole(jnp.asarray(ids + [0] * (64 - len(ids)), jnp.int32))
      for held, read in ((cache.context.keys, fresh.keys), (cache.context.values, fresh.values)):
        read = np.asarray(read)[..., len(prefix) : len(prefix) + cached, :]
        np.testing.assert_allclose(np.asarray(held)[:, slot, :, :cached], read, atol=1e-4)


def test_adaptive_slots_and_neighbours_do_not_matter(adaptive):
  lm, params, found = adaptive
  together, usage, _ = found[0]
  again, usage_again, _ = search_all(lm, params, len(PROMPTS), prompts=[4, 2, 0, 1, 3], broken=[1])
  assert again.pop(1).finish == "failed"
  assert any(again[n].slot != together[n].slot for n in again)
  for n, result in again.items():
    assert (result.tokens, result.counters) == (together[n].tokens, together[n].counters)
    np.testing.assert_array_equal(usage_again[n].tokens, usage[n].tokens)
