"""The search tree: fixed-shape arrays, insertion, re-rooting.

Functions here work on one tree, whose arrays have the shapes of the docstring without
their leading B; `jax.vmap` gives the batch. Node ids are stable for a node's life:
re-rooting frees the discarded nodes in place, and insertion takes free ids, so nothing
that refers to a node (a model's caches do, by page) has to move.
"""

import flax
import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import types
from rain_jax.types import NO_NODE, NO_PAGE, NO_TOKEN, Array, SearchConfig


class Tree(flax.struct.PyTreeNode):
  """B search trees.

  What every node has is indexed by node id (N). What only visited nodes have, children
  and embeddings among them, is indexed by the page a node gets at its first visit (V).
  Floats are float32, or float64 under `jax_enable_x64`.

  Attributes:
    root: int32[B] node id of the root.
    alive: bool[B, N] node ids in use.
    parent: int32[B, N], NO_NODE at the root.
    depth: int32[B, N] token sets between the start of the response and the node.
    tokens: int32[B, N, L] the edge into the node, NO_TOKEN after its end.
    length: int32[B, N] its length in tokens.
    finish: int32[B, N] why the node's text is finished, or RUNNING.
    visit_weight: float[B, N] visit weight; similar siblings add fractions.
    visits: int32[B, N] plain visit count.
    value: float[B, N] mean value, in [-1, 1].
    prior: float[B, N] prior.
    page: int32[B, N], NO_PAGE before the first visit.
    taken: bool[B, V] pages in use.
    children: int32[B, V, K] node ids in the order they joined, then NO_NODE.
    num_children: int32[B, V].
    embedding: float[B, V, E] mean path embedding.
    due: bool[B, V] dynamic node addition is due when a descent next meets the node.
    proposal_tokens: int32[B, V, K, L] the node's proposals, most recent grows first.
    proposal_length: int32[B, V, K]; 0 after the end of the list.
    proposal_log_weight: float[B, V, K].
    proposal_finish: int32[B, V, K].
  """

  root: Array
  alive: Array
  parent: Array
  depth: Array
  tokens: Array
  length: Array
  finish: Array
  visit_weight: Array
  visits: Array
  value: Array
  prior: Array
  page: Array
  taken: Array
  children: Array
  num_children: Array
  embedding: Array
  due: Array
  proposal_tokens: Array
  proposal_length: Array
  proposal_log_weight: Array
  proposal_finish: Array

  @property
  def max_nodes(self) -> int:
    """Node slots of a tree (N)."""
    return self.parent.shape[-1]


def empty(config: SearchConfig, embedding_size: int) -> Tree:
  """One tree that holds nothing but an unvisited root at depth 0 (node 0)."""
  N, V, K, L = config.max_nodes, config.max_visited, config.max_children, config.max_set_length
  return Tree(
    root=jnp.int32(0),
    alive=jnp.zeros(N, bool).at[0].set(True),
    parent=jnp.full(N, NO_NODE, jnp.int32),
    depth=jnp.zeros(N, jnp.int32),
    tokens=jnp.full((N, L), NO_TOKEN, jnp.int32),
    length=jnp.zeros(N, jnp.int32),
    finish=jnp.full(N, types.RUNNING, jnp.int32),
    visit_weight=jnp.zeros(N, float),
    visits=jnp.zeros(N, jnp.int32),
    value=jnp.zeros(N, float),
    prior=jnp.zeros(N, float),
    page=jnp.full(N, NO_PAGE, jnp.int32),
    taken=jnp.zeros(V, bool),
    children=jnp.full((V, K), NO_NODE, jnp.int32),
    num_children=jnp.zeros(V, jnp.int32),
    embedding=jnp.zeros((V, embedding_size), float),
    due=jnp.zeros(V, bool),
    proposal_tokens=jnp.full((V, K, L), NO_TOKEN, jnp.int32),
    proposal_length=jnp.zeros((V, K), jnp.int32),
    proposal_log_weight=jnp.zeros((V, K), float),
    proposal_finish=jnp.zeros((V, K), jnp.int32),
  )


def set_length(depth: Array, config: SearchConfig) -> Array:
  """Tokens in the sets of the children of a node at `depth`, int32[...]."""
  lengths = jnp.asarray(config.set_lengths, jnp.int32)
  return lengths[jnp.minimum(depth, len(config.set_lengths) - 1)]


def children(tree: Tree, node: Array) -> Array:
  """Node ids of the children of `node`, int32[K], NO_NODE after the last."""
  page = tree.page[node]
  return jnp.where(page >= 0, tree.children[page], NO_NODE)


def num_children(tree: Tree, node: Array) -> Array:
  """Number of children of `node`, int32[]."""
  page = tree.page[node]
  return jnp.where(page >= 0, tree.num_children[page], 0)


def best_child(tree: Tree, node: Array) -> Array:
  """The child with the highest visit weight, ties by value, then by age; NO_NODE if there is none."""
  ids = children(tree, node)
  n = jnp.where(ids >= 0, tree.visit_weight[ids], -1.0)
  top = (n == n.max()) & (ids >= 0)
  q = jnp.where(top, tree.value[ids], -jnp.inf)
  return jnp.where(top.any(), ids[jnp.argmax(q)], NO_NODE)


def has_room(tree: Tree, config: SearchConfig) -> Array:
  """Whether a step's visits, expansions and node additions fit, bool[]."""
  nodes = config.leaves * config.num_candidates + 1  # one more joins at a depth-0 root
  free_nodes = tree.max_nodes - tree.alive.sum()
  free_pages = tree.taken.shape[0] - tree.taken.sum()
  return (free_nodes >= nodes) & (free_pages >= config.leaves)


def _free(taken: Array, rank: Array | int) -> Array:
  """Index of the free entry number `rank` (from 0), or the length if there is none."""
  return jnp.searchsorted(jnp.cumsum(~taken), rank + 1, method="compare_all")


def assign_page(tree: Tree, node: Array, enable: Array) -> tuple[Tree, Array]:
  """Gives `node` a page for visited nodes if it has none; (tree, page int32[])."""
  fresh = enable & (tree.page[node] < 0)
  page = jnp.where(fresh, _free(tree.taken, 0), tree.page[node]).astype(jnp.int32)
  at = jnp.where(fresh, page, tree.taken.shape[0])
  tree = tree.replace(
    page=tree.page.at[jnp.where(fresh, node, tree.max_nodes)].set(page, mode="drop"),
    taken=tree.taken.at[at].set(True, mode="drop"),
    children=tree.children.at[at].set(NO_NODE, mode="drop"),
    num_children=tree.num_children.at[at].set(0, mode="drop"),
    embedding=tree.embedding.at[at].set(0.0, mode="drop"),
    due=tree.due.at[at].set(False, mode="drop"),
    proposal_length=tree.proposal_length.at[at].set(0, mode="drop"),
  )
  return tree, page


def insert(
  tree: Tree,
  node: Array,
  tokens: Array,
  length: Array,
  finish: Array,
  prior: Array,
  join: Array,
) -> Tree:
  """Adds children to the visited `node`, in the order given.

  Args:
    tree: one tree.
    node: int32[] the parent; it must have a page.
    tokens: int32[C, L].
    length: int32[C].
    finish: int32[C].
    prior: float[C].
    join: bool[C] which rows join; rows beyond the parent's K children, or beyond the
      free node slots, are left out (`has_room` is asked before).
  """
  page, N = tree.page[node], tree.max_nodes
  rank = jnp.cumsum(join) - 1
  place = tree.num_children[page] + rank
  ids = _free(tree.alive, rank).astype(jnp.int32)
  join = join & (place < tree.children.shape[-1]) & (ids < N)
  at = jnp.where(join, ids, N)
  put = lambda array, value: array.at[at].set(value, mode="drop")
  return tree.replace(
    alive=put(tree.alive, True),
    parent=put(tree.parent, node),
    depth=put(tree.depth, tree.depth[node] + 1),
    tokens=put(tree.tokens, tokens),
    length=put(tree.length, length),
    finish=put(tree.finish, finish),
    visit_weight=put(tree.visit_weight, 0.0),
    visits=put(tree.visits, 0),
    value=put(tree.value, 0.0),
    prior=put(tree.prior, prior),
    page=put(tree.page, NO_PAGE),
    children=tree.children.at[page, jnp.where(join, place, tree.children.shape[-1])].set(
      ids, mode="drop"
    ),
    num_children=tree.num_children.at[page].add(join.sum(dtype=jnp.int32)),
    due=tree.due.at[page].set(tree.due[page] & ~join.any()),
  )


def reroot(tree: Tree, node: Array, root_prior: float, enable: Array) -> Tree:
  """Makes `node` the root, keeps its subtree, frees the rest (RAIN, section 3.1).

  The priors of its children are mixed with the uniform distribution, as at any root,
  and made to sum to one.
  """
  root = jnp.where(enable, node, tree.root)
  # Pointer doubling: after k rounds `up` is the ancestor 2^k levels above, with the
  # new root and nodes above it as fixed points.
  up = jnp.where(tree.parent < 0, jnp.arange(tree.max_nodes), tree.parent)
  up = up.at[root].set(root)
  rounds = int(np.ceil(np.log2(tree.max_nodes)))
  up = jax.lax.fori_loop(0, rounds, lambda _, u: u[u], up)
  keep = jnp.where(enable, tree.alive & (up == root), tree.alive)

  V = tree.taken.shape[0]
  held = jnp.where(keep & (tree.page >= 0), tree.page, V)
  taken = jnp.zeros(V, bool).at[held].set(True, mode="drop")
  ids = children(tree, root)
  count = num_children(tree, root)
  mixed = root_prior * tree.prior[ids] + (1 - root_prior) / jnp.maximum(count, 1)
  mixed = mixed / jnp.sum(jnp.where(ids >= 0, mixed, 0.0))
  at = jnp.where(enable & (ids >= 0), ids, tree.max_nodes)
  return tree.replace(
    root=root,
    alive=keep,
    parent=tree.parent.at[root].set(NO_NODE),
    page=jnp.where(keep, tree.page, NO_PAGE),
    taken=jnp.where(enable, taken, tree.taken),
    prior=tree.prior.at[at].set(mixed, mode="drop"),
  )


def summary(tree: Tree) -> list[dict]:
  """One tree as plain records, on the host, parents before children.

  Each has `id`, `parent`, `depth`, `tokens`, `finish`, `visit_weight`, `visits`, `value`, `prior` and `visited`.
  """
  host = jax.tree.map(np.asarray, tree)
  records, queue = [], [int(host.root)]
  while queue:
    node = queue.pop(0)
    page = int(host.page[node])
    records.append(
      dict(
        id=node,
        parent=int(host.parent[node]),
        depth=int(host.depth[node]),
        tokens=[int(t) for t in host.tokens[node, : host.length[node]]],
        finish=types.FINISH_REASONS[host.finish[node]],
        visit_weight=float(host.visit_weight[node]),
        visits=int(host.visits[node]),
        value=float(host.value[node]),
        prior=float(host.prior[node]),
        visited=page >= 0,
      )
    )
    if page >= 0:
      queue += [int(c) for c in host.children[page, : host.num_children[page]]]
  return records
