"""Path embeddings: how alike the continuations of two siblings are (RAIN, section 3.2).

An embedder is static and answers `embed(lm, params, state, request, draft)` with
float32[B, W, D, E]: for every node on a path the embedding of the text from the node's
own tokens to the end of the rollout. The thresholds that depend on what a similarity
means belong to the embedder.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rain_jax.policy import common
from rain_jax.types import Array


@dataclasses.dataclass(frozen=True)
class HiddenStates:
  """Mean of the model's last hidden states over a text, centred, of length one.

  Costs no call: the states come with the tokens that the search forwards anyway. What
  all texts have in common is taken out by subtracting the mean state over the fixed
  prefixes.
  """

  similarity_threshold: float = 0.95
  grow_threshold: float = 0.03

  def size(self, config: Any) -> int:
    """Width of the embedding (E)."""
    return config.hidden_size

  def embed(self, lm: Any, params: dict, state: Any, request: Any, draft: Any) -> Array:
    """See the module's text."""
    on_path = request.path_lengths > 0
    sums = jnp.where(on_path[..., None], common.gather(state.hidden, request.path_slots), 0.0)
    tokens = request.path_lengths
    # From each node to the path's end, and on through the rollout.
    sums = jnp.flip(jnp.cumsum(jnp.flip(sums, 2), 2), 2) + draft.hidden[:, :, None]
    tokens = jnp.flip(jnp.cumsum(jnp.flip(tokens, 2), 2), 2)
    tokens = tokens + jnp.maximum(draft.rollout_length - 1, 0)[..., None]
    mean = sums / jnp.maximum(tokens, 1)[..., None] - params["center"]
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-8)
