"""Similarity update: siblings with similar text share a verdict (RAIN, section 3.2)."""

import jax.numpy as jnp

from rain_jax.types import Array, SearchConfig


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


def similarity_update(
  values: Array, weights: Array, gain: Array, verdict: Array
) -> tuple[Array, Array]:
  """Values and visit weights of siblings that gain the visit weight `gain` from a verdict.

  Args:
    values: float[..., K] mean values.
    weights: float[..., K] visit weights.
    gain: float[..., K], see `similarity_weights`.
    verdict: float[].
  """
  after = weights + gain
  return (values * weights + gain * verdict) / jnp.maximum(after, 1e-9), after
