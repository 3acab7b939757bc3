"""How probable a model finds each of a few labels after a text: one call per batch.

Judge models answer with a label, and so does a binary choice; neither needs sampling.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rain_jax.models import NO_POSITION, Model, forward, unembed
from rain_jax.parallel.batch_sharding import fetch
from rain_jax.text import encoding
from rain_jax.types import Array

_SHORTEST = 64  # tokens; texts are padded to this times a power of two, to compile little


def label_ids(tokenizer: Any, spellings: Sequence[str]) -> tuple[int, ...]:
  """The tokens of a label, one for each of its spellings that is one token.

  Raises:
    ValueError: no spelling is a single known token.
  """
  found = []
  for spelling in spellings:
    try:
      token = encoding.single_token(tokenizer, spelling)
    except ValueError:
      continue  # joins with whatever is put before it
    if token is not None:
      found.append(token)
  if not found:
    raise ValueError(f"Label {spellings}: no spelling of it is one token of this tokenizer.")
  return tuple(dict.fromkeys(found))


def probabilities(
  model: Model,
  texts: Sequence[Sequence[int]],
  labels: Sequence[Sequence[int]],
  batch_size: int = 8,
) -> np.ndarray:
  """The probability of each label as the next token after each text.

  Args:
    model: any model of the project.
    texts: token ids, each at least one.
    labels: per label, the tokens that count for it.
    batch_size: texts read at once.

  Returns:
    float64[texts, labels]; a label's tokens are summed.
  """
  found = np.zeros((len(texts), len(labels)))
  flat = jnp.asarray([token for label in labels for token in label])
  ends = np.cumsum([len(label) for label in labels])[:-1]
  order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
  for start in range(0, len(order), batch_size):
    rows = order[start : start + batch_size]
    longest = len(texts[rows[-1]])
    width = _SHORTEST * 2 ** max(0, math.ceil(math.log2(longest / _SHORTEST)))
    tokens = np.zeros((batch_size, width), np.int32)
    lengths = np.ones(batch_size, np.int32)
    for place, row in enumerate(rows):
      tokens[place, : len(texts[row])] = texts[row]
      lengths[place] = len(texts[row])
    read = fetch(_read(model.graphdef, model.params, tokens, lengths, flat))
    for place, row in enumerate(rows):
      found[row] = [part.sum() for part in np.split(np.asarray(read[place], np.float64), ends)]
  return found


@functools.partial(jax.jit, static_argnames="graphdef")
def _read(
  graphdef: nnx.GraphDef, params: Mapping[str, Any], tokens: Array, lengths: Array, flat: Array
) -> Array:
  """float32[B, len(flat)] probabilities after tokens int32[B, T], of which `lengths` count."""
  at = jnp.arange(tokens.shape[-1])
  positions = jnp.where(at < lengths[:, None], at, NO_POSITION)
  hidden, _ = forward(graphdef, params, tokens, positions)
  last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
  return jax.nn.softmax(unembed(graphdef, params, last), axis=-1)[:, flat]
