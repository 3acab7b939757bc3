"""Expansion: a visited leaf gets its first children (RAIN, section 3.2)."""

import jax
import jax.numpy as jnp

from rain_jax.search import tree as trees
from rain_jax.search.tree import Tree
from rain_jax.types import Array, Evaluation, SearchConfig


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


def priors(log_weights: Array, use: Array, is_root: Array, config: SearchConfig) -> Array:
  """Weights of the rows in `use`, normalised, mixed with the uniform at a root."""
  p = jax.nn.softmax(jnp.where(use, log_weights, -jnp.inf))
  mixed = config.root_prior * p + (1 - config.root_prior) / jnp.maximum(use.sum(), 1)
  return jnp.where(is_root, mixed, p)


def ranked(use: Array, size: int, *arrays: Array) -> tuple[Array, ...]:
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
  listed, tokens, length, finish, weights = ranked(
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
  prior = priors(weights / heat, join, leaf == tree.root, config)
  # ... and the children join in token order, not in order of probability.
  order = jnp.argsort(jnp.where(join, jnp.where(first, tokens[:, 0], jnp.arange(K)), 2**30))
  tree = trees.insert(
    tree, leaf, tokens[order], length[order], finish[order], prior[order], enable & join[order]
  )
  return tree, jnp.where(enable, dropped, 0)
