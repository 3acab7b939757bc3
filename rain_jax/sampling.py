"""Drawing tokens from logits."""

import jax
import jax.numpy as jnp

from rain_jax.types import Array


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
  values, tokens = jax.lax.top_k(logits.astype(jnp.float32) / temperature, k)
  return tokens, jax.nn.log_softmax(values, axis=-1)


def draw(log_probs: Array, uniform: Array) -> Array:
  """Index drawn from log probabilities float[..., k] by a uniform number [...] in [0, 1)."""
  cumulative = jnp.cumsum(jnp.exp(log_probs), axis=-1)
  index = jnp.sum(cumulative <= uniform[..., None] * cumulative[..., -1:], axis=-1)
  return jnp.minimum(index, log_probs.shape[-1] - 1)


def categorical(keys: Array, logits: Array) -> Array:
  """One token per row from the whole vocabulary; keys [...], logits float[..., vocab]."""
  batch = keys.shape
  flat = logits.reshape(-1, logits.shape[-1]).astype(jnp.float32)
  tokens = jax.vmap(jax.random.categorical)(keys.reshape(-1), flat)
  return tokens.reshape(batch).astype(jnp.int32)
