"""Drawing tokens from logits by uniform numbers.

Callers draw all uniform numbers of a text at once: a random generator in a decoding loop
costs as much as a small model's layer.
"""

import jax
import jax.numpy as jnp

from rain_jax.types import Array

_BLOCK = 128  # words of the vocabulary searched at once, in `categorical` and `largest`


def filtered(logits: Array, temperature: float, top_k: int) -> tuple[Array, Array]:
  """The `top_k` most probable tokens and their log probabilities among themselves.

  Args:
    logits: float[..., vocab].
    temperature: above 0.
    top_k: k, at most the vocabulary's size is used.

  Returns:
    tokens int32[..., k], most probable first, and log probabilities float32[..., k].
  """
  k = min(top_k, logits.shape[-1])
  values, tokens = largest(logits.astype(jnp.float32) / temperature, k)
  return tokens, jax.nn.log_softmax(values, axis=-1)


def largest(values: Array, k: int) -> tuple[Array, Array]:
  """The k largest float[..., k] of values float[..., n], and their places; as `jax.lax.top_k`.

  What is among the k largest lies in one of the k blocks with the largest maxima (of equal ones
  the first, there as here). A TPU sorts all that it is to find the largest of: so it sorts the
  blocks' maxima, and then k blocks, in place of the vocabulary.
  """
  count = -(-values.shape[-1] // _BLOCK)
  if count <= 2 * k:
    return jax.lax.top_k(values, k)
  pad = [(0, 0)] * (values.ndim - 1) + [(0, count * _BLOCK - values.shape[-1])]
  padded = jnp.pad(values, pad, constant_values=-jnp.inf)
  blocks = padded.reshape(*values.shape[:-1], count, _BLOCK)
  _, best = jax.lax.top_k(blocks.max(-1), k)
  best = jnp.sort(best, axis=-1)  # so that of equal values the first comes first
  near = jnp.take_along_axis(blocks, best[..., None], axis=-2)
  found, at = jax.lax.top_k(near.reshape(*values.shape[:-1], k * _BLOCK), k)
  return found, jnp.take_along_axis(best, at // _BLOCK, axis=-1) * _BLOCK + at % _BLOCK


def penalised(logits: Array, said: Array, penalty: float) -> Array:
  """Logits in which tokens that were said are less probable (CTRL, arXiv 1909.05858, section 4.1).

  A positive logit is divided by the penalty, a negative one multiplied with it; how often a token
  was said does not count.

  Args:
    logits: float[..., vocab].
    said: int32[..., T] tokens, negative where there is none.
    penalty: 1 or more; 1 changes nothing.
  """
  if penalty == 1.0:
    return logits
  found = jnp.take_along_axis(logits, jnp.maximum(said, 0), axis=-1)
  found = jnp.where(found > 0, found / penalty, found * penalty)
  place = jnp.where(said >= 0, said, logits.shape[-1])
  return jnp.put_along_axis(logits, place, found, axis=-1, inplace=False, mode="drop")


def draw(weights: Array, uniform: Array) -> tuple[Array, Array]:
  """An index in proportion to its weight.

  Args:
    weights: float32[..., k], none negative, one or more above 0.
    uniform: float32[...] in [0, 1).

  Returns:
    index int32[...], and where in its weight the number fell, float32[...] in [0, 1].
  """
  cumulative = jnp.cumsum(weights, axis=-1)
  total = cumulative[..., -1]
  # Below the total even after rounding, so that no weight of 0 at the end is drawn.
  target = jnp.minimum(uniform * total, total * (1 - 2.0**-23))[..., None]
  index = jnp.sum(cumulative <= target, axis=-1, dtype=jnp.int32)
  index = jnp.minimum(index, weights.shape[-1] - 1)
  end, weight = (jnp.take_along_axis(a, index[..., None], axis=-1) for a in (cumulative, weights))
  inside = (target - (end - weight)) / jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
  return index, jnp.clip(inside[..., 0], 0, 1)


def categorical(uniform: Array, logits: Array) -> Array:
  """A token from the whole vocabulary, int32[...]; logits float[..., vocab].

  First a block of the vocabulary is drawn, then a token in it, with what the number
  `uniform` float32[...] in [0, 1) leaves over.
  """
  logits = logits.astype(jnp.float32)
  weights = jnp.exp(logits - logits.max(-1, keepdims=True))
  pad = -weights.shape[-1] % _BLOCK
  weights = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, pad)])
  blocks = weights.reshape(*weights.shape[:-1], -1, _BLOCK)
  block, rest = draw(blocks.sum(-1), uniform)
  within = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
  return block * _BLOCK + draw(within, rest)[0]


def not_finite(logits: Array) -> Array:
  """Rows of logits float[..., vocab] in which nothing can be drawn, bool[...]."""
  return ~jnp.all(jnp.isfinite(logits), axis=-1)
