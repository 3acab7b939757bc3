"""Dynamic node addition: a node whose children are alike and bad grows more (RAIN, section 3.2)."""

import jax.numpy as jnp

from rain_jax.search import tree as trees
from rain_jax.search.expansion import clip_greedy, distinct, priors, ranked
from rain_jax.search.tree import Tree
from rain_jax.types import Array, Evaluation, SearchConfig


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
  alike = jnp.linalg.norm(variance, axis=-1) < config.grow_threshold * trees.set_length(
    depth, config
  )
  best = jnp.where(present, q, -jnp.inf).max(-1)
  # One child has no unbiased variance.
  room = (count > 1) & (count < config.max_children)
  return room & jnp.all(visited | ~present, axis=-1) & alike & (best < 0)


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
  prior = priors(tree.proposal_log_weight[page], considered, node == tree.root, config)
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
  listed, tokens, length, weights, finish = ranked(
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
