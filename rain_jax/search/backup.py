"""Backup: a verdict is credited to its path, and shared with similar siblings (RAIN, section 3.2)."""

import jax.numpy as jnp

from rain_jax import types
from rain_jax.search.dynamic_nodes import growth_due
from rain_jax.search.selection import Selection
from rain_jax.search.similarity import similarity_update, similarity_weights
from rain_jax.search.tree import Tree
from rain_jax.types import NO_PAGE, Array, SearchConfig


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
  weights = tree.visit_weight.at[nodes].add(1.0, mode="drop")
  visits = tree.visits.at[nodes].add(1, mode="drop")

  pages = jnp.where(path < N, tree.page[jnp.minimum(path, N - 1)], V)
  mean = tree.embedding[jnp.minimum(pages, V - 1)]
  count = jnp.maximum(visits[jnp.minimum(path, N - 1)], 1)[:, None]
  mean = mean + (embeddings.astype(mean.dtype) - mean) / count
  means = tree.embedding.at[pages].set(mean, mode="drop")

  parents = jnp.concatenate([tree.root[None], jnp.minimum(path[:-1], N - 1)])
  parent_pages = jnp.maximum(tree.page[parents], 0)
  siblings = tree.children[parent_pages]  # [D, K]
  sibling_pages = jnp.where(siblings >= 0, tree.page[siblings], NO_PAGE)
  sibling_means = means[jnp.maximum(sibling_pages, 0)]
  eligible = (sibling_pages >= 0) & (siblings != path[:, None]) & (path < N)[:, None]
  gain = similarity_weights(mean, sibling_means, eligible, config)
  shared_values, shared_weights = similarity_update(
    tree.value[siblings], weights[siblings], gain, value
  )
  at = jnp.where(gain > 0, siblings, N)
  values = tree.value.at[at].set(shared_values, mode="drop")
  weights = weights.at[at].set(shared_weights, mode="drop")

  inside = jnp.minimum(nodes, N - 1)
  step = (value - values[inside]) / jnp.maximum(weights[inside], 1.0)
  values = values.at[nodes].set(values[inside] + step, mode="drop")

  present, visited = siblings >= 0, sibling_pages >= 0
  due = growth_due(sibling_means, present, visited, values[siblings], tree.depth[parents], config)
  due = tree.due.at[jnp.where(path < N, parent_pages, V)].set(due, mode="drop")
  tree = tree.replace(visit_weight=weights, visits=visits, value=values, embedding=means, due=due)
  return tree, jnp.sum(gain > 0, dtype=jnp.int32)
