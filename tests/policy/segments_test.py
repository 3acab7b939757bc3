"""Segment-level rejection against a plain program that reads whole texts, without caches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rain_jax import types
from rain_jax.methods.segments import without_tree
from rain_jax.models import forward
from rain_jax.policy import decoding, prompts, sampling, segments, self_evaluation
from rain_jax.text import vocab
from tests.helpers.tiny_lm import JUDGED, PROMPTS, R, make, padded_reader, search_all

THRESHOLD = 0.0012
SEARCH = without_tree(types.SearchConfig(draft_rows=2, draft_tries=4, draft_threshold=THRESHOLD))


def plain(tokenizer, lm, read, number, key):
  """The response to one prompt, its finish and counters, and the margins of what was committed."""
  search, response, finish, step = lm.search, [], "running", 0
  counters = dict.fromkeys(("drafts", "moves", "kept_best"), 0)
  margins = []
  while finish == "running":
    best, tried = (-np.inf, [], ""), 0
    while best[0] <= search.draft_threshold and tried < search.draft_tries:
      uniforms = jax.random.uniform(jax.random.fold_in(key, step), (search.draft_rows, R))
      step, tried = step + 1, tried + search.draft_rows
      for row in range(search.draft_rows):
        drawn, why = draft(tokenizer, read, PROMPTS[number], response, uniforms[row])
        value = margin(tokenizer, lm, read, JUDGED[number], response + drawn)
        best = max(best, (value, drawn, why), key=lambda one: one[0])
    counters["drafts"] += tried
    counters["moves"] += 1
    counters["kept_best"] += best[0] <= search.draft_threshold
    response, finish = response + best[1], best[2]
    margins.append(best[0])
  return response, finish, counters, margins


def draft(tokenizer, read, prompt, response, uniforms):
  drawn = []
  while True:
    _, logits = read(prompt + response + drawn)
    drawn.append(int(sampling.categorical(uniforms[len(drawn)], jnp.float32(logits[-1]))))
    text = tokenizer.decode(response + drawn, skip_special_tokens=True)
    if drawn[-1] == 1:
      return drawn, "eos"
    if "Human:" in text:
      return drawn, "stop"
    if len(response + drawn) >= R:
      return drawn, "length"
    if text and text[-1] in vocab.TEXT_ENDS:
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


def test_responses_are_those_of_whole_texts(bpe_tokenizer, model):
  lm, params = model
  found, usage, _ = search_all(lm, params)
  read, kept = padded_reader(lm, params), 0
  for number, result in found.items():
    key = jax.random.fold_in(jax.random.key(0), number)
    response, finish, counters, margins = plain(bpe_tokenizer, lm, read, number, key)
    assert (result.tokens, result.finish) == (response, finish)
    assert {name: result.counters[name] for name in counters} == counters
    assert usage[number].verdicts_read == counters["drafts"]
    kept += counters["kept_best"]
    assert min(map(abs, np.array(margins) - SEARCH.draft_threshold)) > 1e-6  # no near tie
  moves = sum(result.counters["moves"] for result in found.values())
  assert 0 < kept < moves and moves > len(PROMPTS)  # either way of committing was taken


def test_slots_and_neighbours_do_not_matter(model):
  lm, params = model
  alone, usage_alone, _ = search_all(lm, params, batch=3, prompts=[2])
  together, usage, _ = search_all(lm, params, batch=3, prompts=[4, 2, 0, 1, 3])
  assert alone[2].tokens == together[2].tokens and alone[2].counters == together[2].counters
  np.testing.assert_array_equal(usage_alone[2].tokens, usage[2].tokens)
  failing, _, _ = search_all(lm, params, batch=3, prompts=[4, 2, 0, 1, 3], broken=[1])
  assert failing.pop(1).finish == "failed"
  assert all(failing[n].tokens == together[n].tokens for n in failing)


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
