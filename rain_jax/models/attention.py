"""Attention of new tokens over segments of context that the query's rows share (docs/architecture.md, section 4).

A tree search reads the same context for many rows at once: a fixed prefix for all, a committed
text per tree, a path per leaf, a scratch per row. Each is a `Segment` with only the batch axes
along which it differs. The remaining axes of the query join the rows of the matrix product with
that segment, so that no key or value is ever repeated, neither for rows nor for a group of heads.

One softmax runs over the scores of all segments, each of which leaves its scores in the layout in
which its product made them.

Caches have room for the longest text, and most of it is empty. On a CPU a segment that says how
much of it is used is attended to block by block after the others, as in FlashAttention (arXiv
2205.14135), and the empty blocks are left out: the same sums, for a block of masked keys adds zeros.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from rain_jax.models import backend

NO_POSITION = -1
"""The position of an empty key slot, or of a query token that is padding."""

_MASKED = -1e30  # Finite: a query that sees nothing gets a mean of values, not a NaN.
_BLOCK = 64  # key slots attended to at once where `used` is known; see docs/performance.md


AllLayers = jax.Array | tuple[jax.Array, ...]
"""Keys or values of all layers, [num_layers, ...]; or a tuple of one array for each, [1, ...].

A tuple where `backend.stores_by_layer`. Code that stores them serves both by `each_layer`.
"""


def each_layer(function: Callable[..., jax.Array], *values: Any) -> Any:
  """`jax.tree.map` over keys and values, traced and lowered once and not for each layer.

  For use while a program is traced: called outside of one, `function` is compiled anew every time.
  """
  return jax.tree.map(jax.jit(function), *values)


class KV(struct.PyTreeNode):
  """Keys and values of new tokens, for the caller to store; H counts key-value heads.

  keys, values: [num_layers, *batch, H, T, D] in the compute dtype, keys already rotated.
  """

  keys: AllLayers
  values: AllLayers

  @property
  def dtype(self) -> jnp.dtype:
    """Of keys and values."""
    return jax.tree.leaves(self)[0].dtype

  @property
  def slots(self) -> int:
    """T."""
    return jax.tree.leaves(self)[0].shape[-2]

  def zeros(self, *batch: int, slots: int) -> "KV":
    """Zeros [num_layers, *batch, H, slots, D] for the same model; these here may be shapes."""

    def empty(one: jax.Array) -> jax.Array:
      layers, heads, size = one.shape[0], one.shape[-3], one.shape[-1]
      return jnp.zeros((layers, *batch, heads, slots, size), one.dtype)

    return jax.tree.map(empty, self)

  def segment(self, positions: jax.Array, used: jax.Array | None = None) -> "Segment":
    """These tokens as context of later ones; `positions` is int32 [*batch, T]."""
    return Segment(self.keys, self.values, positions, used)


class Segment(struct.PyTreeNode):
  """One stretch of context, shared by the query's batch axes that it lacks.

  Its batch axes are a prefix of the query's: () shared by all, (B,) per tree, (B, W) per leaf,
  (B, W, R) per row. S slots, in any order; empty slots hold any finite numbers.

  keys, values: [num_layers, *prefix, H, S, D], H counting key-value heads, keys already rotated.
  positions: int32 [*prefix, S], the absolute position of each key, `NO_POSITION` if empty; their prefix
    may be longer than that of the keys.
  used: int32 [] or None; if given, every slot from this one on is empty in all of the batch.
  """

  keys: AllLayers
  values: AllLayers
  positions: jax.Array
  used: jax.Array | None = None

  def layer(self, number: int) -> tuple[jax.Array, jax.Array]:
    """Keys and values of one layer, [*prefix, H, S, D]."""
    take = lambda a: a[number][0] if isinstance(a, tuple) else a[number]
    return take(self.keys), take(self.values)

  def without(self, ones: Sequence[int]) -> "Segment":
    """The same without those batch axes of the query, each of size one."""

    def drop(array: jax.Array, before: int, after: int) -> jax.Array:
      axes = (axis + before for axis in ones)
      return jnp.squeeze(array, tuple(axis for axis in axes if axis < array.ndim - after))

    # Positions may differ along more of the query's axes than keys do.
    keys, values = jax.tree.map(lambda a: drop(a, 1, 3), (self.keys, self.values))
    return Segment(keys, values, drop(self.positions, 0, 1), self.used)


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
  """bool [*batch, T, S]: the key lies less than `window` positions after the query."""
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
  used: Sequence[jax.Array | None],
  cap: float | None = None,
) -> jax.Array:
  """Softmax attention over several segments of keys and values at once.

  Args:
    query: [*batch, Hq, T, D], already rotated and scaled.
    context: pairs of keys and values [*prefix, H, S, D], Hq a multiple of H.
    masks: for each pair bool [*batch, T, S], true where the query sees the key.
    used: for each pair how many of its slots may be seen at all, int32 [], or None for all, as for one
      pair at least.
    cap: scores are kept between -cap and cap, by a tanh.

  Returns:
    [*batch, Hq, T, D] in the dtype of `query`.
  """
  *batch, q_heads, tokens, size = query.shape
  kv_heads = context[0][0].shape[-3]
  grouped = query.reshape(*batch, kv_heads, q_heads // kv_heads, tokens, size)
  parts = [
    _Part(keys, values, mask, _blocks(keys, slots))
    for (keys, values), mask, slots in zip(context, masks, used, strict=True)
  ]
  sums = _attend_to(grouped, [part for part in parts if part.blocks is None], None, cap)
  for part in parts:
    if part.blocks is not None:
      sums = _attend_by_block(grouped, part, part.blocks, sums, cap)
  return (sums.mixed / sums.total[..., None]).reshape(query.shape).astype(query.dtype)


class _Part(NamedTuple):
  """A segment of one layer.

  keys, values: [*prefix, H, S, D].
  mask: bool [*batch, T, S].
  blocks: int32 [] how many of its blocks hold a used slot; None where it is read as a whole.
  """

  keys: jax.Array
  values: jax.Array
  mask: jax.Array
  blocks: jax.Array | None = None


class _Sums(NamedTuple):
  """Unnormalised attention over what was read so far.

  highest: the largest score, float32 [*batch, H, G, T].
  total: sum of exp(score - highest), float32 [*batch, H, G, T].
  mixed: values under these weights, float32 [*batch, H, G, T, D].
  """

  highest: jax.Array
  total: jax.Array
  mixed: jax.Array


def _blocks(keys: jax.Array, used: jax.Array | None) -> jax.Array | None:
  """`_Part.blocks` of these keys: reading block by block pays where some may be left out."""
  if used is None or keys.shape[-2] < 2 * _BLOCK or not backend.skips_empty_blocks():
    return None
  return (used + _BLOCK - 1) // _BLOCK


def _attend_by_block(
  query: jax.Array, part: _Part, blocks: jax.Array, before: _Sums, cap: float | None
) -> _Sums:
  """`_attend_to` over the blocks of a segment that hold a used slot."""
  slots = part.keys.shape[-2]

  def step(number, before):
    begin = jnp.minimum(number * _BLOCK, slots - _BLOCK)  # the last block may overlap
    take = functools.partial(lax.dynamic_slice_in_dim, start_index=begin, slice_size=_BLOCK)
    new = begin + jnp.arange(_BLOCK) >= number * _BLOCK
    keys, values = (take(a, axis=-2) for a in (part.keys, part.values))
    return _attend_to(query, [_Part(keys, values, take(part.mask, axis=-1) & new)], before, cap)

  return lax.fori_loop(0, blocks, step, before)


def _attend_to(
  query: jax.Array, parts: Sequence[_Part], before: _Sums | None, cap: float | None
) -> _Sums:
  """Attention of query [*batch, H, G, T, D] over several segments, and what was read `before` them.

  One softmax, whose scores keep the layout in which each segment's product made them: the query's
  batch axes beyond a segment's prefix count as rows of its products, beside G and T.
  """
  heads = query.ndim - 4
  scores = [_scores(query, part, cap) for part in parts]
  peaks = [
    jnp.moveaxis(jnp.max(score, axis=-1), part.keys.ndim - 3, heads)
    for score, part in zip(scores, parts, strict=True)
  ]
  highest = functools.reduce(jnp.maximum, peaks if before is None else [before.highest, *peaks])
  sums = []
  if before is not None:
    kept = jnp.exp(before.highest - highest)
    sums.append((kept * before.total, kept[..., None] * before.mixed))
  for score, part in zip(scores, parts, strict=True):
    shared = part.keys.ndim - 3
    weights = jnp.exp(score - jnp.moveaxis(highest, heads, shared)[..., None])
    together = tuple(range(shared + 1))
    mixed = lax.dot_general(
      weights.astype(query.dtype),
      part.values,
      (((weights.ndim - 1,), (part.values.ndim - 2,)), (together, together)),
      preferred_element_type=jnp.float32,
    )
    total = jnp.sum(weights, axis=-1)
    sums.append((jnp.moveaxis(total, shared, heads), jnp.moveaxis(mixed, shared, heads)))
  total, mixed = (functools.reduce(jnp.add, kind) for kind in zip(*sums, strict=True))
  return _Sums(highest, total, mixed)


def _scores(query: jax.Array, part: _Part, cap: float | None) -> jax.Array:
  """Masked scores of query [*batch, H, G, T, D], float32 [*prefix, H, *others, G, T, S]."""
  keys = part.keys
  shared, heads = keys.ndim - 3, query.ndim - 4
  mask = part.mask
  if backend.joins_products():
    # A query of its own for each segment; with the mask, for barriers with equal operands are merged.
    query, mask = lax.optimization_barrier((query, mask))
  scores = lax.dot_general(
    query,
    keys,
    (((query.ndim - 1,), (keys.ndim - 1,)), ((*range(shared), heads), tuple(range(shared + 1)))),
    preferred_element_type=jnp.float32,
  )
  if cap is not None:
    scores = cap * jnp.tanh(scores / cap)
  return jnp.where(jnp.expand_dims(mask, (shared, heads + 1)), scores, _MASKED)
