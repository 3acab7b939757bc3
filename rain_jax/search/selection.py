"""Selection: the descent from the root to a leaf (RAIN, section 3.2).

Every descent starts at the root again: that is how the search rewinds, see `rewind`.
"""

from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp

from rain_jax import types
from rain_jax.search import tree as trees
from rain_jax.search.tree import Tree
from rain_jax.types import NO_NODE, NO_PAGE, NO_TOKEN, Array, Request, SearchConfig


class Selection(flax.struct.PyTreeNode):
  """Where one descent ended; arrays of one leaf of one tree.

  Attributes:
    mode: int32[] IDLE, VISIT or GROW.
    leaf: int32[] node id.
    path: int32[D] node ids from the root's child to the leaf, then NO_NODE.
    path_length: int32[].
    too_deep: bool[] the leaf lies deeper than D nodes: the tree must commit.
  """

  mode: Array
  leaf: Array
  path: Array
  path_length: Array
  too_deep: Array


def scores(tree: Tree, node: Array, virtual: Array, config: SearchConfig) -> Array:
  """Selection scores of the children of `node`, float[K], -inf where there is none.

  `Q + c * p * sqrt(n_parent) / (1 + n)` with Q = (q + 1) / 2.00001, and Q = 0 for an
  untried child. `virtual` int32[N] counts the descents of this step through each node:
  every one stands for a visit with verdict -1 until the real verdict comes.
  """
  ids = trees.children(tree, node)
  waiting = virtual[ids]
  n = tree.visit_weight[ids] + waiting
  q = (tree.value[ids] * tree.visit_weight[ids] - waiting) / jnp.maximum(n, 1e-9)
  exploit = jnp.where(n > 0, (q + 1) / 2.00001, 0.0)
  n_parent = tree.visit_weight[node] + virtual[node]
  explore = config.exploration * tree.prior[ids] * jnp.sqrt(n_parent) / (1 + n)
  return jnp.where(ids >= 0, exploit + explore, -jnp.inf)


class _Descent(NamedTuple):
  """Where a descent has come to: node int32[], the path int32[D] to it, its length int32[]."""

  node: Array
  path: Array
  length: Array


def select(tree: Tree, virtual: Array, config: SearchConfig) -> Selection:
  """Descends from the root to a leaf, or to a node where growth is due.

  Ties go to the child that joined first. A leaf that another descent of this step
  already chose is left IDLE.
  """
  D = config.max_path

  def growth(node: Array) -> Array:
    return jnp.where(tree.page[node] >= 0, tree.due[tree.page[node]], False)

  def descend(at: _Descent) -> _Descent:
    child = trees.children(tree, at.node)[jnp.argmax(scores(tree, at.node, virtual, config))]
    return _Descent(child, at.path.at[at.length].set(child, mode="drop"), at.length + 1)

  def unfinished(at: _Descent) -> Array:
    return (trees.num_children(tree, at.node) > 0) & ~growth(at.node) & (at.length < D)

  start = _Descent(tree.root, jnp.full(D, NO_NODE, jnp.int32), jnp.int32(0))
  leaf, path, length = jax.lax.while_loop(unfinished, descend, start)
  inner = trees.num_children(tree, leaf) > 0
  grow = inner & growth(leaf)
  # Growing what another descent also waits on would draw the same node's children twice.
  idle = virtual[leaf] > 0
  too_deep = inner & ~grow
  mode = jnp.where(grow, types.GROW, types.VISIT)
  return Selection(
    mode=jnp.where(idle & (~inner | grow) | too_deep, types.IDLE, mode),
    leaf=leaf,
    path=path,
    path_length=length,
    too_deep=too_deep,
  )


def select_leaves(tree: Tree, active: Array, config: SearchConfig) -> Selection:
  """W descents one after another, each with a virtual loss on its path; fields [W, ...]."""

  def one(virtual: Array, _: None) -> tuple[Array, Selection]:
    chosen = select(tree, virtual, config)
    chosen = chosen.replace(mode=jnp.where(active, chosen.mode, types.IDLE))
    passed = jnp.where(chosen.mode != types.IDLE, 1, 0)
    at = jnp.where(chosen.path >= 0, chosen.path, tree.max_nodes)
    virtual = virtual.at[at].add(passed, mode="drop").at[tree.root].add(passed)
    return virtual, chosen

  _, chosen = jax.lax.scan(one, jnp.zeros(tree.max_nodes, jnp.int32), length=config.leaves)
  return chosen


def make_request(tree: Tree, chosen: Selection) -> tuple[Tree, Request]:
  """Slots for the chosen leaves, and the request for them; fields [W, ...]."""

  def one(tree: Tree, leaf: Selection) -> tuple[Tree, tuple[Array, Array]]:
    fresh = (leaf.mode == types.VISIT) & (tree.page[leaf.leaf] < 0)
    tree, page = trees.assign_page(tree, leaf.leaf, leaf.mode == types.VISIT)
    return tree, (page, fresh)

  tree, (leaf_page, fresh) = jax.lax.scan(one, tree, chosen)
  on_path = chosen.path >= 0
  return tree, Request(
    mode=chosen.mode,
    leaf_page=leaf_page,
    first_visit=fresh,
    finish=tree.finish[chosen.leaf],
    depth=tree.depth[chosen.leaf],
    path_length=chosen.path_length,
    path_pages=jnp.where(on_path, tree.page[chosen.path], NO_PAGE),
    path_tokens=jnp.where(on_path[..., None], tree.tokens[chosen.path], NO_TOKEN),
    path_lengths=jnp.where(on_path, tree.length[chosen.path], 0),
  )
