"""The inner loop: select, roll out and self-evaluate, expand, back up.

One `step` does one iteration in every tree (RAIN, section 3.2; with `leaves` > 1, up to
W of them). Rollout and self-evaluation are the model's part, asked for through
`types.Model.evaluate`; everything else is here, as functions of one tree that `jax.vmap`
batches. Every idea of the method has one home: `selection`, `expansion`, `dynamic_nodes`
(dynamic node addition), `similarity` (the similarity update) and `backup`. The rewind is
what follows from committing late, see `rain_jax.decode`.
"""

from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp

from rain_jax import types
from rain_jax.search import tree as trees
from rain_jax.search.backup import backup
from rain_jax.search.dynamic_nodes import grow, join_proposals
from rain_jax.search.expansion import expand
from rain_jax.search.selection import Selection, make_request, select_leaves
from rain_jax.search.tree import Tree
from rain_jax.types import NO_NODE, Array, Evaluation, Request, SearchConfig


class StepInfo(flax.struct.PyTreeNode):
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
    request: what the model was asked.
    answer: what it answered.
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
  request: Request
  answer: Evaluation


class _Begun(NamedTuple):
  """The selection part of a step for one tree.

  full: bool[] no room for a step, or a path too long.
  joined: int32[] children of the root that joined without a draw.
  """

  tree: Tree
  chosen: Selection
  request: Request
  full: Array
  joined: Array


@jax.named_scope("select")
def _begin(tree: Tree, active: Array, config: SearchConfig) -> _Begun:
  """Selects W leaves of one tree."""
  room = trees.has_room(tree, config)
  go = active & room
  # Single-token children need no draw: the next most probable token joins on the way.
  page = tree.page[tree.root]
  single = go & (tree.depth[tree.root] == 0) & (page >= 0) & tree.due[page]
  tree, joined = join_proposals(tree, tree.root, single, config)
  chosen = select_leaves(tree, go, config)
  tree, request = make_request(tree, chosen)
  full = active & (~room | (chosen.too_deep & go).any())
  return _Begun(tree, chosen, request, full, joined)


class _Finished(NamedTuple):
  """What expansion, growth and backup did to one tree; counts int32[W] or, summed, int32[]."""

  dropped: Array
  joined: Array
  shared: Array
  revisits: Array


def _finish(
  tree: Tree, chosen: Selection, answer: Evaluation, config: SearchConfig
) -> tuple[Tree, _Finished]:
  """Expansion, growth and backup of W leaves of one tree, in the order of selection."""

  def one(tree: Tree, leaf: tuple[Selection, Evaluation]) -> tuple[Tree, _Finished]:
    chosen, answer = leaf
    node = chosen.leaf
    visit = chosen.mode == types.VISIT
    finished = tree.finish[node] != types.RUNNING
    revisit = visit & finished & (tree.visits[node] > 0)
    fresh = visit & ~finished & (trees.num_children(tree, node) == 0)
    with jax.named_scope("expand"):
      tree, dropped = expand(tree, node, answer, fresh, config)
    with jax.named_scope("grow"):
      tree, joined = grow(tree, node, answer, chosen.mode == types.GROW, config)
    with jax.named_scope("back_up"):
      tree, shared = backup(tree, chosen, answer.value, answer.embeddings, config)
    return tree, _Finished(dropped, joined, shared, revisit)

  tree, counts = jax.lax.scan(one, tree, (chosen, answer.replace(rollout=None)))
  return tree, _Finished(*(count.sum(dtype=jnp.int32) for count in counts))


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

  Raises:
    ValueError: the model's answer or its state has a wrong shape.
  """
  begun = jax.vmap(lambda t, a: _begin(t, a, config))(tree, active)
  chosen = begun.chosen
  answer, after = model.evaluate(params, state, begun.request, keys)
  types.check_evaluation(answer, begun.request, config, tree.embedding.shape[-1])
  types.check_state(after, state, "evaluate")
  finish = jax.vmap(lambda t, c, a: _finish(t, c, a, config))
  tree, done = finish(begun.tree, chosen, answer)
  visited = chosen.mode == types.VISIT
  last = jnp.where(visited, jnp.arange(config.leaves), -1).max(-1)
  pick = lambda array: jax.vmap(lambda a, i: a[i])(array, jnp.maximum(last, 0))
  return (
    tree,
    after,
    StepInfo(
      iterations=visited.sum(-1, dtype=jnp.int32),
      grows=jnp.sum(chosen.mode == types.GROW, -1, dtype=jnp.int32),
      joined=begun.joined + done.joined,
      similarity_updates=done.shared,
      duplicates=done.dropped,
      revisits=done.revisits,
      full=begun.full,
      failed=jnp.any((chosen.mode != types.IDLE) & jnp.isnan(answer.value), -1),
      leaf=jnp.where(last >= 0, pick(chosen.leaf), NO_NODE),
      path=jnp.where((last >= 0)[:, None], pick(chosen.path), NO_NODE),
      request=begun.request,
      answer=answer,
    ),
  )
