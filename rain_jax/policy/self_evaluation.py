"""Self-evaluation: the model reads its own text in a fixed prompt (RAIN, section 3.2).

The verdict text is the preference's prefix, the conversation, and one suffix per
reading (of the published form two, with the options in either order). Prefix and conversation are
cached; a call reads only what is new to the cache, and all suffixes after it at once. Another model can
be asked in its place (`LanguageModel.verdict`).
"""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np

from rain_jax.models import KV, NO_POSITION, each_layer, forward
from rain_jax.models import cache as caches
from rain_jax.models.cache import PathCache, Paths
from rain_jax.parallel.loops import ordered_after, while_any
from rain_jax.policy import context, decoding, sampling
from rain_jax.policy.params import Correction, Params
from rain_jax.policy.usage import VERDICT, Usage
from rain_jax.preferences import CompiledPreference
from rain_jax.types import Array

if TYPE_CHECKING:
  from rain_jax.policy.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class Suffixes:
  """All readings' suffixes after one text of up to `room` tokens, as one row of tokens.

  Attributes:
    room: places for the text.
    tokens: int32[X] the suffixes' tokens, one suffix after the other.
    reading: int32[X] which reading each token belongs to.
    after: int32[X] its distance from the end of the text.
    last: int32[readings] place of each suffix's last token in the row.
  """

  room: int
  tokens: Array
  reading: Array
  after: Array
  last: Array

  @classmethod
  def of(cls, preference: CompiledPreference, room: int) -> "Suffixes":
    """The suffixes of a compiled preference."""
    ids = preference.suffix_ids
    sizes = np.array([len(one) for one in ids])
    return cls(
      room=room,
      tokens=jnp.asarray(np.concatenate(ids), jnp.int32),
      reading=jnp.asarray(np.repeat(np.arange(len(ids)), sizes)),
      after=jnp.asarray(np.concatenate([np.arange(size) for size in sizes])),
      last=jnp.asarray(room + np.cumsum(sizes) - 1),
    )

  def mask(self, batch: tuple[int, ...]) -> Array:
    """bool[*batch, T, T]: every suffix sees the text and itself, none sees another."""
    of = jnp.concatenate([jnp.full(self.room, -1), self.reading])
    sees = (of[None] < 0) | (of[:, None] == of[None])
    return jnp.broadcast_to(sees, batch + sees.shape)

  def after_text(
    self, at: Array, token: Array, in_text: Array, limit: Array, asked: Array
  ) -> tuple[Array, Array, Array]:
    """Positions, tokens and validity [B, W, T] of a stretch of text and the suffixes.

    Args:
      at: int32[B, W, room] positions of the text's tokens.
      token: int32[B, W, room].
      in_text: bool[B, W, room].
      limit: int32[B, W] the position after the text.
      asked: bool[B, W]; where False no suffix is valid.
    """
    shape = limit.shape + self.tokens.shape
    suffix = jnp.broadcast_to(self.tokens, shape)
    valid = jnp.broadcast_to(asked[..., None], shape)
    join = lambda *parts: jnp.concatenate(parts, axis=-1)
    return (
      join(at, limit[..., None] + self.after),
      join(token, suffix),
      join(in_text, valid),
    )


class _Reading(NamedTuple):
  """Texts that are being read.

  asked: bool[B, W] those that are not at their end.
  begin: int32[B, W] the first position that is not read.
  lead: float32[B, W, readings] the margins of those that are.
  cache: the evaluating cache.
  tail: keys and values [layers, B, W, H, R, D] of what rollouts add after the stored paths.
  usage: work counters.
  """

  asked: Array
  begin: Array
  lead: Array
  cache: PathCache
  tail: KV
  usage: Usage


class Verdicts(NamedTuple):
  """What was read of W texts per tree.

  margins: float32[B, W, readings] the `margins` of each reading.
  cache: the evaluating cache.
  tail: keys and values [layers, B, W, H, R, D] of the judged tokens after the stored paths; None
    where these are not the tokens that were written.
  usage: work counters.
  """

  margins: Array
  cache: PathCache
  tail: KV | None
  usage: Usage


def read_verdicts(
  lm: "LanguageModel",
  params: Params,
  cache: PathCache,
  paths: Paths,
  limit: Array,
  asked: Array,
  usage: Usage,
) -> Verdicts:
  """Reads the texts asked for, each with every suffix; stores what belongs to nodes.

  A call reads up to `read_chunk` tokens of each text, of short tails no more than a tail has, and
  the suffixes after those texts that it comes to the end of; a longer text takes several calls.

  Args:
    lm: the language model.
    params: its arrays.
    cache: the evaluating cache.
    paths: of the leaves, with rollouts as tails.
    limit: int32[B, W] position in the conversation after the last judged token.
    asked: bool[B, W].
    usage: work counters.
  """
  B, W = limit.shape
  R = paths.tail.shape[-1]
  chunk = min(lm.read_chunk, R)  # what is new is a tail, mostly
  prefix, shift = context.prefix(params, "evaluating")
  graphdef, weights = context.reader(lm, params, "evaluating")
  suffixes = Suffixes.of(lm.preference, chunk)
  within = suffixes.mask((B, W))
  total = paths.total(cache)
  tail_at = total[..., None] + jnp.arange(R)

  def read(reading: _Reading) -> _Reading:
    asked, begin, cache = reading.asked, reading.begin, reading.cache
    ending = asked & (limit - begin <= chunk)
    upto = jnp.where(ending, limit, begin + chunk)
    at = begin[..., None] + jnp.arange(chunk)
    where = caches.locate(cache, paths, at)
    in_text = asked[..., None] & (at < upto[..., None])
    token = spoken(lm.preference, where.token)
    positions, tokens, valid = suffixes.after_text(at, token, in_text, upto, ending)
    shown = jnp.where(asked, begin, 0)
    read_before = tail_at < shown[..., None]
    tail = reading.tail.segment(
      jnp.where(read_before, tail_at + shift, NO_POSITION), used=read_before.sum(-1).max()
    )
    hidden, new = forward(
      graphdef,
      weights,
      jnp.maximum(tokens, 0),
      jnp.where(valid, positions + shift, NO_POSITION),
      [*prefix, *caches.segments(cache, paths, shown, shift), tail],
      within,
    )
    logits = decoding.logits(lm, params, hidden[:, :, suffixes.last], "evaluating")
    found = margins(lm.preference, logits, params["correction"])
    new = ordered_after(hidden, each_layer(lambda a: a[..., :chunk, :], new))
    cache = caches.write(cache, new, where, in_text)
    place = jnp.where(in_text & (at >= total[..., None]), at - total[..., None], R)
    return _Reading(
      asked=asked & ~ending,
      begin=upto,
      lead=jnp.where(ending[..., None], found, reading.lead),
      cache=caches.mark(cache, paths, upto, asked),
      tail=_store(reading.tail, new, place),
      usage=reading.usage.count(VERDICT, valid),
    )

  start = _Reading(
    asked=asked,
    begin=jnp.where(asked, jnp.minimum(caches.known(cache, paths), limit), limit),
    lead=jnp.zeros((B, W, len(lm.preference.suffix_ids)), jnp.float32),
    cache=cache,
    # For the calls after the one that reads it.
    tail=cache.pool.zeros(B, W, slots=R),
    usage=usage,
  )
  done = while_any(lambda reading: reading.asked, read, start)
  return Verdicts(done.lead, done.cache, done.tail, done.usage)


def spoken(preference: CompiledPreference, tokens: Array) -> Array:
  """Tokens of a text as a verdict reads them: in a chat turn its control tokens would mean a turn."""
  if not preference.control_ids:
    return tokens
  control = jnp.isin(tokens, jnp.asarray(preference.control_ids, jnp.int32))
  return jnp.where(control, preference.stand_in, tokens)


def _store(tail: KV, new: KV, place: Array) -> KV:
  """Puts new keys and values [layers, B, W, H, T, D] at places int32[B, W, T] of a tail."""
  B, W, _ = place.shape
  rows, columns = jnp.arange(B)[:, None, None], jnp.arange(W)[None, :, None]
  put = lambda old, fresh: old.at[:, rows, columns, :, place].set(
    # Indices around a slice come first: [B, W, T, layers, H, D].
    jnp.moveaxis(fresh, (0, 3), (3, 4)),
    mode="drop",
  )
  return each_layer(put, tail, new)


def leads(preference: CompiledPreference, logits: Array) -> Array:
  """Log-odds of the best good label against the best bad one, float32[..., readings].

  NaN where the logits, float32[..., readings, vocab] after each suffix, are not finite. The lead of
  a scored text is its score, float32[..., readings, 1].
  """
  if preference.scored:
    return jnp.where(sampling.not_finite(logits), jnp.nan, logits[..., 0])
  return _ahead(preference, _labels(preference, logits).logits)


def margins(
  preference: CompiledPreference, logits: Array, correction: Correction | None = None
) -> Array:
  """How much the best good label leads the best bad one, float32[..., readings] in [-1, 1].

  A difference of probabilities, positive exactly where the reading is good, NaN where
  the logits are not finite; `logits` are float32[..., readings, vocab] after each suffix.
  By the method the probabilities are the labels'. With a correction, and of scored texts, they are
  those of being good and of being bad, by the lead's distance from the offset.
  """
  if correction is None and preference.scored:
    return jnp.tanh(leads(preference, logits) / 2)
  if correction is None:
    return _ahead(preference, _labels(preference, logits).probabilities)
  over = leads(preference, logits) - correction.offset
  return jnp.tanh(correction.scale * over / 2)  # p - (1 - p) for p = sigmoid(scale * over)


def _label_ids(preference: CompiledPreference) -> list[int]:
  """The tokens of all labels, once each."""
  return sorted({token for ids in (*preference.good_ids, *preference.bad_ids) for token in ids})


def _labels(preference: CompiledPreference, logits: Array) -> sampling.Chosen:
  """What the logits after every suffix say of each of `_label_ids`."""
  tokens = jnp.asarray(_label_ids(preference), jnp.int32)
  return sampling.chosen(logits, jnp.broadcast_to(tokens, (*logits.shape[:-1], tokens.size)))


def _ahead(preference: CompiledPreference, scores: Array) -> Array:
  """The best good label's score less the best bad one's; of `_label_ids` at each reading."""
  place = {token: at for at, token in enumerate(_label_ids(preference))}
  best = lambda reading, ids: scores[..., reading, jnp.asarray([place[i] for i in ids])].max(-1)
  pairs = enumerate(zip(preference.good_ids, preference.bad_ids, strict=True))
  return jnp.stack([best(i, good) - best(i, bad) for i, (good, bad) in pairs], axis=-1)


def values(margins: Array, soft: bool) -> Array:
  """Verdicts float32[...] in [-1, 1] from the margins float32[..., readings].

  By the method a reading is good or bad, whatever its margin: two give +1, 0 or -1. Soft
  verdicts are the mean margin. Either is NaN where a margin is.
  """
  mean = margins.mean(-1)
  if soft:
    return mean
  value = 2.0 * (margins > 0).astype(jnp.float32).mean(-1) - 1.0
  return jnp.where(jnp.isnan(mean), jnp.nan, value)
