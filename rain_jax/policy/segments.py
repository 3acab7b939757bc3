"""Drafts of the next segment, sampled side by side and judged, and how they are taken back.

The rows of a tree are rollouts from the end of what is committed, each with a verdict on the text
up to its end, by the code of the search's own rollouts and verdicts. The best one is held with its
keys and values, so that committing it reads nothing again. Going back shortens both contexts; what
is read again after it is the last token that is left, for the logits after it.
"""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import flax
import jax
import jax.numpy as jnp

from rain_jax import types
from rain_jax.models import KV, NO_POSITION, arrays, each_layer, forward
from rain_jax.models import cache as caches
from rain_jax.models.cache import PathCache
from rain_jax.parallel.loops import ordered_after, while_any
from rain_jax.policy import context, decoding, rollout, translation
from rain_jax.policy.decoding import Decoding
from rain_jax.policy.params import Params
from rain_jax.policy.usage import CONTEXT, Usage
from rain_jax.text import scanner
from rain_jax.text.scanner import ScanState
from rain_jax.types import NO_TOKEN, Array, BestDraft, Request

if TYPE_CHECKING:
  from rain_jax.policy.language_model import LanguageModel, PolicyState


class TakenBack(flax.struct.PyTreeNode):
  """What going back in B responses needs to know; M is `SearchConfig.max_rewinds`.

  Attributes:
    ends: bool[B] the prompt ends in a text end.
    texts: uint32[B, M, 2] hash of each text that was taken back.
    count: int32[B] how many.
  """

  ends: Array
  texts: Array
  count: Array


class Drafted(flax.struct.PyTreeNode):
  """The best draft of each of B trees since its last commit; T tokens are the most.

  Attributes:
    best: the draft, of length 0 before there is any; its margin is -inf then, and where every draft
      makes a text that was taken back.
    text: `ScanState` [B] after it.
    proposing: keys and values [layers, B, H, T, D] of all but its last token.
    evaluating: keys and values [layers, B, H, T, D], as the verdict reads it; None where it reads
      other tokens.
    judged: int32[B] how many of its tokens the verdict has read.
    hidden: [B, hidden] after the last committed token.
    known: bool[B] `hidden` was computed.
    taken_back: what was taken back; None in a mode that takes nothing back.
  """

  best: BestDraft
  text: ScanState
  proposing: KV
  evaluating: KV | None
  judged: Array
  hidden: Array
  known: Array
  taken_back: TakenBack | None = None


def nothing(lm: "LanguageModel", batch: int, proposing: KV, evaluating: KV) -> Drafted:
  """No drafts yet, in `batch` slots, with keys and values like those of both sides, or their shapes."""
  T, config = lm.draft_room, lm.config
  zeros = jnp.zeros(batch, jnp.int32)
  taken_back = TakenBack(
    ends=jnp.zeros(batch, bool),
    texts=jnp.zeros((batch, max(lm.search.max_rewinds, 1), 2), jnp.uint32),
    count=zeros,
  )
  return Drafted(
    best=BestDraft(
      jnp.full((batch, T), NO_TOKEN, jnp.int32),
      zeros,
      zeros,
      jnp.full(batch, -jnp.inf, jnp.float32),
    ),
    text=scanner.empty((batch,)),
    proposing=proposing.zeros(batch, slots=T),
    evaluating=None if lm.translation else evaluating.zeros(batch, slots=T),
    judged=zeros,
    hidden=jnp.zeros((batch, config.hidden_size), proposing.dtype),
    known=jnp.zeros(batch, bool),
    taken_back=taken_back if lm.search.mode == "adaptive" else None,
  )


def begin(drafted: Drafted, slot: Array, hidden: Array, ends: Array) -> Drafted:
  """For a prompt that begins in a slot: without anything of earlier responses there.

  Args:
    drafted: of all slots.
    slot: int32[]; nothing begins if there is none of that number.
    hidden: [hidden] after the prompt.
    ends: bool[] the prompt ends in a text end.
  """
  past, mask = drafted.taken_back, jnp.arange(drafted.known.size) == slot
  if past is not None:
    past = past.replace(ends=jnp.where(mask, ends, past.ends), count=jnp.where(mask, 0, past.count))
  return forget(drafted, mask).replace(
    hidden=jnp.where(mask[:, None], hidden, drafted.hidden),
    known=drafted.known | mask,
    taken_back=past,
  )


def forget(drafted: Drafted, mask: Array) -> Drafted:
  """Without the drafts of the trees in `mask` bool[B], whose context has changed."""
  margin = jnp.where(mask, -jnp.inf, drafted.best.margin)
  length = jnp.where(mask, 0, drafted.best.length)
  return drafted.replace(
    best=drafted.best.replace(margin=margin, length=length), known=drafted.known & ~mask
  )


@jax.named_scope("draft")
def draft(
  lm: "LanguageModel", params: Params, state: "PolicyState", wanted: Array, keys: Array
) -> tuple[BestDraft, "PolicyState"]:
  """Samples and judges `drafts_at_once` drafts in the trees `wanted` bool[B]; see `types.Drafter`."""
  W = lm.search.drafts_at_once
  state = _read_context(lm, params, state, wanted)
  drafted, rows = _held(state), lambda a: jnp.repeat(a[:, None], W, axis=1)
  # A draft ends with a sentence or a clause, or at its length, however far the search's rollouts go.
  search = dataclasses.replace(lm.search, rollout_to_eos=lm.search.draft_length > 0)
  drafting = dataclasses.replace(lm, search=search)
  request = _at_root(rows(wanted))
  logits = decoding.next_logits(lm, params, drafted.hidden)
  uniforms = jax.vmap(lambda key: jax.random.uniform(key, (W, lm.draft_room)))(keys)
  with jax.named_scope("rollout"):
    said = context.response(state.proposing, request, state.text.length, lm.max_response)
    begun = rollout.start_rollouts(
      drafting,
      params,
      jax.tree.map(rows, state.text),
      said,
      rows(wanted),
      rows(logits),
      uniforms,
    )
    scratch = state.proposing.pool.zeros(*rows(wanted).shape, slots=1)
    drawn, usage, proposing = rollout.decode_rollouts(
      drafting,
      params,
      state,
      request,
      begun,
      Decoding(jnp.int32(1), None, scratch),
      state.usage,
      uniforms,
    )
  with jax.named_scope("self_evaluation"):
    judged, key = lm.judged(drawn.text, drawn.rollout_finish)
    allowed = rows(wanted) & ~_known_to_fail(drafted, drawn.text)
    paths = context.paths(request, drawn.rollout)
    verdicts = translation.read_verdicts(lm, params, state, paths, judged, allowed, usage)
  margin = params["override"].apply(verdicts.margins.mean(-1), key)
  broken = rows(wanted) & (drawn.failed | (allowed & jnp.isnan(margin)))
  margin = jnp.where(allowed, margin, -jnp.inf)
  usage = verdicts.usage
  usage = usage.replace(verdicts_read=usage.verdicts_read + allowed.sum(-1))

  first = jnp.argmax(jnp.where(broken, -jnp.inf, margin), axis=1)
  pick = lambda a: jax.vmap(lambda one, i: one[i])(a, first)
  of_kv = lambda a: jnp.take_along_axis(a, first.reshape(1, -1, 1, 1, 1, 1), axis=2)[:, :, 0]
  better = wanted & ((pick(margin) > drafted.best.margin) | (drafted.best.length == 0))
  update = lambda new, old: jax.tree.map(lambda a, b: arrays.where(better, a, b), new, old)
  update_kv = lambda new, old: each_layer(
    # Keys and values have their layers before the trees.
    lambda a, b: jnp.where(better.reshape(1, -1, 1, 1, 1), of_kv(a), b),
    new,
    old,
  )
  best = BestDraft(
    pick(drawn.rollout), pick(drawn.rollout_length), pick(drawn.rollout_finish), pick(margin)
  )
  best = update(best, drafted.best)
  kept = drafted.replace(
    best=best.replace(margin=jnp.where(broken.any(-1), jnp.nan, best.margin)),
    text=update(jax.tree.map(pick, drawn.text), drafted.text),
    proposing=update_kv(proposing, drafted.proposing),
    evaluating=update_kv(verdicts.tail, drafted.evaluating),
    # No verdict has read a text that is known to fail.
    judged=update(
      jnp.where(pick(allowed), jnp.maximum(pick(judged) - state.text.length, 0), 0), drafted.judged
    ),
  )
  return kept.best, state.replace(evaluating=verdicts.cache, usage=usage, drafted=kept)


def commit_draft(state: "PolicyState", mask: Array) -> "PolicyState":
  """Makes the best drafts part of both contexts; see `types.Drafter`."""
  drafted = _held(state)
  best = drafted.best
  read = jnp.maximum(best.length - 1, 0)
  add = lambda cache, kv, read: caches.append(cache, mask, best.tokens, best.length, kv, read)
  evaluating = state.evaluating
  if drafted.evaluating is not None:
    evaluating = add(evaluating, drafted.evaluating, jnp.minimum(drafted.judged, best.length))
  return state.replace(
    proposing=add(state.proposing, drafted.proposing, read),
    evaluating=evaluating,
    text=jax.tree.map(lambda new, old: arrays.where(mask, new, old), drafted.text, state.text),
    drafted=forget(drafted, mask),
  )


def _known_to_fail(drafted: Drafted, text: ScanState) -> Array:
  """Which texts [B, W] were taken back before, bool[B, W]."""
  past = drafted.taken_back
  if past is None:
    return jnp.zeros(text.length.shape, bool)
  same = jnp.all(text.hash[:, :, None] == past.texts[:, None], axis=-1)
  return jnp.any(same & (jnp.arange(past.texts.shape[1]) < past.count[:, None, None]), axis=-1)


def rewind(
  lm: "LanguageModel",
  params: Params,
  state: "PolicyState",
  mask: Array,
  begin: Array,
  end: Array,
) -> "PolicyState":
  """Goes back in the responses of `mask` bool[B]; see `types.Reviser`.

  What is known of the text that is left is found by scanning it once more.
  """
  drafted, cache, length = _held(state), state.proposing, state.text.length
  past = drafted.taken_back
  assert past is not None, "the state was made for another mode of the search"
  places = jnp.arange(lm.max_response)
  at = jnp.minimum((cache.length - length)[:, None] + places, cache.tokens.shape[1] - 1)
  tokens = jnp.take_along_axis(cache.tokens, at, axis=1)

  def scanned(text: ScanState, low: Array | int, high: Array) -> ScanState:
    inside = (places >= jnp.asarray(low)[..., None]) & (places < high[:, None])
    return scanner.advance_all(params["tables"], text, jnp.where(inside, tokens, NO_TOKEN))

  left = scanned(scanner.empty(mask.shape).replace(ends=past.ends), 0, begin)
  gone = scanned(left, begin, end)
  place = jnp.where(mask, past.count, past.texts.shape[1])
  past = past.replace(
    texts=past.texts.at[jnp.arange(place.size), place].set(gone.hash, mode="drop"),
    count=past.count + mask,
  )
  removed = jnp.where(mask, length - begin, 0)
  return state.replace(
    proposing=caches.shorten(state.proposing, removed),
    evaluating=(state.evaluating if lm.translation else caches.shorten(state.evaluating, removed)),
    text=jax.tree.map(lambda new, old: arrays.where(mask, new, old), left, state.text),
    drafted=forget(drafted, mask).replace(taken_back=past),
  )


def _held(state: "PolicyState") -> Drafted:
  assert state.drafted is not None, "the state was made for another mode of the search"
  return state.drafted


def _at_root(wanted: Array) -> Request:
  """What would ask for rollouts from the root in the rows `wanted` bool[B, W]."""
  zeros = jnp.zeros(wanted.shape, jnp.int32)
  nodes = jnp.zeros((*wanted.shape, 0), jnp.int32)  # none
  return Request(
    mode=jnp.where(wanted, types.VISIT, types.IDLE),
    leaf_page=zeros,
    first_visit=jnp.zeros(wanted.shape, bool),
    finish=jnp.full(wanted.shape, types.RUNNING, jnp.int32),
    depth=zeros,
    path_length=zeros,
    path_pages=nodes,
    path_tokens=nodes[..., None],
    path_lengths=nodes,
  )


class _ReadingContext(NamedTuple):
  """Contexts that are being read.

  begin: int32[B] the first position that is not read; the context's length where none is asked for.
  hidden: [B, hidden] after the last token that was read.
  cache: the proposing cache.
  usage: work counters.
  """

  begin: Array
  hidden: Array
  cache: PathCache
  usage: Usage


@jax.named_scope("read_context")
def _read_context(
  lm: "LanguageModel", params: Params, state: "PolicyState", wanted: Array
) -> "PolicyState":
  """Reads what is not yet read of the contexts `wanted` bool[B], their last token at least.

  A token at a time: but after a searched move that no page held, the last one is all there is.
  """
  drafted, length = _held(state), state.proposing.length
  new = wanted & ~drafted.known
  paths = context.paths(_at_root(new[:, None]))
  prefix, shift = context.prefix(params, "proposing")

  def read(reading: _ReadingContext) -> _ReadingContext:
    begin, _, cache, usage = reading
    at, valid = begin[:, None, None], (begin < length)[:, None]
    where = caches.locate(cache, paths, at)
    shown = jnp.where(valid, begin[:, None], 0)
    hidden, kv = forward(
      lm.graphdef,
      params["model"],
      where.token,
      jnp.where(valid[..., None], at + shift, NO_POSITION),
      [*prefix, *caches.segments(cache, paths, shown, shift)],
    )
    keep = valid[..., None] & (at >= cache.cached[:, None, None])
    cache = caches.write(cache, ordered_after(hidden, kv), where, keep)
    return _ReadingContext(
      begin=begin + valid[:, 0],
      hidden=arrays.where(
        valid[:, 0], hidden[:, 0, 0].astype(reading.hidden.dtype), reading.hidden
      ),
      cache=caches.mark(cache, paths, begin[:, None] + 1, valid),
      usage=usage.count(CONTEXT, valid[..., None]),
    )

  begin = jnp.where(new, jnp.minimum(state.proposing.cached, length - 1), length)
  done = while_any(
    lambda reading: reading.begin < length,
    read,
    _ReadingContext(begin, drafted.hidden, state.proposing, state.usage),
  )
  return state.replace(
    proposing=done.cache,
    usage=done.usage,
    drafted=drafted.replace(hidden=done.hidden, known=drafted.known | new),
  )
