"""Attention of new tokens over segments of context that the query's rows share (design section 4).

A tree search reads the same context for many rows at once: a fixed prefix for all, a committed text
per tree, a path per leaf, a scratch per row. Each is a `Segment` with only the batch axes along which
it differs. The remaining axes of the query join the rows of the matrix product with that segment, so
that no key or value is ever repeated, neither for rows nor for the heads of a query group.
"""

from collections.abc import Sequence
import functools

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp

NO_POSITION = -1
"""The position of an empty key slot, or of a query token that is padding."""

_MASKED = -1e30  # Finite: a query that sees nothing gets a mean of values, not a NaN.


@struct.dataclass
class KV:
  """Keys and values of new tokens, for the caller to store; H counts key-value heads.

  keys, values: [num_layers, *batch, H, T, D] in the compute dtype, keys already rotated.
  """

  keys: jax.Array
  values: jax.Array

  def segment(self, positions: jax.Array) -> "Segment":
    """These tokens as context of later ones; `positions` is int32 [*batch, T]."""
    return Segment(self.keys, self.values, positions)


@struct.dataclass
class Segment:
  """One stretch of context, shared by the query's batch axes that it lacks.

  Its batch axes are a prefix of the query's: () shared by all, (B,) per tree, (B, W) per leaf,
  (B, W, R) per row. S slots, in any order; empty slots hold any finite numbers.

  keys, values: [num_layers, *prefix, H, S, D], H counting key-value heads, keys already rotated.
  positions: int32 [*prefix, S], the absolute position of each key, `NO_POSITION` if empty.
  """

  keys: jax.Array
  values: jax.Array
  positions: jax.Array


def visible(query_positions: jax.Array, key_positions: jax.Array) -> jax.Array:
  """Which keys each query may see by causality, ignoring any window.

  Args:
    query_positions: int32 [*batch, T].
    key_positions: int32 [*prefix, S], `prefix` a prefix of `batch`.

  Returns:
    bool [*batch, T, S]: the key slot is filled and not later than the query.
  """
  keys = _align(key_positions, query_positions.ndim)
  return (keys >= 0) & (keys <= query_positions[..., None])


def within(
    query_positions: jax.Array, key_positions: jax.Array, window: int | jax.Array
) -> jax.Array:
  """bool [*batch, T, S]: the key lies less than `window` positions behind the query."""
  keys = _align(key_positions, query_positions.ndim)
  return query_positions[..., None] - keys < window


def _align(key_positions: jax.Array, query_ndim: int) -> jax.Array:
  """[*prefix, S] -> [*prefix, 1, ..., 1, S] with `query_ndim + 1` axes."""
  prefix, slots = key_positions.shape[:-1], key_positions.shape[-1]
  return key_positions.reshape(*prefix, *(1,) * (query_ndim - len(prefix)), slots)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotary embedding of x [..., T, H, D] by angles [..., T, D / 2], pairing the halves of D."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos[..., None, :], sin[..., None, :]
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(
    query: jax.Array,
    context: Sequence[tuple[jax.Array, jax.Array]],
    masks: Sequence[jax.Array],
) -> jax.Array:
  """Softmax attention over several segments of keys and values at once.

  Args:
    query: [*batch, Hq, T, D], already rotated and scaled.
    context: pairs of keys and values [*prefix, H, S, D], Hq a multiple of H.
    masks: for each pair bool [*batch, T, S], true where the query sees the key.

  Returns:
    [*batch, Hq, T, D] in the dtype of `query`.
  """
  *batch, q_heads, tokens, size = query.shape
  kv_heads = context[0][0].shape[-3]
  grouped = query.reshape(*batch, kv_heads, q_heads // kv_heads, tokens, size)
  scores = jnp.concatenate(
      [
          jnp.where(mask[..., None, None, :, :], _scores(grouped, keys), _MASKED)
          for (keys, _), mask in zip(context, masks, strict=True)
      ],
      axis=-1,
  )
  weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
  out, start = [], 0
  for _, values in context:
    slots = values.shape[-2]
    part = lax.slice_in_dim(weights, start, start + slots, axis=-1)
    out.append(_mix(part, values))
    start += slots
  return functools.reduce(jnp.add, out).reshape(query.shape).astype(query.dtype)


def _scores(query: jax.Array, keys: jax.Array) -> jax.Array:
  """[*batch, H, G, T, D] x [*prefix, H, S, D] -> float32 [*batch, H, G, T, S]."""
  shared, heads = keys.ndim - 3, query.ndim - 4
  return _per_head(query, keys, contract=(query.ndim - 1, keys.ndim - 1), shared=shared, heads=heads)


def _mix(weights: jax.Array, values: jax.Array) -> jax.Array:
  """[*batch, H, G, T, S] x [*prefix, H, S, D] -> float32 [*batch, H, G, T, D]."""
  shared, heads = values.ndim - 3, weights.ndim - 4
  return _per_head(
      weights, values, contract=(weights.ndim - 1, values.ndim - 2), shared=shared, heads=heads)


def _per_head(
    rows: jax.Array, segment: jax.Array, contract: tuple[int, int], shared: int, heads: int
) -> jax.Array:
  """Product of `rows` with a segment of fewer batch axes; the others count as rows of the matrix."""
  batch = (*range(shared), heads), (*range(shared), shared)
  out = lax.dot_general(
      rows, segment, (((contract[0],), (contract[1],)), batch), preferred_element_type=jnp.float32
  )
  # The head axis comes out right behind the shared axes; put it back behind all batch axes.
  return jnp.moveaxis(out, shared, heads)
