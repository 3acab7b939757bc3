"""Self-evaluation: the model reads its own text in a fixed prompt (RAIN, section 3.2).

The verdict text is the preference's prefix, the conversation, and one suffix per
reading. Prefix and conversation are cached; a call reads only what is new to the cache,
and all suffixes behind it at once.
"""

import jax
import jax.numpy as jnp

from rain_jax.models import NO_POSITION, forward, unembed
from rain_jax.models import cache as caches
from rain_jax.models.cache import PathCache, Paths
from rain_jax.policy import common
from rain_jax.policy.usage import VERDICT
from rain_jax.types import Array


def read_verdicts(lm, params, cache: PathCache, paths: Paths, limit: Array, asked: Array, usage):
  """Reads the texts asked for, each with every suffix; stores what belongs to nodes.

  Args:
    lm: the language model.
    params: its arrays.
    cache: the judging cache.
    paths: of the leaves, with rollouts as tails.
    limit: int32[B, W] position in the conversation behind the last judged token.
    asked: bool[B, W].
    usage: work counters.

  Returns:
    bool[B, W, readings] whether each reading is good, the cache, the counters.
  """
  B, W = limit.shape
  chunk, R = lm.read_chunk, paths.tail.shape[-1]
  prefix, shift = common.prefix(params, "judging")
  begin = jnp.where(asked, jnp.minimum(caches.known(cache, paths), limit), limit)
  total = paths.ends(cache)[..., -1]

  # A pass leaves room for what rollouts add behind the stored path.
  tail = common.scratch(lm, cache.pool.keys.dtype, B, W, R)
  tail_at = total[..., None] + jnp.arange(R)

  def context(cache, tail, begin):
    seen = (tail_at < begin[..., None]) & asked[..., None]
    behind = tail.segment(jnp.where(seen, tail_at + shift, NO_POSITION))
    return [*prefix, *caches.segments(cache, paths, begin, shift), behind]

  def unread(carry):
    return jnp.any(limit - carry[2] > chunk)

  def read(carry):
    cache, tail, begin, usage = carry
    # Only texts too long for the last call take part.
    longer = limit - begin > chunk
    at = begin[..., None] + jnp.arange(chunk)
    valid = jnp.broadcast_to(longer[..., None], at.shape)
    token, place, slot, offset = caches.locate(cache, paths, at)
    _, new = forward(
        lm.graphdef,
        params["model"],
        jnp.maximum(token, 0),
        jnp.where(valid, at + shift, NO_POSITION),
        context(cache, tail, begin),
    )
    upto = begin + jnp.where(longer, chunk, 0)
    cache = caches.write(cache, new, place, slot, offset, valid)
    cache = caches.mark(cache, paths, upto, longer)
    into = jnp.where(valid & (at >= total[..., None]), at - total[..., None], R)
    rows, columns = jnp.arange(B)[:, None, None], jnp.arange(W)[None, :, None]
    tail = jax.tree.map(
        # [layers, B, W, H, T, D] -> [B, W, T, layers, H, D]
        lambda a, n: a.at[:, rows, columns, :, into].set(
            jnp.moveaxis(n, (0, 3), (3, 4)), mode="drop"
        ),
        tail,
        new,
    )
    return cache, tail, upto, usage.count(VERDICT, valid)

  cache, tail, begin, usage = jax.lax.while_loop(unread, read, (cache, tail, begin, usage))

  suffixes = lm.preference.suffix_ids
  suffix = jnp.asarray([t for ids in suffixes for t in ids], jnp.int32)
  reading = jnp.asarray([i for i, ids in enumerate(suffixes) for _ in ids])
  behind = jnp.asarray([j for ids in suffixes for j in range(len(ids))])
  # Text first, then every suffix right behind it, none of which sees another.
  of_text = jnp.concatenate([jnp.full(chunk, -1), reading])
  sees = (of_text[None] < 0) | (of_text[:, None] == of_text[None])
  at = begin[..., None] + jnp.arange(chunk)
  token, place, slot, offset = caches.locate(cache, paths, at)
  in_text = asked[..., None] & (at < limit[..., None])
  in_suffix = jnp.broadcast_to(asked[..., None], (B, W, suffix.shape[0]))
  valid = jnp.concatenate([in_text, in_suffix], axis=-1)
  positions = jnp.concatenate([at, limit[..., None] + behind], axis=-1)
  tokens = jnp.concatenate([token, jnp.broadcast_to(suffix, in_suffix.shape)], axis=-1)
  last = chunk + jnp.cumsum(jnp.asarray([len(ids) for ids in suffixes])) - 1

  def ask(carry):
    _, cache, usage, _ = carry
    hidden, new = forward(
        lm.graphdef,
        params["model"],
        jnp.maximum(tokens, 0),
        jnp.where(valid, positions + shift, NO_POSITION),
        context(cache, tail, begin),
        jnp.broadcast_to(sees, (B, W) + sees.shape),
    )
    logits = unembed(lm.graphdef, params["model"], hidden[:, :, last])
    good = jnp.stack(
        [
            _best(logits[:, :, i], lm.preference.good_ids[i])
            > _best(logits[:, :, i], lm.preference.bad_ids[i])
            for i in range(len(suffixes))
        ],
        axis=-1,
    )
    new = jax.tree.map(lambda a: a[..., :chunk, :], new)
    cache = caches.write(cache, new, place, slot, offset, in_text)
    cache = caches.mark(cache, paths, limit, asked)
    return False, cache, usage.count(VERDICT, valid), good

  # Zero times or once: a `while_loop` updates the cache in place where `cond` copies it.
  good = jnp.zeros((B, W, len(suffixes)), bool)
  _, cache, usage, good = jax.lax.while_loop(
      lambda carry: carry[0], ask, (asked.any(), cache, usage, good)
  )
  return good, cache, usage


def _best(logits: Array, ids: tuple[int, ...]) -> Array:
  """The largest of some labels' logits, [B, W]."""
  return logits[..., jnp.asarray(ids)].max(-1)
