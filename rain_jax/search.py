"""The inner loop: select, roll out and self-evaluate, expand, back up.

One `step` does one iteration in every tree (RAIN, section 3.2; with `leaves` > 1, up to
W of them). Rollout and self-evaluation are the model's part, asked for through
`types.Model.evaluate`; everything else is here, as functions of one tree that `jax.vmap`
batches. Every idea of the method has one home: `scores`, `select`, `expand`,
`similarity_weights`, `backup`, `growth_due` and `grow`.
"""

from typing import Any

import flax
import jax
import jax.numpy as jnp

from rain_jax import tree as trees
from rain_jax import types
from rain_jax.tree import Tree
from rain_jax.types import NO_NODE, NO_PAGE, NO_TOKEN, Array, Evaluation, Request, SearchConfig


@flax.struct.dataclass
class Selection:
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


@flax.struct.dataclass
class StepInfo:
  """What one step did to each of B trees.

  Attributes:
    iterations: int32[B] leaves visited.
    grows: int32[B] dynamic node additions that drew from the model.
    joined: int32[B] children that joined by dynamic node addition.
    similarity_updates: int32[B] siblings that shared a verdict.
    duplicates: int32[B] candidates dropped as duplicates.
    revisits: int32[B] visits of a leaf whose text was finished before.
    full: bool[B] no room for a step, or a path too long: the tree has to commit.
    failed: bool[B] the model's output was not finite.
    leaf: int32[B] the last visited leaf, NO_NODE if none was.
    path: int32[B, D] the path to it.
  """

  iterations: Array
  grows: Array
  joined: Array
  similarity_updates: Array
  duplicates: Array
  revisits: Array
  full: Array
  failed: Array
  leaf: Array
  path: Array


def set_length(depth: Array, config: SearchConfig) -> Array:
  """Tokens in the sets of the children of a node at `depth`, int32[...]."""
  lengths = jnp.asarray(config.set_lengths, jnp.int32)
  return lengths[jnp.minimum(depth, len(config.set_lengths) - 1)]


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


def select(tree: Tree, virtual: Array, config: SearchConfig) -> Selection:
  """Descends from the root to a leaf, or to a node where growth is due.

  Ties go to the child that joined first. A leaf that another descent of this step
  already chose is left IDLE.
  """
  D = config.max_path

  def growth(node):
    return jnp.where(tree.page[node] >= 0, tree.due[tree.page[node]], False)

  def descend(carry):
    node, path, length = carry
    child = trees.children(tree, node)[jnp.argmax(scores(tree, node, virtual, config))]
    return child, path.at[length].set(child, mode="drop"), length + 1

  def unfinished(carry):
    node, _, length = carry
    return (trees.num_children(tree, node) > 0) & ~growth(node) & (length < D)

  start = (tree.root, jnp.full(D, NO_NODE, jnp.int32), jnp.int32(0))
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

  def one(virtual, _):
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

  def one(tree, leaf):
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


def distinct(tokens: Array, length: Array) -> Array:
  """Which candidates repeat no earlier one, bool[C]; unused rows (length 0) are out."""
  same = jnp.all(tokens[:, None] == tokens[None], axis=-1)
  earlier = jnp.tril(same, -1) & (length > 0)[None]
  return (length > 0) & ~earlier.any(axis=-1)


def clip_greedy(log_weights: Array, keep: Array) -> Array:
  """Log weights with the greedy candidate's (row 0) brought into line, float[C].

  First no more than the sum of the sampled weights, then no less than the sum of the
  largest and the smallest; its own weight if no sampled candidate is left.
  """
  sampled = keep.at[0].set(False)
  logs = jnp.where(sampled, log_weights, -jnp.inf)
  total = jax.nn.logsumexp(logs)
  ends = jnp.logaddexp(logs.max(), jnp.where(sampled, log_weights, jnp.inf).min())
  greedy = jnp.maximum(jnp.minimum(log_weights[0], total), ends)
  return log_weights.at[0].set(jnp.where(sampled.any(), greedy, log_weights[0]))


def _priors(log_weights: Array, use: Array, is_root: Array, config: SearchConfig) -> Array:
  """Weights of the rows in `use`, normalised, mixed with the uniform at a root."""
  p = jax.nn.softmax(jnp.where(use, log_weights, -jnp.inf))
  mixed = config.root_prior * p + (1 - config.root_prior) / jnp.maximum(use.sum(), 1)
  return jnp.where(is_root, mixed, p)


def _ranked(use: Array, size: int, *arrays: Array) -> tuple[Array, ...]:
  """Rows in `use` moved to the front, order kept; the first `size` of each array."""
  order = jnp.argsort(~use, stable=True)[:size]
  return (use[order],) + tuple(array[order] for array in arrays)


def expand(
  tree: Tree, leaf: Array, answer: Evaluation, enable: Array, config: SearchConfig
) -> tuple[Tree, Array]:
  """Gives a visited leaf its first children (RAIN, section 3.2, expansion).

  Args:
    tree: one tree.
    leaf: int32[] node id, with a page.
    answer: the model's answer for this leaf; fields [C, ...].
    enable: bool[]; False leaves the tree as it is.
    config: the search's hyperparameters.

  Returns:
    The tree and the number of duplicates dropped.
  """
  first = tree.depth[leaf] == 0
  keep = distinct(answer.tokens, answer.lengths)
  # Redrawing stops at the wanted number of distinct candidates.
  wanted = keep & (first | (jnp.cumsum(keep) <= config.num_candidates))
  dropped = jnp.where(first, 0, jnp.sum((answer.lengths > 0) & ~keep, dtype=jnp.int32))
  weights = jnp.where(first, answer.log_weights, clip_greedy(answer.log_weights, wanted))

  K = config.max_children
  listed, tokens, length, finish, weights = _ranked(
    wanted, K, answer.tokens, answer.lengths, answer.finish, weights
  )
  length = jnp.where(listed, length, 0)
  page = jnp.where(enable, tree.page[leaf], tree.taken.shape[0])
  tree = tree.replace(
    proposal_tokens=tree.proposal_tokens.at[page].set(tokens, mode="drop"),
    proposal_length=tree.proposal_length.at[page].set(length, mode="drop"),
    proposal_log_weight=tree.proposal_log_weight.at[page].set(weights, mode="drop"),
    proposal_finish=tree.proposal_finish.at[page].set(finish, mode="drop"),
  )
  join = listed & (jnp.arange(K) < config.num_candidates)
  # At depth 0 the candidates' temperature shapes the first priors, while the list keeps
  # the plain probabilities for later growth, as in the published code.
  heat = jnp.where(first, config.temperature, 1.0)
  prior = _priors(weights / heat, join, leaf == tree.root, config)
  # ... and the children join in token order, not in order of probability.
  order = jnp.argsort(jnp.where(join, jnp.where(first, tokens[:, 0], jnp.arange(K)), 2**30))
  tree = trees.insert(
    tree, leaf, tokens[order], length[order], finish[order], prior[order], enable & join[order]
  )
  return tree, jnp.where(enable, dropped, 0)


def join_proposals(
  tree: Tree, node: Array, enable: Array, config: SearchConfig
) -> tuple[Tree, Array]:
  """Lets the first (children + 1) proposals of a node join that are not children yet.

  Their priors are normalised among all that were considered; priors of older children
  stay as they are. Returns the tree and the number that joined.
  """
  page = tree.page[node]
  tokens, length = tree.proposal_tokens[page], tree.proposal_length[page]
  considered = (length > 0) & (jnp.arange(config.max_children) <= tree.num_children[page])
  prior = _priors(tree.proposal_log_weight[page], considered, node == tree.root, config)
  ids = tree.children[page]
  same = jnp.all(tokens[:, None] == tree.tokens[ids][None], axis=-1) & (ids >= 0)[None]
  join = enable & considered & distinct(tokens, length) & ~same.any(axis=-1)
  before = tree.num_children[page]
  tree = trees.insert(tree, node, tokens, length, tree.proposal_finish[page], prior, join)
  # Not again in this iteration, even if nobody joined; `backup` asks anew.
  tree = tree.replace(due=tree.due.at[page].set(tree.due[page] & ~enable))
  return tree, jnp.where(enable, tree.num_children[page] - before, 0)


def grow(
  tree: Tree, node: Array, answer: Evaluation, enable: Array, config: SearchConfig
) -> tuple[Tree, Array]:
  """Dynamic node addition (RAIN, section 3.2): fresh proposals go ahead of the list.

  `answer` holds a greedy candidate and `grow_draws` sampled ones, of which the first
  that differs counts. Returns the tree and the number of children that joined.
  """
  fresh = 1 + config.grow_draws
  tokens, length = answer.tokens[:fresh], answer.lengths[:fresh]
  keep = distinct(tokens, length)
  keep &= jnp.cumsum(keep) <= 2
  weights = clip_greedy(answer.log_weights[:fresh], keep)

  page, K = tree.page[node], config.max_children
  old = tree.proposal_length[page] > 0
  join = lambda new, listed: jnp.concatenate([new, listed])
  # Entries pushed past K are never considered again: at most K ever are.
  listed, tokens, length, weights, finish = _ranked(
    join(keep, old),
    K,
    join(tokens, tree.proposal_tokens[page]),
    join(length, tree.proposal_length[page]),
    join(weights, tree.proposal_log_weight[page]),
    join(answer.finish[:fresh], tree.proposal_finish[page]),
  )
  at = jnp.where(enable, page, tree.taken.shape[0])
  tree = tree.replace(
    proposal_tokens=tree.proposal_tokens.at[at].set(tokens, mode="drop"),
    proposal_length=tree.proposal_length.at[at].set(jnp.where(listed, length, 0), mode="drop"),
    proposal_log_weight=tree.proposal_log_weight.at[at].set(weights, mode="drop"),
    proposal_finish=tree.proposal_finish.at[at].set(finish, mode="drop"),
  )
  return join_proposals(tree, node, enable, config)


def similarity_weights(own: Array, siblings: Array, eligible: Array, config: SearchConfig) -> Array:
  """Visit weight that each sibling gains from a verdict (RAIN, section 3.2).

  Cosine similarity between the *running means*, as in the published code, even though
  the verdict belongs to the newest path only.

  Args:
    own: float[..., E] mean embedding of the visited node.
    siblings: float[..., K, E] those of its siblings.
    eligible: bool[..., K] visited before, and not the node itself.
    config: the search's hyperparameters.

  Returns:
    float[..., K], 0 where the similarity is below the threshold.
  """
  norms = jnp.linalg.norm(own, axis=-1)[..., None] * jnp.linalg.norm(siblings, axis=-1)
  product = jnp.einsum("...e,...ke->...k", own, siblings, precision="highest")
  cosine = product / jnp.maximum(norms, 1e-8)
  similar = eligible & (cosine >= config.similarity_threshold)
  return jnp.where(similar, config.similarity_weight * cosine, 0.0)


def growth_due(
  siblings: Array, present: Array, visited: Array, q: Array, depth: Array, config: SearchConfig
) -> Array:
  """Whether dynamic node addition is due among a node's children, bool[...].

  True when they are fewer than K, all embedded, alike (the norm of the unbiased
  variance of their embeddings is below `grow_threshold` per token) and none is good.
  For sets of two tokens or more the variance test hardly ever fails, as published.

  Args:
    siblings: float[..., K, E] mean embeddings of the children.
    present: bool[..., K] the child exists.
    visited: bool[..., K] it has an embedding.
    q: float[..., K] its mean value.
    depth: int32[...] of the parent.
    config: the search's hyperparameters.
  """
  count = present.sum(-1)
  # As products with the mask: on a CPU, sums over an axis in the middle take 30 times as long.
  total = lambda x: jnp.einsum("...k,...ke->...e", present.astype(x.dtype), x, precision="highest")
  mean = total(siblings) / jnp.maximum(count, 1)[..., None]
  spread = jnp.square(siblings - mean[..., None, :])
  variance = total(spread) / jnp.maximum(count - 1, 1)[..., None]
  alike = jnp.linalg.norm(variance, axis=-1) < config.grow_threshold * set_length(depth, config)
  best = jnp.where(present, q, -jnp.inf).max(-1)
  # One child has no unbiased variance.
  room = (count > 1) & (count < config.max_children)
  return room & jnp.all(visited | ~present, axis=-1) & alike & (best < 0)


def backup(
  tree: Tree, chosen: Selection, value: Array, embeddings: Array, config: SearchConfig
) -> tuple[Tree, Array]:
  """Credits a verdict to the path and to similar siblings (RAIN, section 3.2).

  Nodes of different levels have different siblings, so all levels are done at once.

  Args:
    tree: one tree.
    chosen: the descent; nothing happens unless its mode is VISIT.
    value: float[] the verdict.
    embeddings: float[D, E] of the texts from each path node to the rollout's end.
    config: the search's hyperparameters.

  Returns:
    The tree and the number of siblings that shared the verdict.
  """
  N, V = tree.max_nodes, tree.taken.shape[0]
  visit = chosen.mode == types.VISIT
  value = value.astype(tree.value.dtype)
  path = jnp.where(visit & (chosen.path >= 0), chosen.path, N)
  nodes = jnp.concatenate([jnp.where(visit, tree.root, N)[None], path])
  n = tree.visit_weight.at[nodes].add(1.0, mode="drop")
  f = tree.visits.at[nodes].add(1, mode="drop")

  pages = jnp.where(path < N, tree.page[jnp.minimum(path, N - 1)], V)
  mean = tree.embedding[jnp.minimum(pages, V - 1)]
  visits = jnp.maximum(f[jnp.minimum(path, N - 1)], 1)[:, None]
  mean = mean + (embeddings.astype(mean.dtype) - mean) / visits
  e = tree.embedding.at[pages].set(mean, mode="drop")

  parents = jnp.concatenate([tree.root[None], jnp.minimum(path[:-1], N - 1)])
  parent_pages = jnp.maximum(tree.page[parents], 0)
  ids = tree.children[parent_pages]  # [D, K]
  sibling_pages = jnp.where(ids >= 0, tree.page[ids], NO_PAGE)
  sibling_e = e[jnp.maximum(sibling_pages, 0)]
  eligible = (sibling_pages >= 0) & (ids != path[:, None]) & (path < N)[:, None]
  gain = similarity_weights(mean, sibling_e, eligible, config)
  shared_n = n[ids] + gain
  shared_q = (tree.value[ids] * n[ids] + gain * value) / jnp.maximum(shared_n, 1e-9)
  at = jnp.where(gain > 0, ids, N)
  q = tree.value.at[at].set(shared_q, mode="drop")
  n = n.at[at].set(shared_n, mode="drop")

  inside = jnp.minimum(nodes, N - 1)
  q = q.at[nodes].set(q[inside] + (value - q[inside]) / jnp.maximum(n[inside], 1.0), mode="drop")

  due = growth_due(sibling_e, ids >= 0, sibling_pages >= 0, q[ids], tree.depth[parents], config)
  due = tree.due.at[jnp.where(path < N, parent_pages, V)].set(due, mode="drop")
  tree = tree.replace(visit_weight=n, visits=f, value=q, embedding=e, due=due)
  return tree, jnp.sum(gain > 0, dtype=jnp.int32)


def _begin(tree: Tree, active: Array, config: SearchConfig):
  """Selection part of a step for one tree: (tree, selection, request, full, joined)."""
  room = trees.has_room(tree, config)
  go = active & room
  # Single-token children need no draw: the next most probable token joins on the way.
  page = tree.page[tree.root]
  single = go & (tree.depth[tree.root] == 0) & (page >= 0) & tree.due[page]
  tree, joined = join_proposals(tree, tree.root, single, config)
  chosen = select_leaves(tree, go, config)
  tree, request = make_request(tree, chosen)
  full = active & (~room | (chosen.too_deep & go).any())
  return tree, chosen, request, full, joined


def _finish(tree: Tree, chosen: Selection, answer: Evaluation, config: SearchConfig):
  """Expansion, growth and backup of W leaves of one tree, in the order of selection."""

  def one(tree, leaf):
    chosen, answer = leaf
    node = chosen.leaf
    visit = chosen.mode == types.VISIT
    finished = tree.finish[node] != types.RUNNING
    revisit = visit & finished & (tree.visits[node] > 0)
    fresh = visit & ~finished & (trees.num_children(tree, node) == 0)
    tree, dropped = expand(tree, node, answer, fresh, config)
    tree, joined = grow(tree, node, answer, chosen.mode == types.GROW, config)
    tree, shared = backup(tree, chosen, answer.value, answer.embeddings, config)
    return tree, (dropped, joined, shared, revisit)

  tree, (dropped, joined, shared, revisit) = jax.lax.scan(one, tree, (chosen, answer))
  total = lambda counts: counts.sum(dtype=jnp.int32)
  return tree, total(dropped), total(joined), total(shared), total(revisit)


def step(
  tree: Tree,
  model: types.Model,
  params: Any,
  state: Any,
  keys: Array,
  active: Array,
  config: SearchConfig,
) -> tuple[Tree, Any, StepInfo]:
  """One step of the inner loop in B trees.

  A tree does one iteration (select, roll out, self-evaluate, expand, back up), or, where
  its descent meets a node that is due to grow, the growth alone; the descent is taken up
  again in the next step and ends in the same place.

  Args:
    tree: B trees.
    model: the callables, see `types.Model`.
    params: handed to the model.
    state: the model's state.
    keys: [B] random keys, fresh for this step.
    active: bool[B]; other trees keep still.
    config: the search's hyperparameters.

  Returns:
    The trees, the model's state, and a `StepInfo`.
  """
  begin = jax.vmap(lambda t, a: _begin(t, a, config))
  tree, chosen, request, full, joined_first = begin(tree, active)
  answer, state = model.evaluate(params, state, request, keys)
  finish = jax.vmap(lambda t, c, a: _finish(t, c, a, config))
  tree, dropped, joined, shared, revisits = finish(tree, chosen, answer)
  visited = chosen.mode == types.VISIT
  last = jnp.where(visited, jnp.arange(config.leaves), -1).max(-1)
  pick = lambda array: jax.vmap(lambda a, i: a[i])(array, jnp.maximum(last, 0))
  return (
    tree,
    state,
    StepInfo(
      iterations=visited.sum(-1, dtype=jnp.int32),
      grows=jnp.sum(chosen.mode == types.GROW, -1, dtype=jnp.int32),
      joined=joined_first + joined,
      similarity_updates=shared,
      duplicates=dropped,
      revisits=revisits,
      full=full,
      failed=jnp.any((chosen.mode != types.IDLE) & jnp.isnan(answer.value), -1),
      leaf=jnp.where(last >= 0, pick(chosen.leaf), NO_NODE),
      path=jnp.where((last >= 0)[:, None], pick(chosen.path), NO_NODE),
    ),
  )
