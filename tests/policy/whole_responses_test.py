"""Vanilla sampling and best-of-N's verdicts against the same texts read whole."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rain_jax import types
from rain_jax.policy import whole_responses
from rain_jax.policy.params import Override, make_params
from rain_jax.text import encoding
from rain_jax.types import NO_TOKEN
from tests.helpers.tiny_lm import JUDGED, PROMPTS, R, as_prompt, make, padded_reader

N, TOP_K = 4, 40
PREFIX = [0, 11, 12]  # tokens before every prompt
SEARCH = types.SearchConfig(max_nodes=256, max_visited=32, max_path=6)
CONTROL = tuple(range(100, 200))
CUT = dict(readings=1, cut=True, judged=True)


@pytest.fixture(scope="module", params=["plain", "cut"])
def made(request, bpe_tokenizer):
  """(tokenizer, language model, params, reader of whole texts), without and with a prefix.

  Where there is one, another model gives the verdicts, and reads some tokens as another, and only
  the most probable tokens are drawn from, and not every token may be.
  """
  plain = request.param == "plain"
  search = SEARCH if plain else dataclasses.replace(SEARCH, sample_top_k=TOP_K)
  lm, params = make(bpe_tokenizer, search, prefix=() if plain else PREFIX, **({} if plain else CUT))
  if not plain:
    preference = dataclasses.replace(lm.preference, control_ids=CONTROL, stand_in=45)
    lm = dataclasses.replace(lm, preference=preference)
  stop = encoding.encode_continuation(bpe_tokenizer, "Human:")
  params = {**params, "model": leaning(params["model"], stop)}
  model, tables, judge = (params[name] for name in ("model", "tables", "verdict_model"))
  tables = tables if plain else tables.replace(suppressed=jnp.arange(len(bpe_tokenizer)) % 3 == 2)
  params = make_params(model, tables, lm, () if plain else PREFIX, verdict_params=judge)
  return bpe_tokenizer, lm, params, () if plain else PREFIX, padded_reader(lm, params)


def leaning(model, stop):
  """Parameters changed so that the end mark and a stop string's tokens are likely everywhere."""
  lift = lambda weight, rows, by: weight.at[rows, 0].add(by)
  by = jnp.array([0.9] + [1.3] * len(stop))
  return {
    **model,
    "embedding": {"weight": lift(model["embedding"]["weight"], slice(None), 30.0)},
    "head": {"weight": lift(model["head"]["weight"], jnp.array([1, *stop]), by)},
  }


def batch(numbers, ids=PROMPTS, ends=()):
  prompts = [as_prompt(ids[n]).replace(ends=np.bool_(n in ends)) for n in numbers]
  return jax.tree.map(lambda *a: np.stack(a), *prompts)


def keys_of(numbers, seed=0):
  return jnp.stack([jax.random.fold_in(jax.random.key(seed), n) for n in numbers])


def draw(lm, params, numbers, first=0, samples=N, ends=()):
  prompts = batch(numbers, ends=ends)
  drawn = whole_responses.sample(lm, params, prompts, keys_of(numbers), jnp.int32(first), samples)
  return jax.tree.map(np.asarray, drawn)


def allowed(params, logits):
  """Logits without the suppressed tokens."""
  suppressed = params["tables"].suppressed
  return logits if suppressed is None else np.where(suppressed, -np.inf, logits)


def spelled(tokenizer, ids):
  return tokenizer.decode(ids, skip_special_tokens=True)


def test_every_token_is_what_whole_texts_and_the_key_say(made):
  """Redrawn one by one from logits that no cache had a part in."""
  tokenizer, lm, params, prefix, read = made
  numbers = [0, 1, 2]
  drawn = draw(lm, params, numbers)
  seen = collections.Counter()
  for b, i in np.ndindex(len(numbers), N):
    length = int(drawn.length[b, i])
    ids = drawn.tokens[b, i, :length].tolist()
    assert (drawn.tokens[b, i, length:] == NO_TOKEN).all() and all(t >= 0 for t in ids)
    start = list(prefix) + PROMPTS[numbers[b]]
    _, logits = read(start + ids[:-1])
    uniforms = np.asarray(jax.random.uniform(jax.random.fold_in(keys_of(numbers)[b], i), (R,)))
    for step, token in enumerate(ids):
      scores = allowed(params, logits[len(start) - 1 + step])
      tokens = np.arange(len(scores))
      if lm.search.sample_top_k:
        tokens = np.argsort(-scores, kind="stable")[: lm.search.sample_top_k]
      weights = np.exp(scores[tokens] - scores.max())
      ends = np.cumsum(weights) / weights.sum()
      begins = ends - weights / weights.sum()
      (at,) = np.flatnonzero(tokens == token)
      assert begins[at] - 1e-5 <= uniforms[step] <= ends[at] + 1e-5, (b, i, step)
      seen["drawn"] += 1
      seen["not greedy"] += token != scores.argmax()
    check_finish(tokenizer, ids, int(drawn.finish[b, i]), seen)
  assert seen["drawn"] > 60 and seen["not greedy"] > 20
  # Among few tokens, those that end a response come sooner.
  assert seen["eos"] and seen["stop"] and (seen["length"] or lm.search.sample_top_k), seen


def check_finish(tokenizer, ids, finish, seen):
  """A response ends at its first end mark, stop string or the limit, and not before."""
  reason = types.FINISH_REASONS[finish]
  stops = [k for k in range(1, len(ids) + 1) if "Human:" in spelled(tokenizer, ids[:k])]
  assert 1 not in ids[:-1] and all(k == len(ids) for k in stops)
  if ids[-1] == 1:
    assert reason == "eos"
  elif stops:
    assert reason == "stop"
  else:
    assert reason == "length" and len(ids) == R
  seen[reason] += 1


def test_counts_are_those_of_the_calls_made(made):
  """A prompt takes part until its last sample ends; a sample's last token is never read."""
  _, lm, params, _, _ = made
  numbers = [0, 1, 2]
  drawn = draw(lm, params, numbers)
  for b, number in enumerate(numbers):
    assert drawn.calls[b] == drawn.length[b].max()
    assert drawn.forwarded[b] == len(PROMPTS[number]) + (drawn.length[b] - 1).sum()
  assert drawn.length.min() < drawn.length.max()


def equal(a, b):
  for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))


def test_neighbours_rounds_and_repeats_do_not_matter(made):
  _, lm, params, _, _ = made
  whole = draw(lm, params, [0, 1, 2])
  equal(whole, draw(lm, params, [0, 1, 2]))
  row = lambda drawn, b: jax.tree.map(lambda a: a[b], drawn)
  for numbers in ([2, 0, 1], [0, 3, 4], [4, 4, 0]):
    other = draw(lm, params, numbers)
    for b, number in enumerate(numbers):
      if number < 3:
        equal(row(other, b), row(whole, number))
  half = [draw(lm, params, [0, 1, 2], first=first, samples=N // 2) for first in (0, 2)]
  for name in ("tokens", "length", "finish"):
    joined = np.concatenate([getattr(part, name) for part in half], axis=1)
    np.testing.assert_array_equal(joined, getattr(whole, name))
  joined = jax.tree.map(lambda a, b: np.concatenate([a, b], axis=1), half[0].text, half[1].text)
  equal(joined, whole.text)
  # Samples of a prompt, and of prompts, are not one and the same.
  assert len({bytes(t) for t in whole.tokens.reshape(-1, R)}) > 2 * N


def test_verdicts_equal_those_on_whole_texts(made):
  tokenizer, lm, params, _, _ = made
  read = padded_reader(lm, params, side="evaluating")
  numbers = [0, 1, 2]
  drawn = draw(lm, params, numbers)
  answer = whole_responses.self_evaluate(lm, params, batch(numbers, JUDGED), drawn)
  value, margins, forwarded = map(np.asarray, answer)
  suffixes = sum(map(len, lm.preference.suffix_ids))
  seen = collections.Counter()
  for b in range(len(numbers)):
    total = len(JUDGED[b])
    for i in range(N):
      ids = judged_part(tokenizer, lm, drawn, b, i)
      start = list(lm.preference.prefix_ids) + JUDGED[b] + said(lm, ids)
      total += len(ids) + suffixes
      leads = []
      for suffix, good, bad in zip(
        lm.preference.suffix_ids, lm.preference.good_ids, lm.preference.bad_ids, strict=True
      ):
        logits = read(start + list(suffix))[1][-1]
        chance = np.exp(logits - logits.max())
        chance /= chance.sum()
        leads.append(chance[list(good)].max() - chance[list(bad)].max())
      np.testing.assert_allclose(margins[b, i], leads, atol=1e-5)
      if min(map(abs, leads)) > 1e-5:
        assert value[b, i] == pytest.approx(2 * np.mean(np.array(leads) > 0) - 1)
        seen[float(value[b, i])] += 1
    assert forwarded[b] == total
  assert sum(seen.values()) >= 10


def test_flipped_verdicts_count_for_the_choice_and_not_for_the_review(made):
  _, lm, params, _, _ = made
  numbers = [0, 1, 2]
  drawn, prompts = draw(lm, params, numbers), (batch(numbers), batch(numbers, JUDGED))
  flip = lambda share: {**params, "override": Override(jnp.float32(-1.0), jnp.float32(share))}
  judged = lambda share: [
    np.asarray(a) for a in whole_responses.self_evaluate(lm, flip(share), prompts[1], drawn)[:2]
  ]
  (value, margins), every, half = judged(0.0), judged(1.0), judged(0.5)
  np.testing.assert_array_equal(every[0], -value)
  np.testing.assert_array_equal(every[1], -margins)
  turned = (half[1] == -margins).all(-1)
  assert turned.any() and not turned.all()
  np.testing.assert_array_equal(half[0], np.where(turned, -value, value))
  np.testing.assert_array_equal(whole_responses.review(lm, flip(1.0), *prompts, drawn)[0], value)


def test_log_likelihoods_are_those_of_whole_texts(made):
  """Of every token, the end mark included; the verdict beside it is `self_evaluate`'s."""
  _, lm, params, prefix, read = made
  numbers = [0, 1, 2]
  drawn = draw(lm, params, numbers)
  prompts, judged = batch(numbers), batch(numbers, JUDGED)
  value, forwarded, found = map(
    np.asarray, whole_responses.review(lm, params, prompts, judged, drawn)
  )
  ended = 0
  for b, i in np.ndindex(len(numbers), N):
    ids = drawn.tokens[b, i, : drawn.length[b, i]].tolist()
    start = list(prefix) + PROMPTS[numbers[b]]
    logits = read(start + ids[:-1])[1][len(start) - 1 :].astype(np.float64)
    chance = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = sum(chance[step, token] for step, token in enumerate(ids))
    assert found[b, i] == pytest.approx(expected, abs=1e-3), (b, i)
    ended += drawn.finish[b, i] == types.EOS
  assert ended
  verdict, _, read_for_it = whole_responses.self_evaluate(lm, params, judged, drawn)
  np.testing.assert_array_equal(value, verdict)
  np.testing.assert_array_equal(forwarded, read_for_it)
  failed = drawn.replace(finish=np.full_like(drawn.finish, types.FAILED))
  assert np.isnan(whole_responses.review(lm, params, prompts, judged, failed)[2]).all()


def said(lm, ids):
  return [
    lm.preference.stand_in if one in (lm.preference.control_ids or ()) else one for one in ids
  ]


def judged_part(tokenizer, lm, drawn, b, i):
  """Response tokens that the verdict reads: no end mark, no second turn, perhaps cut."""
  ids = [t for t in drawn.tokens[b, i, : drawn.length[b, i]].tolist() if t != 1]
  text = spelled(tokenizer, ids)
  if "Human:" in text:
    ids = ids[
      : max(k for k in range(len(ids)) if len(spelled(tokenizer, ids[:k])) <= text.index("Human:"))
    ]
  if lm.preference.cut:
    stops = [k + 1 for k, token in enumerate(ids) if "." in tokenizer.decode([token])]
    ids = ids[: stops[-1]] if stops else ids
  return ids


def test_a_verdict_does_not_depend_on_the_other_samples(made):
  _, lm, params, _, _ = made
  judge = lambda numbers, drawn: [
    np.asarray(a)
    for a in whole_responses.self_evaluate(lm, params, batch(numbers, JUDGED), drawn)[:2]
  ]
  drawn = draw(lm, params, [0, 1, 2])
  whole = judge([0, 1, 2], drawn)
  turned = jax.tree.map(lambda a: a[::-1], drawn)
  other = judge([2, 1, 0], turned)
  for a, b in zip(whole, other):
    np.testing.assert_array_equal(a, b[::-1])


def test_output_that_is_no_number_fails_its_prompt_alone(made):
  _, lm, params, _, _ = made
  numbers = [0, 1, 2]
  whole = draw(lm, params, numbers)
  token = PROMPTS[0][1]
  model = params["model"]
  poisoned = model["embedding"]["weight"].at[token].set(jnp.nan)
  params = {**params, "model": {**model, "embedding": {"weight": poisoned}}}
  drawn = draw(lm, params, numbers)
  untouched = 0
  for b, i in np.ndindex(len(numbers), N):
    ids = whole.tokens[b, i]
    if b == 0:
      assert drawn.finish[b, i] == types.FAILED and drawn.length[b, i] == 0
    elif token not in ids[:-1]:
      np.testing.assert_array_equal(drawn.tokens[b, i], ids)
      assert drawn.finish[b, i] == whole.finish[b, i]
      untouched += 1
  assert untouched
  value, margin, _ = whole_responses.self_evaluate(lm, params, batch(numbers, JUDGED), drawn)
  assert np.isnan(value[0]).all() and np.isnan(margin[0]).all() and np.isfinite(value[1]).any()
