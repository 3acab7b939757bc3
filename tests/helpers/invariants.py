"""What must hold of every search tree, whatever has been done to it."""

import jax
import numpy as np

from rain_jax.search.tree import Tree


def one(trees: Tree, slot: int) -> Tree:
  """One of B trees, on the host."""
  return jax.tree.map(lambda array: np.asarray(array)[slot], trees)


def check(tree: Tree) -> None:
  """Raises `AssertionError` unless one tree, on the host, is consistent."""
  alive = np.flatnonzero(tree.alive).tolist()
  root = int(tree.root)
  assert tree.alive[root] and tree.parent[root] == -1

  slots = [int(tree.page[node]) for node in alive if tree.page[node] >= 0]
  assert len(set(slots)) == len(slots), "two nodes share a slot"
  assert set(np.flatnonzero(tree.taken)) == set(slots), "slots in use and nodes disagree"

  reached, queue = [root], [root]
  while queue:
    node = queue.pop()
    slot = int(tree.page[node])
    if slot < 0:
      assert tree.visits[node] == 0 and tree.visit_weight[node] == 0, "visits without a slot"
      continue
    count = int(tree.num_children[slot])
    children = tree.children[slot, :count].tolist()
    assert (tree.children[slot, count:] == -1).all(), "children after the last"
    assert len({bytes(tree.tokens[child]) for child in children}) == count, "twins"
    for child in children:
      assert tree.alive[child], "a freed child"
      assert tree.parent[child] == node, "a child of another parent"
      assert tree.depth[child] == tree.depth[node] + 1
      assert tree.length[child] > 0
      assert (tree.tokens[child] >= 0).sum() == tree.length[child]
    # A node was visited itself, or on the way to a child, or both.
    assert tree.visits[node] >= sum(int(tree.visits[child]) for child in children)
    assert tree.finish[node] == 0 or not children, "children after a text's end"
    reached += children
    queue += children
  assert sorted(reached) == alive, "nodes that hang nowhere, or in two places"

  assert (tree.visit_weight[alive] >= tree.visits[alive] - 1e-4).all()
  assert (np.abs(tree.value[alive]) <= 1 + 1e-5).all()
  assert np.isfinite(tree.prior[alive]).all() and (tree.prior[alive] >= 0).all()
