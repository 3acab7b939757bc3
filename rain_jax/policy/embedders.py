"""Path embeddings: how alike the continuations of two siblings are (RAIN, section 3.2).

The thresholds that depend on what a similarity means belong to the embedder.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import jax.numpy as jnp
import numpy as np

from rain_jax import types
from rain_jax.models import ModelConfig, arrays
from rain_jax.models.minilm import MiniLM, load_minilm
from rain_jax.policy.params import Params
from rain_jax.types import Array, Request

if TYPE_CHECKING:
  from rain_jax.policy.language_model import LanguageModel, PolicyState
  from rain_jax.policy.rollout import Draft


class Embedder(Protocol):
  """What makes path embeddings; static and hashable, its arrays are in `Params`."""

  @property
  def similarity_threshold(self) -> float:
    """Cosine similarity from which siblings share a verdict; see `SearchConfig`."""

  @property
  def grow_threshold(self) -> float:
    """Variance norm per token below which children are alike; see `SearchConfig`."""

  def size(self, config: ModelConfig) -> int:
    """Width of the embedding (E), beside a language model of that shape."""

  def params(self, hidden: Array) -> Any:
    """The embedder's arrays; `hidden` float32[T, hidden] are states of the fixed prefixes."""

  def embed(
    self,
    lm: "LanguageModel",
    params: Params,
    state: "PolicyState",
    request: Request,
    draft: "Draft",
  ) -> Array:
    """float32[B, W, D, E]: for every node on a path, the text from its tokens to the rollout's end."""


@dataclasses.dataclass(frozen=True)
class HiddenStates:
  """Mean of the model's last hidden states over a text, centred, of length one.

  Costs no call: the states come with the tokens that the search forwards anyway. What
  all texts have in common is taken out by subtracting the mean state over the fixed
  prefixes. What is left still makes most siblings alike, so the threshold is far above
  the paper's 0.95 for sentence embeddings; docs/embedders.md has the measurement.
  """

  similarity_threshold: float = 0.999
  grow_threshold: float = 0.03

  def size(self, config: ModelConfig) -> int:
    """Width of the embedding (E)."""
    return config.hidden_size

  def params(self, hidden: Array) -> Array:
    """The centre, float32[E]."""
    return hidden.mean(0) if hidden.shape[0] else jnp.zeros(hidden.shape[1])

  def embed(
    self,
    lm: "LanguageModel",
    params: Params,
    state: "PolicyState",
    request: Request,
    draft: "Draft",
  ) -> Array:
    """See `Embedder`."""
    on_path = request.path_lengths > 0
    sums = jnp.where(on_path[..., None], arrays.gather(state.hidden, request.path_pages), 0.0)
    tokens = request.path_lengths
    # From each node to the path's end, and on through the rollout.
    sums = jnp.flip(jnp.cumsum(jnp.flip(sums, 2), 2), 2) + draft.hidden[:, :, None]
    tokens = jnp.flip(jnp.cumsum(jnp.flip(tokens, 2), 2), 2)
    tokens = tokens + jnp.maximum(draft.rollout_length - 1, 0)[..., None]
    mean = sums / jnp.maximum(tokens, 1)[..., None] - params["embedder"]
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-8)


@dataclasses.dataclass(frozen=True, eq=False)
class SentenceEncoder:
  """all-MiniLM-L6-v2 on the decoded text, as in the paper.

  The host turns tokens into word pieces in a callback, the encoder runs in the graph.

  Attributes:
    encoder: see `rain_jax.models.minilm`.
    tokenizer: the language model's, to decode its tokens.
  """

  encoder: MiniLM
  tokenizer: Any
  similarity_threshold: float = 0.95
  grow_threshold: float = 0.03

  def size(self, config: ModelConfig) -> int:
    """Width of the embedding (E)."""
    return self.encoder.size

  def params(self, hidden: Array) -> Any:
    """The encoder's parameters."""
    return self.encoder.params

  def embed(
    self,
    lm: "LanguageModel",
    params: Params,
    state: "PolicyState",
    request: Request,
    draft: "Draft",
  ) -> Array:
    """See `Embedder`."""
    lengths = jnp.where((request.mode == types.VISIT)[..., None], request.path_lengths, 0)
    flat = self.encoder.embed_in_graph(
      params["embedder"],
      self._texts,
      lengths.size,
      request.path_tokens,
      lengths,
      draft.rollout,
      draft.rollout_length,
    )
    return flat.reshape(lengths.shape + flat.shape[-1:])

  def _texts(
    self, tokens: np.ndarray, lengths: np.ndarray, rollout: np.ndarray, rollout_length: np.ndarray
  ) -> list[str | None]:
    """The text after every path node, row by row; None where there is no node."""
    texts: list[str | None] = [None] * lengths.size
    for place, (b, w, d) in enumerate(np.ndindex(lengths.shape)):
      if lengths[b, w, d]:
        path = tokens[b, w, d:].reshape(-1)
        ids = np.concatenate([path[path >= 0], rollout[b, w, : rollout_length[b, w]]])
        texts[place] = self.tokenizer.decode(ids, skip_special_tokens=True)
    return texts


# By name: from a folder that the configuration names, and the language model's tokenizer.
EMBEDDERS: dict[str, Callable[[str, Any], Embedder]] = {
  "hidden": lambda path, tokenizer: HiddenStates(),
  "minilm": lambda path, tokenizer: SentenceEncoder(load_minilm(path), tokenizer),
}


def find_embedder(name: str, path: str, tokenizer: Any) -> Embedder:
  """The embedder of that name in `EMBEDDERS`; `minilm` is read from a local folder.

  Raises:
    ValueError: another name, or a folder that holds no encoder.
  """
  if name not in EMBEDDERS:
    raise ValueError(f"embedder.name={name!r}: expected one of {', '.join(EMBEDDERS)}.")
  return EMBEDDERS[name](path, tokenizer)
