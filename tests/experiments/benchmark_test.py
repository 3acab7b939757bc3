"""The benchmark: what its rows count, and that its forced verdicts and baselines are real."""

import dataclasses

import jax
import numpy as np
import pytest

from rain_jax.experiments import benchmark
from rain_jax.experiments.benchmark import roofline
from rain_jax.parallel import workers
from rain_jax.types import DataError, SearchConfig

SEARCH = SearchConfig(max_nodes=256, max_visited=48, draft_rows=1)
WORKLOAD = benchmark.Workload(prompt=12, response=12, verdict_prefix=20, verdict_suffix=4)


@pytest.fixture(scope="module")
def subject(monkeypatch_module):
  shape = dataclasses.replace(
    benchmark.SHAPES["demo_shape"],
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_size=16,
  )
  monkeypatch_module.setitem(benchmark.SHAPES, "tiny", shape)
  return benchmark.find_subject("tiny", "float32", WORKLOAD, SEARCH)


@pytest.fixture(scope="module")
def monkeypatch_module():
  with pytest.MonkeyPatch.context() as patch:
    yield patch


@pytest.fixture(scope="module")
def rows(subject):
  return benchmark.rows(subject, 2, ("no_cache", "rain"), ("good", "bad"), SEARCH, SEARCH, 1)


def test_sampling_without_cache_draws_the_same_responses(subject):
  """Same keys, same logits: lengths and work differ only by the cache."""
  ends = dataclasses.replace(subject.lm.config, eos_ids=tuple(range(0, 64, 5)))
  lm = dataclasses.replace(subject.lm, config=ends)
  prompts, keys = subject.prompts("proposing", 3), jax.random.split(jax.random.key(1), 3)
  plain, forwarded = benchmark.sample_without_cache(lm, subject.params, prompts, keys)
  assert len(set(np.asarray(plain).tolist())) > 1
  for length, count in zip(np.asarray(plain), np.asarray(forwarded)):
    assert count == sum(12 + i for i in range(length))


def test_vanilla_row_counts_one_call_per_token(rows):
  row = rows[0]
  assert (row["method"], row["mode"], row["ratio_to_vanilla"]) == ("vanilla", "cached", 1.0)
  assert row["model_calls_per_token"] == 1.0
  assert row["tokens_forwarded_per_token"] == pytest.approx((12 + 11) / 12)
  assert row["response_tokens"] == 12


def test_row_without_cache_forwards_the_whole_text_every_time(rows):
  row = rows[1]
  assert row["mode"] == "no_cache"
  assert row["tokens_forwarded_per_token"] == pytest.approx(sum(12 + i for i in range(12)) / 12)


def test_bad_verdicts_cost_more_iterations_than_good_ones(rows):
  good, bad = rows[2], rows[3]
  assert (good["verdicts"], bad["verdicts"]) == ("good", "bad")
  assert good["iterations_per_move"] < 10 < bad["iterations_per_move"]
  assert bad["model_calls_per_token"] > 2 * good["model_calls_per_token"]
  for row in (good, bad):
    total = sum(row["calls_by_role"].values())
    assert row["model_calls_per_token"] == pytest.approx(total)
    assert row["tokens_forwarded_per_token"] == pytest.approx(sum(row["tokens_by_role"].values()))
    assert row["padding_per_token"] == pytest.approx(sum(row["padding_by_role"].values()))
    assert row["padding_per_token"] > 0 and row["seconds_per_token"] > 0
    # A prompt has a token in nearly every call that is made for it.
    assert total <= row["executed_calls_per_token"] < 1.25 * total


@pytest.mark.slow
def test_good_drafts_are_read_once_and_bad_ones_cost_more(subject):
  methods = ("segments", "adaptive")
  found = benchmark.rows(subject, 2, methods, ("good", "bad"), SEARCH, SEARCH, 1)[1:]
  drafting = [("segments", "drafts"), ("rain", "adaptive")]
  shown = [(row["method"], row["mode"], row["verdicts"]) for row in found]
  assert shown == [(*one, verdict) for one in drafting for verdict in ("good", "bad")]
  for good, bad in (found[:2], found[2:]):
    calls, tokens = good["calls_by_role"], good["tokens_by_role"]
    assert good["iterations_per_move"] == tokens["candidates"] == 0
    # Both readings of the prompt, and the response but for its last token.
    assert tokens["context"] + tokens["rollout"] == pytest.approx((12 + 12 + 11) / 12)
    assert calls["rollout"] < 1 and calls["verdict"] * 12 <= 12
    assert bad["model_calls_per_token"] > 2 * good["model_calls_per_token"]
  assert found[1]["iterations_per_move"] == 0 < found[3]["iterations_per_move"]


def test_every_method_that_searches_or_drafts_does_so_in_its_own_mode():
  parallel = dataclasses.replace(SEARCH, leaves=4)
  made = benchmark.searches(SEARCH, parallel)
  assert (made["rain"], made["leaf_parallel"]) == (SEARCH, parallel)
  assert {
    name: one.mode for name, one in made.items() if name not in ("rain", "leaf_parallel")
  } == {
    "segments": "segments",
    "adaptive": "adaptive",
  }
  assert made.keys() <= benchmark.METHODS.keys()


@pytest.mark.parametrize("count,slots", [(2, 1), pytest.param(1, 3, marks=pytest.mark.slow)])
def test_a_row_is_the_same_however_its_prompts_lie_side_by_side(subject, monkeypatch, count, slots):
  monkeypatch.setattr(workers, "layout", lambda weights, batch: (count, slots))
  work = benchmark.rain(subject, 3, SEARCH, "mixed", 0.4)(0)
  monkeypatch.setattr(workers, "layout", lambda weights, batch: (1, 1))
  alone = benchmark.rain(subject, 3, SEARCH, "mixed", 0.4)(0)
  assert (work.tokens, work.calls, work.forwarded) == (alone.tokens, alone.calls, alone.forwarded)
  assert work.details["side_by_side"] == count * slots


@pytest.mark.slow
def test_searches_of_the_demo_stay_within_their_counts():
  """Model calls and forwarded tokens per response token, forced verdicts, batch 1."""
  exact = SearchConfig(max_nodes=1024, max_visited=96)
  # Room for sixteen more: a tree that is full would cut its search short, and its counts with it.
  parallel = dataclasses.replace(exact, leaves=16, early_commit=True, max_visited=128)
  demo = benchmark.find_subject("demo", "float32", benchmark.Workload(), exact)
  methods = ("rain", "leaf_parallel", "adaptive")
  found = benchmark.rows(demo, 1, methods, ("good", "bad"), exact, parallel, 3)
  _, good, bad, good_parallel, bad_parallel, good_adaptive, _ = found
  for row, calls, tokens in (
    (good, 8, 150),
    (bad, 65, 1000),
    (good_parallel, 2.5, None),
    (bad_parallel, 10, 1000),
    (good_adaptive, 1.25, 16),
  ):
    assert row["executed_calls_per_token"] <= calls, row
    assert tokens is None or row["tokens_forwarded_per_token"] <= tokens, row
    assert row["early_commits_per_response"] == 0, row


def test_best_of_n_reads_as_many_tokens_as_asked_for(subject):
  work = benchmark.best_of_n(subject, 2, 3)(0)
  assert work.tokens == 2 * 12
  # Per prompt: itself twice, three samples, and each again with both suffixes.
  assert work.forwarded == 2 * (12 + 3 * 11 + 12 + 3 * (12 + 2 * 4))


def test_unknown_names_are_refused(subject):
  with pytest.raises(DataError, match="methods: unknown 'beam'"):
    benchmark.rows(subject, 1, ("beam",), (), SEARCH, SEARCH, 1)
  with pytest.raises(DataError, match="verdicts: unknown 'ugly'"):
    benchmark.rows(subject, 1, (), ("ugly",), SEARCH, SEARCH, 1)
  with pytest.raises(DataError, match="models: unknown '70t'"):
    benchmark.find_subject("70t", "float32", WORKLOAD, SEARCH)


def test_phases_are_timed_and_stay_below_the_roofline_of_an_endless_machine(subject):
  machine = roofline.Machine(bytes_per_second=1e18, flops_per_second=1e18)
  found = roofline.phases(subject, 2, machine)
  assert [p["phase"] for p in found] == ["vanilla", "context", "candidates", "rollout", "verdict"]
  assert all(0 < p["share_of_roofline"] < 1 and p["seconds_per_call"] > 0 for p in found)


def test_operations_of_a_phase_are_those_of_its_matrices(subject):
  """One token without context: two per parameter, and attention to itself."""
  config = benchmark.SHAPES["7b"]
  alone = roofline.Phase("decode", (1,), 1, 1, ())
  matrices = 6_738_415_616 - 32000 * 4096 - 65 * 4096  # all but the embedding and the norms
  assert alone.flops(config) == 2 * (matrices + 2 * 32 * 4096)
