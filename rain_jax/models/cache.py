"""Keys and values of a growing tree of texts, stored once and read by path.

A `PathCache` holds, for each of B trees, a *context* (the text that every path starts
from) and a *pool* of V stretches of up to L tokens, one per visited node. A path is a
list of pages; reading it gathers its few stretches into a segment, and nothing is
ever copied per row. The model returns the keys and values of new tokens; `write` puts
them where they belong.

Positions here are relative to the context's start: 0 is its first token.
"""

from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp

from rain_jax.models.attention import KV, NO_POSITION, Segment, each_layer


class PathCache(flax.struct.PyTreeNode):
  """Context and pool of B trees.

  Attributes:
    context: KV with keys, values [layers, B, H, S, D] of S context positions.
    pool: KV with keys, values [layers, B, V, H, L, D].
    tokens: int32[B, S] the context's tokens.
    length: int32[B] how many there are.
    cached: int32[B] how many of them, from the first on, have keys and values.
    pooled: bool[B, V] the page holds the keys and values of its node.
  """

  context: KV
  pool: KV
  tokens: jax.Array
  length: jax.Array
  cached: jax.Array
  pooled: jax.Array


class Paths(flax.struct.PyTreeNode):
  """Texts that start from the context: W paths through each of B trees, and a tail.

  Attributes:
    pages: int32[B, W, D] page of each node on the path; without nodes (D = 0) paths are the context.
    tokens: int32[B, W, D, L] the nodes' tokens.
    lengths: int32[B, W, D] their lengths, 0 after the path's end.
    tail: int32[B, W, R] tokens after the path that are not to be stored.
  """

  pages: jax.Array
  tokens: jax.Array
  lengths: jax.Array
  tail: jax.Array

  def ends(self, cache: PathCache) -> jax.Array:
    """Relative position after each node's last token, int32[B, W, D]."""
    return cache.length[:, None, None] + jnp.cumsum(self.lengths, axis=-1)

  def total(self, cache: PathCache) -> jax.Array:
    """Relative position after each path, where its tail begins, int32[B, W]."""
    return cache.length[:, None] + self.lengths.sum(axis=-1)


class Located(NamedTuple):
  """What stands at T positions of each of W paths through B trees, and where.

  Attributes:
    token: int32[B, W, T].
    place: int32[B, W, T] the context position, or S if it is not in the context.
    page: int32[B, W, T] the page, or V if it is not in a node; None where paths have no nodes.
    offset: int32[B, W, T] the place within the page; None likewise.
  """

  token: jax.Array
  place: jax.Array
  page: jax.Array | None
  offset: jax.Array | None


def init(like: KV, batch: int, context: int, pages: int, max_set_length: int) -> PathCache:
  """An empty cache for `batch` trees (B), `context` positions (S), V pages of L tokens.

  It is for the model that made `like`, of which shapes will do.
  """
  return PathCache(
    context=like.zeros(batch, slots=context),
    pool=like.zeros(batch, pages, slots=max_set_length),
    tokens=jnp.zeros((batch, context), jnp.int32),
    length=jnp.zeros(batch, jnp.int32),
    cached=jnp.zeros(batch, jnp.int32),
    pooled=jnp.zeros((batch, pages), bool),
  )


def known(cache: PathCache, paths: Paths) -> jax.Array:
  """Leading positions of each path that have keys and values, int32[B, W]."""
  pooled = _take(cache.pooled, paths.pages) & (paths.lengths > 0)
  unbroken = jnp.cumprod(pooled, axis=-1) * paths.lengths
  whole = cache.cached >= cache.length
  return jnp.where(whole[:, None], cache.length[:, None] + unbroken.sum(-1), cache.cached[:, None])


def segments(cache: PathCache, paths: Paths, limit: jax.Array, offset: int) -> list[Segment]:
  """The stored context of W paths per tree, as segments for the model.

  Args:
    cache: the cache.
    paths: the paths.
    limit: int32[B, W]; positions from here on are not shown, those before must have
      been written.
    offset: absolute position of relative position 0.

  Returns:
    Context [layers, B, H, S, D] and, if it has nodes, path [layers, B, W, H, D * L, D], each with
    positions per path.
  """
  S = cache.tokens.shape[-1]
  at = jnp.arange(S)
  shown = jnp.minimum(limit, cache.length[:, None])
  inside = at < shown[..., None]  # [B, W, S]
  context = cache.context.segment(jnp.where(inside, at + offset, NO_POSITION), shown.max())
  B, W, D = paths.pages.shape
  if not D:
    return [context]
  L = paths.tokens.shape[-1]
  at = (paths.ends(cache) - paths.lengths)[..., None] + jnp.arange(L)  # [B, W, D, L]
  inside = (jnp.arange(L) < paths.lengths[..., None]) & (at < limit[..., None, None])

  # One gather over both axes: under `vmap` the whole pool would be transposed first.
  take = lambda pool: pool[:, jnp.arange(B)[:, None, None], jnp.maximum(paths.pages, 0)]

  def in_order(taken):  # [layers, B, W, D, H, L, size]; as a call of its own XLA would copy it
    layers, _, _, _, heads, _, size = taken.shape
    return jnp.moveaxis(taken, 4, 3).reshape(layers, B, W, heads, D * L, size)

  path = jax.tree.map(in_order, each_layer(take, cache.pool)).segment(
    jnp.where(inside, at + offset, NO_POSITION).reshape(B, W, D * L),
    inside.any((0, 1, 3)).sum() * L,
  )
  return [context, path]


def locate(cache: PathCache, paths: Paths, at: jax.Array) -> Located:
  """What stands at relative positions `at` int32[B, W, T] of each path."""
  S, V = cache.tokens.shape[-1], cache.pooled.shape[-1]
  D, L = paths.tokens.shape[-2:]
  in_context = at < cache.length[:, None, None]
  place = jnp.where(in_context, at, S)
  from_context = _take(cache.tokens, jnp.clip(at, 0, S - 1))
  from_tail = jnp.take_along_axis(
    paths.tail, jnp.clip(at - paths.total(cache)[..., None], 0, paths.tail.shape[-1] - 1), axis=-1
  )
  if not D:
    return Located(jnp.where(in_context, from_context, from_tail), place, None, None)
  ends = paths.ends(cache)
  node = jnp.sum(at[..., None] >= ends[..., None, :], axis=-1)  # [B, W, T]
  in_node = ~in_context & (node < D)
  node = jnp.minimum(node, D - 1)
  of_node = lambda array: jnp.take_along_axis(array, node, axis=-1)
  offset = at - (of_node(ends) - of_node(paths.lengths))
  offset = jnp.clip(offset, 0, L - 1)
  B, W, T = at.shape
  flat = paths.tokens.reshape(B, W, D * L)
  from_node = jnp.take_along_axis(flat, node * L + offset, axis=-1)
  token = jnp.where(in_context, from_context, jnp.where(in_node, from_node, from_tail))
  page = jnp.where(in_node, of_node(paths.pages), V)
  return Located(token, place, page, offset)


def write(cache: PathCache, new: KV, where: Located, keep: jax.Array) -> PathCache:
  """Stores the keys and values [layers, B, W, H, T, D] of new tokens where they stand.

  Tokens where `keep` bool[B, W, T] is False are dropped. Marks nothing as cached: that is `mark`'s
  part.
  """
  S, V = cache.tokens.shape[-1], cache.pooled.shape[-1]
  rows = jnp.arange(keep.shape[0])[:, None, None]
  place = jnp.where(keep, where.place, S)
  # Advanced indices around a slice come first in the indexed shape: [B, W, T, layers, H, D].
  new = each_layer(lambda fresh: jnp.moveaxis(fresh, (0, 3), (3, 4)), new)
  put = lambda old, fresh: old.at[:, rows, :, place].set(fresh, mode="drop")
  cache = cache.replace(context=each_layer(put, cache.context, new))
  if where.page is None:
    return cache
  page = jnp.where(keep, where.page, V)
  put_in_node = lambda old, fresh: old.at[:, rows, page, :, where.offset].set(fresh, mode="drop")
  return cache.replace(pool=each_layer(put_in_node, cache.pool, new))


def mark(cache: PathCache, paths: Paths, upto: jax.Array, done: jax.Array) -> PathCache:
  """Records that the paths where `done` bool[B, W] are stored up to `upto` int32[B, W]."""
  upto = jnp.where(done, upto, 0)
  cached = jnp.maximum(cache.cached, jnp.minimum(cache.length, upto.max(-1)))
  inside = (paths.ends(cache) <= upto[..., None]) & (paths.lengths > 0)
  page = jnp.where(inside, paths.pages, cache.pooled.shape[-1])
  rows = jnp.arange(page.shape[0])[:, None, None]
  return cache.replace(cached=cached, pooled=cache.pooled.at[rows, page].set(True, mode="drop"))


def forget(cache: PathCache, page: jax.Array, mask: jax.Array) -> PathCache:
  """Empties the pages int32[B, W] where `mask` bool[B, W]."""
  page = jnp.where(mask, page, cache.pooled.shape[-1])
  rows = jnp.arange(page.shape[0])[:, None]
  return cache.replace(pooled=cache.pooled.at[rows, page].set(False, mode="drop"))


def commit(
  cache: PathCache, mask: jax.Array, page: jax.Array, tokens: jax.Array, length: jax.Array
) -> PathCache:
  """Appends a node to the context of the trees in `mask` bool[B].

  Args:
    cache: the cache.
    mask: bool[B].
    page: int32[B] the node's page, negative if it has none.
    tokens: int32[B, L].
    length: int32[B].
  """
  held = jnp.maximum(page, 0)
  stored = jnp.take_along_axis(cache.pooled, held[:, None], axis=-1)[:, 0]
  rows = jnp.arange(tokens.shape[0])
  taken = each_layer(lambda pool: pool[:, rows, held], cache.pool)  # [layers, B, H, L, D]
  return append(cache, mask, tokens, length, taken, jnp.where((page >= 0) & stored, length, 0))


def append(
  cache: PathCache,
  mask: jax.Array,
  tokens: jax.Array,
  length: jax.Array,
  kv: KV,
  read: jax.Array,
) -> PathCache:
  """Appends tokens to the context of the trees in `mask` bool[B], with what is cached of them.

  Args:
    cache: the cache.
    mask: bool[B].
    tokens: int32[B, T].
    length: int32[B] how many there are.
    kv: keys and values [layers, B, H, T, D] of the first of them.
    read: int32[B] how many have keys and values; none count after a context that has gaps.
  """
  S, T = cache.tokens.shape[-1], tokens.shape[-1]
  rows, at = jnp.arange(tokens.shape[0]), cache.length[:, None] + jnp.arange(T)
  read = jnp.where(mask & (cache.cached >= cache.length), read, 0)
  first = lambda count: jnp.where(jnp.arange(T) < count[:, None], at, S)
  place, known = first(jnp.where(mask, length, 0)), first(read)

  def put(context, new):
    fresh = jnp.moveaxis(new, (0, 3), (2, 1))  # [B, T, layers, H, D]
    return context.at[:, rows[:, None], :, known].set(fresh, mode="drop")

  return cache.replace(
    context=each_layer(put, cache.context, kv),
    tokens=cache.tokens.at[rows[:, None], place].set(tokens, mode="drop"),
    length=cache.length + jnp.where(mask, length, 0),
    cached=cache.cached + read,
  )


def shorten(cache: PathCache, removed: jax.Array) -> PathCache:
  """Removes the last `removed` int32[B] tokens of each context."""
  length = cache.length - removed
  return cache.replace(length=length, cached=jnp.minimum(cache.cached, length))


def _take(array: jax.Array, index: jax.Array) -> jax.Array:
  """array[b, index[b, ...]] for array [B, X] and index [B, ...], negatives as 0."""
  flat = jnp.maximum(index, 0).reshape(index.shape[0], -1)
  return jnp.take_along_axis(array, flat, axis=-1).reshape(index.shape)
