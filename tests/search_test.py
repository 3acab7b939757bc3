"""The search against a plain program of it, and the promises that batching makes."""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rain_jax import decode, types
from rain_jax.search import tree as trees
from tests.helpers import invariants, oracle, scripted

BATCH = 32
LONGEST = 26  # tokens of the longest scripted response

# Name -> config and number of prompts; `short` has every number changed.
SHORT = types.SearchConfig(
  set_lengths=(1, 2, 3),
  num_candidates=4,
  max_children=7,
  exploration=1.3,
  root_prior=0.6,
  similarity_threshold=0.9,
  similarity_weight=0.31,
  grow_threshold=0.05,
  min_visits=3,
  value_threshold=0.6,
  max_iterations=24,
  extra_iterations=9,
  early_commit=True,
  max_nodes=256,
  max_visited=64,
  max_path=12,
)
VARIANTS = {
  "harmless": (types.harmless_search(), 300),
  "adversarial": (types.adversarial_search(), 160),
  "truthful": (types.truthful_search(), 160),
  "short": (SHORT, 480),
}
# Ours -> the plain program's.
COUNTERS = dict(
  iterations="iterations",
  moves="moves",
  rewinds="rewinds",
  inherited_commits="commit_inherited",
  grows="grows",
  joined="joined",
  similarity_updates="similarity_update",
  duplicates="duplicate_dropped",
  revisits="finished_revisited",
)


@functools.cache
def tables() -> dict[str, np.ndarray]:
  return scripted.make_tables()


@functools.cache
def prompts_of(variant: str) -> list[scripted.Prompt]:
  return scripted.make_prompts(VARIANTS[variant][1], seed=5, shortest=2, longest=LONGEST)


@functools.cache
def plain(variant: str) -> list[oracle.Search]:
  """The plain program's searches for all prompts of a variant."""
  config = VARIANTS[variant][0]
  scripts = [scripted.TableScript(tables(), p, config) for p in prompts_of(variant)]
  return [oracle.Search(script, config).run() for script in scripts]


def precision(x64: bool) -> contextlib.AbstractContextManager:
  return jax.enable_x64(x64)


def answer(
  config: types.SearchConfig,
  prompts: list[scripted.Prompt],
  batch: int = BATCH,
  seed: int = 0,
  order: list[int] | None = None,
) -> list[decode.Result]:
  """The library's searches, by prompt, begun in `order`."""
  model = scripted.TableModel(config)
  params = jax.tree.map(jnp.asarray, tables())
  state = decode.init(batch, model.init(batch), config, model.embedding_size, LONGEST)
  key = jax.random.key(seed)
  queue = [(i, jax.random.fold_in(key, i), prompts[i]) for i in order or range(len(prompts))]
  start = lambda state, new: state.replace(model=model.start(state.model, new))
  served = decode.serve(state, model, params, config, queue, start)
  results = {result.index: result for result, _ in served}
  return [results[i] for i in range(len(prompts))]


def differences(result: decode.Result, own: oracle.Search, redraw: bool) -> dict:
  """What differs between the library's and the plain program's search."""
  pairs = {ours: (result.counters[ours], own.count[theirs]) for ours, theirs in COUNTERS.items()}
  if redraw:  # A drawn batch holds duplicates that drawing one by one would have stopped before.
    del pairs["duplicates"]
  pairs["tokens"] = result.tokens, [token for tokens in own.response for token in tokens]
  pairs["finish"] = result.finish, own.finish
  pairs["early_commits"] = result.counters["early_commits"], 0
  return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def nearest(own: oracle.Search) -> float:
  """How near the nearest decision of a search was."""
  return min(own.gaps.values(), default=1.0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_searches_as_the_plain_program(variant):
  """Moves, reasons and counts of more than 1,000 searches over the variants."""
  config, count = VARIANTS[variant]
  with precision(x64=True):
    results = answer(config, prompts_of(variant))
  torn = 0
  for i, (result, own) in enumerate(zip(results, plain(variant))):
    different = differences(result, own, config.redraw)
    if different and nearest(own) < 1e-9:
      torn += 1  # a tie but for rounding, such as 2 * 0.3 against 0.6
      continue
    assert not different, (i, prompts_of(variant)[i], different)
  print(f"\n{variant}: {count - torn} of {count} alike, {torn} torn by a tie but for rounding")
  assert torn <= 0.01 * count


@pytest.mark.slow
def test_same_searches_in_single_precision():
  config, count = VARIANTS["harmless"]
  with precision(x64=False):
    results = answer(config, prompts_of("harmless"))
  torn = 0
  for i, (result, own) in enumerate(zip(results, plain("harmless"))):
    different = differences(result, own, config.redraw)
    if different and nearest(own) < 1e-5:
      torn += 1
      continue
    assert not different, (i, prompts_of("harmless")[i], different)
  print(f"\nfloat32: {count - torn} of {count} alike, {torn} torn by a near tie")
  assert torn <= 0.08 * count


def test_every_branch_was_taken():
  """Or else the comparison above would show less than it seems to."""
  count = collections.Counter()
  for variant in VARIANTS:
    for own in plain(variant):
      count.update(own.count)
  print()
  for branch in oracle.BRANCHES:
    print(f"{count[branch]:8d}  {branch}")
  assert sum(len(plain(variant)) for variant in VARIANTS) >= 1000
  assert not [branch for branch in oracle.BRANCHES if count[branch] == 0]


def _whole_tree(tree: trees.Tree) -> list[tuple]:
  """(tokens, finish, n, f, q, p) of every node of one tree on the host, parents first."""
  # Plain lists: reading single numbers out of arrays would take most of the time.
  fields = (
    "tokens",
    "length",
    "finish",
    "visit_weight",
    "visits",
    "value",
    "prior",
    "page",
    "children",
    "num_children",
  )
  t = {name: getattr(tree, name).tolist() for name in fields}
  found, queue = [], [int(tree.root)]
  for node in queue:
    tokens = tuple(t["tokens"][node][: t["length"][node]])
    found.append(
      (
        tokens,
        t["finish"][node],
        *(t[k][node] for k in ("visit_weight", "visits", "value", "prior")),
      )
    )
    slot = t["page"][node]
    if slot >= 0:
      queue += t["children"][slot][: t["num_children"][slot]]
  return found


def _whole_oracle(root: oracle.Node) -> list[tuple]:
  found, queue = [], [root]
  for node in queue:
    tokens = node.text[-1] if node.text else ()
    found.append((tokens, types.FINISH_REASONS.index(node.finish), node.n, node.f, node.q, node.p))
    queue += node.children
  return found


def _steps(config, prompts) -> Iterator[decode.DecodeState]:
  """States after each step of a batch of prompts, until all have ended."""
  model = scripted.TableModel(config)
  params = jax.tree.map(jnp.asarray, tables())
  state = decode.init(BATCH, model.init(BATCH), config, model.embedding_size, LONGEST)
  keys = jax.random.split(jax.random.key(1), BATCH)
  state = decode.reset_slots(state, jnp.arange(BATCH) < len(prompts), keys, config)
  state = state.replace(model=model.start(state.model, dict(enumerate(prompts))))
  while state.active.any():
    state = decode.advance(state, model, params, config, 1)
    yield state


@pytest.mark.parametrize(
  "variant,batches", [pytest.param("harmless", 2, marks=pytest.mark.slow), ("short", 5)]
)
def test_every_node_after_every_iteration(variant, batches):
  config = VARIANTS[variant][0]
  compared = torn = 0
  for batch in range(batches):
    own_prompts = prompts_of(variant)[batch * BATCH : (batch + 1) * BATCH]
    own = [oracle.Search(scripted.TableScript(tables(), p, config), config) for p in own_prompts]
    at = [search.iterations() for search in own]
    done, off = [0] * BATCH, set()
    with precision(x64=True):
      for state in _steps(config, own_prompts):
        iterations = np.asarray(state.counters.iterations)
        host = jax.tree.map(np.asarray, state.tree)
        for slot in set(range(BATCH)) - off:
          if iterations[slot] == done[slot]:
            continue  # a step of dynamic node addition
          done[slot] += 1
          next(at[slot])
          ours, theirs = _whole_tree(invariants.one(host, slot)), _whole_oracle(own[slot].root)
          same = [node[:2] for node in ours] == [node[:2] for node in theirs]
          close = same and np.allclose(
            [n[2:] for n in ours], [n[2:] for n in theirs], rtol=0, atol=1e-9
          )
          if not close and nearest(own[slot]) < 1e-9:
            off.add(slot)
            continue
          assert same, (batch, slot, done[slot])
          assert close, (batch, slot, done[slot])
          compared += len(ours)
    for slot in set(range(BATCH)) - off:
      assert own[slot].finish != oracle.RUNNING
    torn += len(off)
  print(f"\n{variant}: {compared} nodes compared, {torn} of {batches * BATCH} searches torn")
  assert torn <= 0.02 * batches * BATCH
  assert compared > 10_000


# Batching: whose neighbour one is must not matter.


def _same(a: list[decode.Result], b: list[decode.Result]) -> bool:
  strip = lambda result: {k: v for k, v in vars(result).items() if k != "slot"}
  return [strip(x) for x in a] == [strip(x) for x in b]


def test_slots_and_neighbours_do_not_matter():
  prompts = prompts_of("short")[:80]
  with precision(x64=True):
    first = answer(SHORT, prompts)
    again = answer(SHORT, prompts)
    shuffled = answer(SHORT, prompts, order=np.random.default_rng(0).permutation(80).tolist())
    narrow = answer(SHORT, prompts[:30], batch=3, order=list(range(29, -1, -1)))
  assert [x.slot for x in first] != [x.slot for x in shuffled]
  assert _same(first, again)
  assert _same(first, shuffled)
  assert _same(first[:30], narrow)


# Capacities and the options that are not the published algorithm.


def _spells(script: scripted.TableScript, tokens: list[int]) -> bool:
  """Whether `tokens` are made of sets that the script proposes, one after another."""

  def rest(text: oracle.Text, tokens: tuple[int, ...]) -> bool:
    if not tokens:
      return True
    proposals = [] if text else script.first()
    for times in range(8 if text else 0):
      proposals += script.draw(text, times, script.config.sampled_draws)
    heads = {p.tokens for p in proposals if p.tokens == tokens[: len(p.tokens)]}
    return any(rest(text + (head,), tokens[len(head) :]) for head in heads)

  return rest((), tuple(tokens))


def _sound_searches(config: types.SearchConfig) -> decode.DecodeState:
  """Searches for a batch of prompts with the invariants checked after every step."""
  prompts = prompts_of("short")[:BATCH]
  for state in _steps(config, prompts):
    host = jax.tree.map(np.asarray, state.tree)
    for slot in np.flatnonzero(state.active):
      invariants.check(invariants.one(host, slot))
  for slot, prompt in enumerate(prompts):
    length = int(state.response_length[slot])
    tokens = np.asarray(state.response[slot]).tolist()
    reason = types.FINISH_REASONS[int(state.finish[slot])]
    assert tokens[length:] == [types.NO_TOKEN] * (len(tokens) - length)
    assert reason in ("eos", "stop", "length", "exhausted")
    assert length == prompt.limit if reason == "length" else length <= prompt.limit
    assert _spells(scripted.TableScript(tables(), prompt, config), tokens[:length])
  return state


@pytest.mark.parametrize(
  "tight",
  [dict(max_nodes=24), pytest.param(dict(max_visited=6, max_path=2), marks=pytest.mark.slow)],
  ids=str,
)
def test_full_trees_commit_early_and_lose_nothing(tight):
  state = _sound_searches(dataclasses.replace(SHORT, early_commit=False, **tight))
  counters = state.counters
  assert counters.early_commits.sum() > BATCH
  assert (counters.early_commits <= counters.moves + 1).all()
  # A step visits a leaf, grows a node, or commits for want of room.
  steps = counters.iterations + counters.grows + counters.early_commits
  assert (counters.steps == steps).all()


def test_leaf_parallel_searches_are_sound():
  state = _sound_searches(dataclasses.replace(SHORT, leaves=4))
  assert state.counters.early_commits.sum() == 0
  # Several leaves a step, none of them twice: the first step has but the root.
  assert state.counters.iterations.sum() > 1.5 * state.counters.steps.sum()
