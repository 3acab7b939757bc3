"""The language model's side of the search against the same texts read whole, without caches."""

import collections
import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rain_jax import decode, types
from rain_jax.models import forward, unembed
from rain_jax.policy import decoding, language_model, prompts, self_evaluation
from rain_jax.policy.params import Correction, Override
from rain_jax.text import vocab
from tests.helpers.tiny_lm import PROMPTS, R, make, padded_reader, search_all

LOG = []


class Recorder(language_model.LanguageModel):
  """Writes down what was asked, drawn and answered."""

  def _self_evaluate(self, params, state, request, drawn):
    value, after = super()._self_evaluate(params, state, request, drawn)
    jax.debug.callback(
      lambda *a: LOG.append(jax.tree.map(np.asarray, a)),
      state.proposing.tokens,
      state.proposing.length,
      state.evaluating.tokens,
      state.evaluating.length,
      state.text.length,
      request,
      drawn,
      value,
      ordered=True,
    )
    return value, after


CONTROL = tuple(range(100, 200))  # a third of the vocabulary: most responses hold some
CORRECTION = Correction(np.float32([-2.9, 2.0]), np.float32([2.0, 0.5]))


def read_whole(lm, params, ids):
  """Hidden states and logits of a text read without any cache."""
  ids = jnp.asarray(ids, jnp.int32)
  hidden, _ = forward(lm.graphdef, params["model"], ids, jnp.arange(ids.shape[0]))
  return hidden, np.asarray(unembed(lm.graphdef, params["model"], hidden), np.float64)


def penalised(logits, said, penalty):
  logits = logits.copy()
  for token in set(said):
    logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
  return logits


def top_k_log_probs(logits, temperature, k):
  logits = logits / temperature
  kept = np.sort(logits)[-k]
  logits = np.where(logits >= kept, logits, -np.inf)
  return logits - np.log(np.sum(np.exp(logits - logits.max()))) - logits.max()


# The second case has soft verdicts, and another model gives them; the third a correction, tokens that it reads as another, and a
# repetition penalty.
@pytest.mark.parametrize(
  "leaves,to_eos,readings,prefix,corrected",
  [
    pytest.param(1, False, 2, (), False, marks=pytest.mark.slow),
    (3, True, 1, (0, 11, 12), False),
    (3, False, 2, (0, 11, 12), True),
  ],
)
def test_evaluation_equals_whole_texts(bpe_tokenizer, leaves, to_eos, readings, prefix, corrected):
  LOG.clear()
  search = types.SearchConfig(
    leaves=leaves,
    rollout_to_eos=to_eos,
    temperature=1.5 if to_eos else 1.0,
    max_iterations=12,
    extra_iterations=4,
    max_nodes=256,
    max_visited=32,
    max_path=6,
    min_visits=3,
    repetition_penalty=1.5 if corrected else 1.0,
    sample_top_k=9 if corrected else 0,
  )
  lm, params = make(
    bpe_tokenizer,
    search,
    readings,
    cut=to_eos,
    prefix=prefix,
    cls=Recorder,
    soft_verdicts=to_eos,
    judged=to_eos,
  )
  if corrected:
    preference = dataclasses.replace(lm.preference, control_ids=CONTROL, stand_in=45)
    lm = dataclasses.replace(lm, preference=preference)
    params["correction"] = CORRECTION
    params["tables"] = params["tables"].replace(suppressed=jnp.arange(len(bpe_tokenizer)) % 3 == 2)
  _, _, state = search_all(lm, params)
  jax.block_until_ready(state)
  jax.effects_barrier()
  read = drawn_from(params, padded_reader(lm, params))
  judge = padded_reader(lm, params, side="evaluating")
  seen = collections.Counter()
  for tokens, length, evaluating, evaluating_length, committed, request, drawn, value in LOG[::3]:
    for b, w in np.ndindex(request.mode.shape):
      if request.mode[b, w] != types.VISIT:
        continue
      path = request.path_tokens[b, w][request.path_tokens[b, w] >= 0].tolist()
      leaf = list(prefix) + tokens[b, : length[b]].tolist() + path
      tail = drawn.rollout[b, w, : drawn.rollout_length[b, w]].tolist()
      said = tokens[b, length[b] - committed[b] : length[b]].tolist() + path
      response = said + tail
      check_candidates(lm, read, leaf, said, request, drawn, b, w, seen)
      check_rollout(bpe_tokenizer, lm, response, request, drawn, b, w, to_eos, seen)
      if search.sample_top_k:
        _, logits = read(leaf + tail)
        for i, token in enumerate(tail):
          after = penalised(logits[len(leaf) - 1 + i], said + tail[:i], search.repetition_penalty)
          assert token in np.argsort(-after, kind="stable")[: search.sample_top_k], (leaf, tail, i)
          seen["among the most probable"] += 1
      conversation = evaluating[b, : evaluating_length[b] - committed[b]].tolist()
      check_verdict(
        bpe_tokenizer, lm, params, judge, conversation, response, value[b, w], to_eos, seen
      )
  for what in ("first", "deeper", "greedy", "rolled", "good", "bad", "eos"):
    assert seen[what] or (what == "eos" and corrected), (what, seen)
  assert bool(search.sample_top_k) == bool(seen["among the most probable"])


def drawn_from(params, read):
  """`read` with the logits that tokens are drawn from."""
  suppressed = params["tables"].suppressed

  def allowed(ids):
    hidden, logits = read(ids)
    return hidden, logits if suppressed is None else np.where(suppressed, -1e9, logits)

  return allowed


def check_candidates(lm, read, leaf, said, request, drawn, b, w, seen):
  rows = np.flatnonzero(drawn.lengths[b, w])
  if request.finish[b, w] != types.RUNNING:
    assert len(rows) == 0
    return
  _, logits = read(leaf)
  if request.depth[b, w] == 0:
    seen["first"] += 1
    expected = np.argsort(-logits[-1], kind="stable")[: lm.search.max_children]
    assert drawn.tokens[b, w, : len(expected), 0].tolist() == expected.tolist()
    probs = top_k_log_probs(logits[-1], 1.0, lm.search.max_children)
    np.testing.assert_allclose(drawn.log_weights[b, w, : len(expected)], probs[expected], atol=1e-4)
    return
  seen["deeper"] += 1
  config = lm.search
  size = config.set_lengths[min(request.depth[b, w], len(config.set_lengths) - 1)]
  for row in rows[:4]:
    ids = drawn.tokens[b, w, row, : drawn.lengths[b, w, row]].tolist()
    assert len(ids) == size or drawn.finish[b, w, row] != types.RUNNING
    _, logits = read(leaf + ids[:-1])
    total = 0.0
    for i, token in enumerate(ids):
      after = penalised(logits[len(leaf) - 1 + i], said + ids[:i], config.repetition_penalty)
      probs = top_k_log_probs(after, config.temperature, config.top_k)
      assert np.isfinite(probs[token])
      total += probs[token]
      if row == 0:
        assert after[token] >= after.max() - 1e-5
        seen["greedy"] += 1
    np.testing.assert_allclose(drawn.log_weights[b, w, row], total, atol=2e-4)


def check_rollout(tokenizer, lm, response, request, drawn, b, w, to_eos, seen):
  finish = drawn.rollout_finish[b, w]
  text = tokenizer.decode(response, skip_special_tokens=True)
  if response and response[-1] == 1:
    assert finish == types.EOS
    seen["eos"] += 1
  elif "Human:" in text:
    assert finish == types.STOP
  elif len(response) >= R:
    assert finish == types.LENGTH
  elif not to_eos and response:
    assert finish == types.RUNNING and text[-1] in vocab.TEXT_ENDS
  seen["rolled"] += drawn.rollout_length[b, w] > 0


def check_verdict(tokenizer, lm, params, read, conversation, response, value, cut, seen):
  judged = [t for t in response if t != 1]
  text = tokenizer.decode(judged)
  if "Human:" in text:
    keep = [
      i for i in range(len(judged) + 1) if len(tokenizer.decode(judged[:i])) <= text.index("Human:")
    ]
    judged = judged[: keep[-1]]
  if cut:
    stops = [i + 1 for i, t in enumerate(judged) if "." in tokenizer.decode([t])]
    judged = judged[: stops[-1]] if stops else judged
  control = lm.preference.control_ids or ()
  judged = [lm.preference.stand_in if token in control else token for token in judged]
  start = list(lm.preference.prefix_ids) + conversation + judged
  leads = []
  for suffix, yes, no in zip(
    lm.preference.suffix_ids, lm.preference.good_ids, lm.preference.bad_ids, strict=True
  ):
    _, logits = read(start + list(suffix))
    chance = np.exp(logits[-1] - logits[-1].max())
    chance /= chance.sum()
    leads.append(chance[list(yes)].max() - chance[list(no)].max())
    if params["correction"] is not None:
      odds = np.log(chance[list(yes)].max() / chance[list(no)].max())
      leads[-1] = odds - CORRECTION.offset[len(leads) - 1]
  if lm.soft_verdicts:
    assert value == pytest.approx(np.mean(leads), abs=1e-5), (response, judged)
  elif min(map(abs, leads)) > 1e-6:
    assert value == pytest.approx(2 * np.mean(np.array(leads) > 0) - 1), (response, judged)
  seen["good" if value > 0 else "bad"] += 1


def test_verdicts_are_signs_or_means_of_margins():
  margins = jnp.array([[0.2, 0.4], [0.9, -0.1], [-0.3, 0.0], [0.0, 0.0]])
  np.testing.assert_array_equal(self_evaluation.values(margins, soft=False), [1, 0, -1, -1])
  np.testing.assert_allclose(
    self_evaluation.values(margins, soft=True), [0.3, 0.4, -0.15, 0], atol=1e-6
  )
  broken = jnp.array([[0.2, jnp.nan]])
  assert jnp.isnan(self_evaluation.values(broken, soft=True)) and jnp.isnan(
    self_evaluation.values(broken, soft=False)
  )


def test_a_correction_moves_margins_and_no_correction_leaves_the_published_rule():
  logits = jax.random.normal(jax.random.key(0), (50, 2, 40)) * 4
  preference = SimpleNamespace(good_ids=((3,), (5, 6)), bad_ids=((4, 7), (3,)), scored=False)
  plain = self_evaluation.margins(preference, logits)
  chances = np.asarray(jax.nn.softmax(logits, -1))
  leads = np.asarray(self_evaluation.leads(preference, logits))
  for reading, (good, bad) in enumerate(zip(preference.good_ids, preference.bad_ids)):
    good, bad = (chances[:, reading, list(ids)].max(-1) for ids in (good, bad))
    np.testing.assert_array_equal(plain[:, reading], good - bad)
    np.testing.assert_allclose(leads[:, reading], np.log(good / bad), atol=1e-4)
  moved = self_evaluation.margins(preference, logits, CORRECTION)
  chance = 1 / (1 + np.exp(-CORRECTION.scale * (leads - CORRECTION.offset)))
  np.testing.assert_allclose(moved, 2 * chance - 1, atol=1e-5)
  np.testing.assert_array_equal(np.asarray(moved) > 0, leads > CORRECTION.offset)
  broken = logits.at[0, 1, 20].set(jnp.nan)
  assert jnp.isnan(self_evaluation.margins(preference, broken, CORRECTION)[0, 1])


def test_usage_counts_the_calls_of_an_instrumented_model(bpe_tokenizer, monkeypatch):
  calls = []

  def counted(graphdef, params, tokens, positions, segments=(), mask=None):
    jax.debug.callback(lambda p: calls.append((int((p >= 0).sum()), p.size)), positions)
    return forward(graphdef, params, tokens, positions, segments, mask)

  search = types.SearchConfig(
    max_iterations=10, extra_iterations=3, max_nodes=256, max_visited=32, max_path=6
  )
  lm, params = make(bpe_tokenizer, search)
  params["override"] = Override(jnp.float32(0.5), jnp.float32(0.0))
  for module in (decoding, language_model, prompts, self_evaluation):
    monkeypatch.setattr(module, "forward", counted)
  results, usage, state = search_all(lm, params)
  jax.block_until_ready(state)
  jax.effects_barrier()
  last = jax.tree.map(np.asarray, state.model.usage)
  assert len(results) == len(PROMPTS)
  assert len(calls) == last.run_calls[0].sum()
  assert sum(size for _, size in calls) == last.run_slots.sum()
  assert sum(valid for valid, _ in calls) == sum(u.tokens.sum() for u in usage.values())
  assert all(0 < u.calls.sum() <= last.run_calls[0].sum() for u in usage.values())
  # Every visit is judged by the model or from memory, once.
  for number, result in results.items():
    judged = usage[number].verdicts_read + usage[number].verdicts_remembered
    assert judged == result.counters["iterations"]
  assert sum(u.verdicts_remembered for u in usage.values()) > 0


def test_verdicts_are_forced_and_flipped_by_lots_of_the_text():
  hashes = jax.random.bits(jax.random.key(0), (4000, 2), jnp.uint32)
  own = jnp.where(jnp.arange(4000) % 2 == 0, 1.0, 0.0)
  apply = lambda **shares: np.asarray(Override(**shares).apply(own, hashes))
  np.testing.assert_array_equal(apply(), own)
  forced = apply(forced_good=0.25)
  assert set(forced) == {-1.0, 1.0} and np.mean(forced > 0) == pytest.approx(0.25, abs=0.03)
  flipped = apply(flipped=0.1)
  assert np.mean(flipped[::2] < 0) == pytest.approx(0.1, abs=0.03)
  assert not flipped[1::2].any()


@pytest.mark.slow  # search_test and adaptive_test have it for scripted models
def test_slots_and_neighbours_do_not_matter(bpe_tokenizer):
  search = types.SearchConfig(
    max_iterations=10, extra_iterations=3, max_nodes=256, max_visited=32, max_path=6
  )
  lm, params = make(bpe_tokenizer, search)
  alone, usage_alone, _ = search_all(lm, params, batch=3, prompts=[2])
  together, usage, _ = search_all(lm, params, batch=3, prompts=[4, 2, 0, 1, 3])
  again, _, _ = search_all(lm, params, batch=3, prompts=[3, 1, 0, 4, 2])
  assert alone[2].tokens == together[2].tokens == again[2].tokens
  assert alone[2].counters == together[2].counters
  np.testing.assert_array_equal(usage_alone[2].tokens, usage[2].tokens)
  assert {n: r.tokens for n, r in together.items()} == {n: r.tokens for n, r in again.items()}
  other, _, _ = search_all(lm, params, batch=3, seed=1)
  assert {n: r.tokens for n, r in other.items()} != {n: r.tokens for n, r in again.items()}

  # Output that is no number fails its prompt alone, and leaves nothing after in the slot.
  failing, _, _ = search_all(lm, params, batch=3, prompts=[3, 1, 0, 4, 2], broken=[1, 3])
  for number, result in failing.items():
    if number in (1, 3):
      assert result.finish == "failed" and result.tokens == []
    else:
      assert (result.tokens, result.finish) == (again[number].tokens, again[number].finish)


PHASES = (
  "select",
  "read_leaves",
  "candidates",
  "rollout",
  "self_evaluation",
  "embed",
  "expand",
  "grow",
  "back_up",
  "commit",
)


def test_the_loop_names_its_phases_and_holds_no_copy_of_the_caches(bpe_tokenizer):
  search = types.SearchConfig(max_nodes=256, max_visited=32, max_path=6)
  lm, params = make(bpe_tokenizer, search)
  state = jax.eval_shape(lambda: lm.empty_slots(4, params))
  lowered = decode.advance.lower(state, lm, params, search, 8)
  named = lowered.as_text(debug_info=True)
  for phase in PHASES:  # a profile names them, alone or as vmap(phase)
    assert re.search(rf'loc\("([^"]*[/(])?{phase}[/)]', named), phase
  compiled = lowered.compile()
  caches = sum(
    a.size * 4
    for c in (state.model.proposing, state.model.evaluating)
    for a in jax.tree.leaves((c.context, c.pool))
  )
  temporary = compiled.memory_analysis().temp_size_in_bytes
  assert temporary < caches, (temporary, caches)
