"""The method's own step: one iteration of the search, then commits where they are due."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rain_jax import search, types
from rain_jax.decode.state import DecodeState, appended
from rain_jax.parallel.loops import while_any
from rain_jax.search import tree as trees
from rain_jax.search.rewind import rewound
from rain_jax.search.tree import Tree
from rain_jax.types import NO_NODE, Array, Commit, SearchConfig


def trusted(tree: Tree, config: SearchConfig) -> Array:
  """Whether the root's best child meets the thresholds of a move, bool[]; one tree."""
  best = trees.best_child(tree, tree.root)
  return (
    (best >= 0)
    & (tree.visits[best] > config.min_visits)
    & (tree.value[best] > config.value_threshold)
  )


def _must_commit(
  tree: Tree, inherited: Array, iterations: Array, full: Array, config: SearchConfig
) -> Array:
  """Whether a tree commits after a step, bool[] (RAIN, section 3.1)."""
  limit = jnp.maximum(config.max_iterations, inherited + config.extra_iterations)
  done = trusted(tree, config) | (tree.visits[tree.root] >= limit)
  return full | ((iterations > 0) & done)


@jax.named_scope("commit")
def commit(
  state: DecodeState, model: types.Model, params: Any, mask: Array, config: SearchConfig
) -> DecodeState:
  """Commits the best child of the root in the trees of `mask` bool[B].

  The child's tokens join the response, its subtree is kept, and the rest is discarded.
  A tree whose root has no child ends its response.
  """
  tree = state.tree
  at = lambda array, node: jax.vmap(lambda a, i: a[i])(array, jnp.maximum(node, 0))
  best = jax.vmap(trees.best_child)(tree, tree.root)
  stuck = mask & (best < 0)
  move = mask & (best >= 0)
  length = jnp.where(move, at(tree.length, best), 0)
  made = Commit(
    mask=move,
    page=at(tree.page, best),
    tokens=at(tree.tokens, best),
    length=length,
    finish=at(tree.finish, best),
  )
  finish = jnp.where(move, made.finish, jnp.where(stuck, types.EXHAUSTED, state.finish))
  tree = jax.vmap(lambda t, b, m: trees.reroot(t, b, config.root_prior, m))(tree, best, move)
  lost = move & (state.leaf >= 0) & ~at(tree.alive, state.leaf)
  counters = state.counters
  after = model.commit(params, state.model, made)
  types.check_state(after, state.model, "commit")
  return state.replace(
    tree=tree,
    model=after,
    active=state.active & (finish == types.RUNNING),
    finish=finish,
    inherited=jnp.where(move, at(tree.visits, best), state.inherited),
    leaf=jnp.where(lost, NO_NODE, state.leaf),
    response=appended(state, made.tokens, length),
    response_length=state.response_length + length,
    counters=counters.replace(moves=counters.moves + move, rewinds=counters.rewinds + lost),
  )


def iterate(
  state: DecodeState,
  model: types.Model,
  params: Any,
  config: SearchConfig,
  active: Array | None = None,
) -> tuple[DecodeState, Array, search.StepInfo]:
  """The inner loop's step in every active tree, or in those of `active` bool[B]: (state, due, info).

  `due` bool[B] says which trees have to commit before they go on, see `move`.
  """
  keys = jax.vmap(jax.random.fold_in)(state.keys, state.counters.steps)
  active = state.active if active is None else active
  tree, model_state, info = search.step(
    state.tree, model, params, state.model, keys, active, config
  )
  due = jax.vmap(lambda t, i, n, u: _must_commit(t, i, n, u, config))(
    tree, state.inherited, info.iterations, info.full
  )
  old = state.counters
  counters = old.replace(
    steps=old.steps + active,
    iterations=old.iterations + info.iterations,
    rewinds=old.rewinds + rewound(state.leaf, state.tree.root, info),
    early_commits=old.early_commits + (active & info.full),
    grows=old.grows + info.grows,
    joined=old.joined + info.joined,
    similarity_updates=old.similarity_updates + info.similarity_updates,
    duplicates=old.duplicates + info.duplicates,
    revisits=old.revisits + info.revisits,
  )
  state = state.replace(
    tree=tree,
    model=model_state,
    active=state.active & ~info.failed,
    finish=jnp.where(info.failed, types.FAILED, state.finish),
    leaf=jnp.where(info.leaf >= 0, info.leaf, state.leaf),
    counters=counters,
  )
  return state, due & active & ~info.failed, info


class _Moves(NamedTuple):
  """Commits on inherited statistics: the state, and the trees that go on, bool[B]."""

  state: DecodeState
  due: Array


def move(
  state: DecodeState, model: types.Model, params: Any, due: Array, config: SearchConfig
) -> DecodeState:
  """Commits in the trees of `due` bool[B], and on while `early_commit` trusts the next."""
  state = commit(state, model, params, due, config)
  if not config.early_commit:
    return state

  still_trusted = jax.vmap(lambda tree: trusted(tree, config))

  def again(at: _Moves) -> _Moves:
    state = at.state
    inherited = state.counters.inherited_commits + at.due
    state = state.replace(counters=state.counters.replace(inherited_commits=inherited))
    state = commit(state, model, params, at.due, config)
    return _Moves(state, at.due & state.active & still_trusted(state.tree))

  first = _Moves(state, due & state.active & still_trusted(state.tree))
  return while_any(lambda at: at.due, again, first).state
