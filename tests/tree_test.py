"""The tree's arrays: insertion, slots, re-rooting, ties, the summary."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rain_jax import types
from rain_jax.search import tree as trees
from rain_jax.types import NO_NODE, NO_PAGE, NO_TOKEN, SearchConfig
from tests.helpers import invariants

CONFIG = SearchConfig(
  set_lengths=(1, 2, 3), num_candidates=2, max_children=4, max_nodes=24, max_visited=6
)
EMBEDDING_SIZE = 3
K, L = CONFIG.max_children, CONFIG.max_set_length

assign_page = jax.jit(trees.assign_page)
_insert = jax.jit(trees.insert)
_reroot = jax.jit(trees.reroot)
best_child = jax.jit(trees.best_child)


def visit(tree, node, enable=True):
  """`assign_page` for one node; (tree, slot as a number)."""
  tree, slot = assign_page(tree, jnp.int32(node), jnp.bool_(enable))
  return tree, int(slot)


def insert(tree, node, sets, priors=None, join=None, finish=None, rows=5):
  """Inserts token sets as children, in `rows` rows of which unused ones do not join."""
  tokens = np.full((rows, L), NO_TOKEN, np.int32)
  for row, one in enumerate(sets):
    tokens[row, : len(one)] = one
  fill = lambda values, dtype: np.array(list(values) + [0] * (rows - len(sets)), dtype)
  return _insert(
    tree,
    jnp.int32(node),
    jnp.asarray(tokens),
    fill([len(one) for one in sets], np.int32),
    fill(finish or [0] * len(sets), np.int32),
    fill(priors or [0.5] * len(sets), np.float32),
    fill([True] * len(sets) if join is None else join, bool),
  )


def reroot(tree, node, root_prior=0.75, enable=True):
  return _reroot(tree, jnp.int32(node), jnp.float32(root_prior), jnp.bool_(enable))


def planted(sets=((1,), (2,), (3,)), **more):
  """An empty tree whose root was visited and has children."""
  tree, _ = visit(trees.empty(CONFIG, EMBEDDING_SIZE), 0)
  return insert(tree, 0, sets, **more)


def ids(tree, node):
  """Children of `node`, as a list."""
  found = np.asarray(trees.children(tree, jnp.int32(node)))
  count = int(trees.num_children(tree, jnp.int32(node)))
  assert (found[count:] == NO_NODE).all()
  return found[:count].tolist()


def sets_of(tree, node):
  return [np.asarray(tree.tokens[i, : tree.length[i]]).tolist() for i in ids(tree, node)]


def same(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def check(tree):
  invariants.check(jax.tree.map(np.asarray, tree))


def test_an_empty_tree_is_an_unvisited_root():
  tree = trees.empty(CONFIG, EMBEDDING_SIZE)
  check(tree)
  assert ids(tree, 0) == [] and int(best_child(tree, jnp.int32(0))) == NO_NODE
  assert tree.max_nodes == 24 and tree.embedding.shape == (6, EMBEDDING_SIZE)
  assert trees.summary(tree) == [
    dict(
      id=0,
      parent=-1,
      depth=0,
      tokens=[],
      finish="running",
      visit_weight=0.0,
      visits=0,
      value=0.0,
      prior=0.0,
      visited=False,
    )
  ]


def test_children_join_in_order_and_rows_that_do_not_join_leave_no_trace():
  tree = planted([(5,), (6,), (7,)], join=[True, False, True], priors=[0.25, 0.5, 0.125])
  assert sets_of(tree, 0) == [[5], [7]]
  assert np.asarray(tree.prior)[ids(tree, 0)].tolist() == [0.25, 0.125]
  tree = insert(tree, 0, [(8,)])
  assert sets_of(tree, 0) == [[5], [7], [8]]
  first = ids(tree, 0)[0]
  tree, _ = visit(tree, first)
  tree = insert(tree, first, [(1, 2), (3,)], finish=[types.RUNNING, types.EOS])
  assert sets_of(tree, first) == [[1, 2], [3]] and len(ids(tree, 0)) == 3
  under = ids(tree, first)
  assert np.asarray(tree.depth)[under].tolist() == [2, 2]
  assert np.asarray(tree.finish)[under].tolist() == [types.RUNNING, types.EOS]
  assert int(tree.alive.sum()) == 6
  check(tree)


def test_nothing_joins_when_nothing_is_to():
  tree = planted()
  assert same(tree, insert(tree, 0, [(8,), (9,)], join=[False, False]))


def test_a_full_parent_takes_no_more():
  tree = insert(planted(), 0, [(8,), (9,), (10,)])
  assert sets_of(tree, 0) == [[1], [2], [3], [8]]
  assert int(tree.alive.sum()) == 1 + K
  check(tree)
  assert same(tree, insert(tree, 0, [(11,)]))


def test_a_full_tree_takes_no_more_and_says_so_before():
  config = dataclasses.replace(CONFIG, max_nodes=9)
  tree, _ = visit(trees.empty(config, EMBEDDING_SIZE), 0)
  tree = insert(tree, 0, [(1,), (2,), (3,), (4,)])
  assert bool(trees.has_room(tree, config))
  node = ids(tree, 0)[1]
  tree, _ = visit(tree, node)
  tree = insert(tree, node, [(5,), (6,)])
  assert not bool(trees.has_room(tree, config))  # two free, three may be asked for
  tree = insert(tree, node, [(7,), (8,)])
  assert tree.alive.all() and sets_of(tree, node) == [[5], [6], [7], [8]]
  other = ids(tree, 0)[2]
  tree, _ = visit(tree, other)
  full = insert(tree, other, [(9,)])
  assert ids(full, other) == [] and same(full, tree)
  check(full)
  tree = insert(reroot(full, node), ids(full, node)[0], [], rows=5)
  child = ids(tree, node)[0]
  tree, _ = visit(tree, child)
  tree = insert(tree, child, [(1, 1), (2, 2)])
  assert sets_of(tree, child) == [[1, 1], [2, 2]] and sets_of(tree, node) == [[5], [6], [7], [8]]
  check(tree)


@pytest.mark.parametrize("leaves", [1, 2])
def test_room_is_what_a_step_may_need(leaves):
  config = dataclasses.replace(CONFIG, leaves=leaves)
  tree = trees.empty(config, EMBEDDING_SIZE)
  needed = leaves * config.num_candidates + 1
  with_nodes = lambda free: tree.replace(alive=jnp.arange(24) < 24 - free)
  with_slots = lambda free: tree.replace(taken=jnp.arange(6) < 6 - free)
  assert bool(trees.has_room(with_nodes(needed), config))
  assert not bool(trees.has_room(with_nodes(needed - 1), config))
  assert bool(trees.has_room(with_slots(leaves), config))
  assert not bool(trees.has_room(with_slots(leaves - 1), config))


def test_a_slot_is_given_once_and_only_when_enabled():
  tree = planted()
  a, b, _ = ids(tree, 0)
  off, _ = visit(tree, a, enable=False)
  assert same(off, tree)
  tree, slot = visit(tree, a)
  again, same_slot = visit(tree, a)
  assert slot == same_slot and same(again, tree)
  tree, other = visit(tree, b)
  assert len({0, slot, other}) == 3 and int(tree.taken.sum()) == 3
  check(tree)


def test_a_slot_used_again_holds_nothing_of_the_node_before():
  tree = planted()
  a, b, _ = ids(tree, 0)
  tree, slot_a = visit(tree, a)
  tree, page_b = visit(tree, b)
  tree = insert(insert(tree, a, [(1, 2), (3, 4)]), b, [(5, 6)])
  kept = ids(tree, b)
  tree = tree.replace(
    embedding=tree.embedding.at[:].set(9.0),
    due=tree.due.at[:].set(True),
    proposal_length=tree.proposal_length.at[:].set(2),
  )
  tree = reroot(tree, b)
  assert set(np.flatnonzero(tree.taken).tolist()) == {page_b}
  assert int(tree.page[b]) == page_b and int(tree.page[a]) == NO_PAGE
  check(tree)
  tree, slot = visit(tree, kept[0])
  assert slot in {0, slot_a}  # the old root's or that of `a`
  assert ids(tree, kept[0]) == [] and not tree.due[slot]
  assert (tree.embedding[slot] == 0).all() and (tree.proposal_length[slot] == 0).all()
  assert (tree.embedding[page_b] == 9).all() and bool(tree.due[page_b])  # the root keeps its own
  # Freed node ids come back too, with fresh statistics.
  tree = tree.replace(
    visit_weight=tree.visit_weight.at[a].set(7.0),
    visits=tree.visits.at[a].set(7),
    value=tree.value.at[a].set(0.5),
  )
  tree = insert(tree, kept[0], [(7, 7), (8, 8)])
  new = ids(tree, kept[0])
  assert {0, a} == set(new)
  for name in ("visit_weight", "visits", "value"):
    assert (np.asarray(getattr(tree, name))[new] == 0).all()
  assert (np.asarray(tree.page)[new] == NO_PAGE).all()
  check(tree)


def test_reroot_keeps_the_subtree_as_it_is_and_mixes_the_priors():
  tree = planted()
  a = ids(tree, 0)[0]
  tree, _ = visit(tree, a)
  tree = insert(tree, a, [(1, 2), (3, 4), (5, 6)], priors=[0.9, 0.6, 0.3])  # grown: more than 1
  tree = tree.replace(
    visit_weight=tree.visit_weight.at[a].set(4.2),
    visits=tree.visits.at[a].set(4),
    value=tree.value.at[a].set(-0.25),
  )
  under = ids(tree, a)
  after = reroot(tree, a, root_prior=0.6)
  assert int(after.root) == a and int(after.parent[a]) == NO_NODE
  assert ids(after, a) == under and int(after.depth[a]) == 1
  assert (float(after.visit_weight[a]), int(after.visits[a]), float(after.value[a])) == (
    np.float32(4.2),
    4,
    -0.25,
  )
  expected = np.array([0.6 * p + 0.4 / 3 for p in (0.9, 0.6, 0.3)])
  priors = np.asarray(after.prior)[under]
  np.testing.assert_allclose(priors, expected / expected.sum(), rtol=1e-6)
  assert priors.sum() == pytest.approx(1, abs=1e-6)
  assert sorted(np.flatnonzero(after.alive).tolist()) == sorted([a, *under])
  check(after)


def test_reroot_changes_nothing_unless_enabled():
  tree = planted()
  assert same(tree, reroot(tree, ids(tree, 0)[0], enable=False))


def test_reroot_to_a_leaf_or_an_unvisited_node_leaves_it_alone():
  tree = planted()
  a, b, _ = ids(tree, 0)
  tree, _ = visit(tree, b)
  for node, slots in ((a, 0), (b, 1)):
    after = reroot(tree, node)
    assert np.flatnonzero(after.alive).tolist() == [node]
    assert int(after.taken.sum()) == slots and ids(after, node) == []
    assert np.isfinite(np.asarray(after.prior)).all()
    check(after)


@pytest.mark.parametrize(
  "n,q,winner",
  [
    ([1, 3, 2], [0.9, -1, 0.9], 1),  # weight first, however bad
    ([3, 3, 2], [0.1, 0.2, 1], 1),  # then value
    ([3, 3, 3], [-1, -1, -1], 0),  # then age
    ([0, 0, 0], [0, 0, 0], 0),
    ([2.0, 2.0000002, 2.0], [1, -1, 1], 1),  # a similar sibling's fraction counts
  ],
)
def test_best_child(n, q, winner):
  tree = planted()
  at = np.array(ids(tree, 0))
  # Ids after the last child point at other nodes when read carelessly.
  tree = tree.replace(
    visit_weight=tree.visit_weight.at[0].set(99).at[-1].set(99), value=tree.value.at[-1].set(1)
  )
  tree = tree.replace(
    visit_weight=tree.visit_weight.at[at].set(jnp.array(n, jnp.float32)),
    value=tree.value.at[at].set(jnp.array(q, jnp.float32)),
  )
  assert int(best_child(tree, jnp.int32(0))) == at[winner]


class Plain:
  """A node of the reference: objects that point at each other."""

  def __init__(self, parent, tokens, p, finish="running"):
    self.parent, self.tokens, self.finish = parent, list(tokens), finish
    self.depth = parent.depth + 1 if parent else 0
    self.n, self.f, self.q, self.p = 0.0, 0, 0.0, p
    self.visited, self.children = False, []

  def nodes(self):
    queue = [self]
    for node in queue:
      queue += node.children
    return queue

  def record(self):
    return dict(
      depth=self.depth,
      tokens=self.tokens,
      finish=self.finish,
      visit_weight=self.n,
      visits=self.f,
      value=self.q,
      visited=self.visited,
    )


def compare(tree, root):
  """The tree's summary against the reference, priors apart; its order is breadth first."""
  found, expected = trees.summary(tree), root.nodes()
  assert [{k: v for k, v in r.items() if k not in ("id", "parent", "prior")} for r in found] == [
    node.record() for node in expected
  ]
  np.testing.assert_allclose([r["prior"] for r in found], [n.p for n in expected], atol=1e-5)
  place = {node: r["id"] for node, r in zip(expected, found)}
  parents = [place[n.parent] if n.parent and n.parent in place else -1 for n in expected]
  assert [r["parent"] for r in found] == parents
  return place


@pytest.mark.parametrize("seed", range(4))
def test_random_histories_equal_a_plain_tree(seed):
  rng = np.random.default_rng(seed)
  tree, root = trees.empty(CONFIG, EMBEDDING_SIZE), Plain(None, [], 0.0)
  reroots = refused = 0
  for _ in range(90):
    place = compare(tree, root)
    check(tree)
    nodes = root.nodes()
    visited = [n for n in nodes if n.visited]
    what = rng.random()
    if what < 0.35 and len(visited) < CONFIG.max_visited:
      node = nodes[rng.integers(len(nodes))]
      tree, _ = visit(tree, place[node])
      node.visited = True
    elif what < 0.8 and visited:
      node = visited[rng.integers(len(visited))]
      count = int(rng.integers(1, 5))
      sets = [[int(rng.integers(10**6)), seed] for _ in range(count)]
      priors = rng.random(count).astype(np.float32).tolist()
      join = (rng.random(count) < 0.8).tolist()
      tree = insert(tree, place[node], sets, priors, join)
      room = min(K - len(node.children), CONFIG.max_nodes - len(nodes))
      joined = [Plain(node, s, p) for s, p, j in zip(sets, priors, join) if j]
      refused += len(joined) > room
      node.children += joined[: max(room, 0)]
    elif root.children:
      node = root.children[rng.integers(len(root.children))]
      if node.visited and node.children or rng.random() < 0.1:
        tree = reroot(tree, place[node])
        root, reroots = node, reroots + 1
        mixed = [0.75 * c.p + 0.25 / len(root.children) for c in root.children]
        for child, p in zip(root.children, mixed):
          child.p = p / sum(mixed)
  assert reroots and refused, (reroots, refused)


def test_trees_of_a_batch_do_not_touch_each_other():
  one, other = planted(), planted([(9,)])
  both = jax.tree.map(lambda a, b: jnp.stack([a, b]), one, other)
  node = jnp.array([ids(one, 0)[0], 0])
  after = jax.vmap(lambda t, n, e: trees.reroot(t, n, 0.75, e))(
    both, node, jnp.array([True, False])
  )
  assert same(invariants.one(after, 1), other)
  assert same(invariants.one(after, 0), reroot(one, int(node[0])))


def test_summary_is_plain_numbers_whatever_the_tree_holds():
  biggest = 2**31 - 1
  tree = planted([(0,), (biggest,), (3, 0, 0)], finish=[types.EOS, types.LENGTH, types.STOP])
  a, b, c = ids(tree, 0)
  tree = tree.replace(
    visit_weight=tree.visit_weight.at[a].set(np.inf),
    value=tree.value.at[b].set(np.nan),
    prior=tree.prior.at[c].set(-0.0),
    visits=tree.visits.at[a].set(biggest),
    due=tree.due.at[:].set(True),
  )
  records = trees.summary(tree)
  assert [r["tokens"] for r in records] == [[], [0], [biggest], [3, 0, 0]]
  assert [r["finish"] for r in records] == ["running", "eos", "length", "stop"]
  assert (
    records[1]["visit_weight"] == math.inf
    and math.isnan(records[2]["value"])
    and records[1]["visits"] == biggest
  )
  assert [r["visited"] for r in records] == [True, False, False, False]
  assert json.loads(json.dumps(records))[1]["tokens"] == [0]
  # Dead nodes and slots do not show, whatever stands in them.
  tree = reroot(tree, b)
  assert [r["id"] for r in trees.summary(tree)] == [b] and trees.summary(tree)[0]["parent"] == -1
