"""Candidates and rollouts, decoded side by side (RAIN, section 3.2; docs/architecture.md, section 4).

The rows of a leaf share everything up to the leaf's last token; each row's own tokens
live in a small scratch. Candidates are at most L tokens long; a rollout that goes on
longer is decoded to its end in a second loop, with one row per leaf.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

import flax
import jax
import jax.numpy as jnp

from rain_jax import types
from rain_jax.models import KV, arrays, each_layer
from rain_jax.policy import context, decoding, sampling
from rain_jax.policy.decoding import Decoding
from rain_jax.policy.params import Params
from rain_jax.policy.usage import CANDIDATES, ROLLOUT, Usage
from rain_jax.search import tree as trees
from rain_jax.text import scanner
from rain_jax.text.scanner import ScanState
from rain_jax.types import NO_TOKEN, Array, Request, SearchConfig

if TYPE_CHECKING:
  from rain_jax.policy.language_model import LanguageModel, PolicyState


class Draft(flax.struct.PyTreeNode):
  """Candidates and rollout of B x W leaves while they are decoded; G candidate rows.

  Attributes:
    tokens: int32[B, W, G, L] candidates, greedy first.
    lengths: int32[B, W, G]; 0 where the row is not wanted.
    log_weights: float32[B, W, G].
    finish: int32[B, W, G].
    candidate_text: `ScanState` [B, W, G].
    rollout: int32[B, W, R] tokens after the leaf.
    rollout_length: int32[B, W].
    rollout_finish: int32[B, W]; the leaf's own if it was finished.
    rolling: bool[B, W] the rollout goes on.
    text: `ScanState` [B, W] of leaf and rollout.
    hidden: float32[B, W, E] sum of the hidden states of the rollout's tokens, its last
      one (punctuation, mostly) left out: nobody else needs it forwarded.
    said: int32[B, W, R] the response up to the leaf, for the repetition penalty.
    failed: bool[B, W] logits that a token was drawn from were not finite.
  """

  tokens: Array
  lengths: Array
  log_weights: Array
  finish: Array
  candidate_text: ScanState
  rollout: Array
  rollout_length: Array
  rollout_finish: Array
  rolling: Array
  text: ScanState
  hidden: Array
  said: Array
  failed: Array


class Uniforms(flax.struct.PyTreeNode):
  """The uniform numbers that decide what is drawn.

  Attributes:
    candidates: float32[B, W, L, G].
    rollout: float32[B, W, R].
  """

  candidates: Array
  rollout: Array


def draw_uniforms(lm: "LanguageModel", keys: Array) -> Uniforms:
  """Uniforms for one evaluation; `keys` [B], fresh for each."""
  config = lm.search
  shape = (config.leaves, config.max_set_length, candidate_rows(config))
  numbers = math.prod(shape[1:]) + lm.max_response
  uniforms = jax.vmap(lambda key: jax.random.uniform(key, (config.leaves, numbers)))(keys)
  split = math.prod(shape[1:])
  return Uniforms(uniforms[..., :split].reshape(-1, *shape), uniforms[..., split:])


def candidate_rows(config: SearchConfig) -> int:
  """Rows in which candidates are decoded (G): one greedy, the others sampled."""
  return 1 + max(config.sampled_draws, config.grow_draws)


def start_draft(
  lm: "LanguageModel",
  params: Params,
  request: Request,
  text: ScanState,
  said: Array,
  logits: Array,
  uniforms: Uniforms,
) -> Draft:
  """Draws the first token of every row from the logits after the leaf; `said` as in `Draft`."""
  config = lm.search
  G = candidate_rows(config)
  open_leaf = (request.mode == types.VISIT) & (request.finish == types.RUNNING)
  rows = jnp.arange(G)
  wanted = jnp.where(
    (request.mode == types.GROW)[..., None],
    rows <= config.grow_draws,
    (open_leaf & (request.depth > 0))[..., None] & (rows <= config.sampled_draws),
  )
  rolling = open_leaf & (lm.search.rollout_to_eos | ~text.ends)
  draft = _empty(lm, text, said, request.finish, rolling, G, lm.max_response)
  draft = _extend_candidates(lm, params, draft, wanted, logits[:, :, None], uniforms, 0)
  return _extend_rollouts(lm, params, draft, logits, uniforms.rollout, 0)


def start_rollouts(
  lm: "LanguageModel",
  params: Params,
  text: ScanState,
  said: Array,
  rolling: Array,
  logits: Array,
  uniforms: Array,
) -> Draft:
  """Rollouts with their first token, and no candidates beside them.

  Args:
    lm: the language model.
    params: its arrays.
    text: `ScanState` [B, W] before them.
    said: as in `Draft`.
    rolling: bool[B, W] which are wanted.
    logits: float[B, W, vocab] after those texts.
    uniforms: float32[B, W, T]; T is the most tokens of a rollout.
  """
  running = jnp.full(rolling.shape, types.RUNNING, jnp.int32)
  draft = _empty(lm, text, said, running, rolling, 0, uniforms.shape[-1])
  return _extend_rollouts(lm, params, draft, logits, uniforms, 0)


def _empty(
  lm: "LanguageModel",
  text: ScanState,
  said: Array,
  finish: Array,
  rolling: Array,
  G: int,
  room: int,
) -> Draft:
  """Nothing drawn yet after texts [B, W] that are `finish`ed or not.

  Each has G candidate rows, and a rollout of `room` tokens at most.
  """
  (B, W), L = rolling.shape, lm.search.max_set_length
  return Draft(
    tokens=jnp.full((B, W, G, L), NO_TOKEN, jnp.int32),
    lengths=jnp.zeros((B, W, G), jnp.int32),
    log_weights=jnp.zeros((B, W, G), jnp.float32),
    finish=jnp.zeros((B, W, G), jnp.int32),
    candidate_text=jax.tree.map(lambda a: jnp.repeat(a[:, :, None], G, axis=2), text),
    rollout=jnp.full((B, W, room), NO_TOKEN, jnp.int32),
    rollout_length=jnp.zeros((B, W), jnp.int32),
    rollout_finish=finish,
    rolling=rolling,
    text=text,
    hidden=jnp.zeros((B, W, lm.config.hidden_size), jnp.float32),
    said=said,
    failed=jnp.zeros((B, W), bool),
  )


def _extend_candidates(
  lm: "LanguageModel",
  params: Params,
  draft: Draft,
  rows: Array,
  logits: Array,
  uniforms: Uniforms,
  step: Array | int,
) -> Draft:
  """Draws token number `step` of the candidates in `rows` bool[B, W, G].

  Logits are float[B, W, G or 1, vocab]. Weights are of the filtered distribution.
  """
  config = lm.search
  B, W, G = rows.shape
  if config.repetition_penalty != 1.0:
    before = jnp.broadcast_to(draft.said[:, :, None], (B, W, G, draft.said.shape[-1]))
    said = jnp.concatenate([before, draft.tokens], axis=-1)
    logits = jnp.broadcast_to(logits, (B, W, G, logits.shape[-1]))
    logits = sampling.penalised(logits, said, config.repetition_penalty)
  tokens, log_probs, broken = sampling.filtered(logits, config.temperature, config.top_k)
  shape = (B, W, G) + tokens.shape[3:]
  tokens, log_probs = jnp.broadcast_to(tokens, shape), jnp.broadcast_to(log_probs, shape)
  index, _ = sampling.draw(jnp.exp(log_probs), uniforms.candidates[:, :, step])
  index = index.at[..., 0].set(0)[..., None]  # row 0 is greedy
  token = jnp.take_along_axis(tokens, index, axis=-1)[..., 0]
  log_prob = jnp.take_along_axis(log_probs, index, axis=-1)[..., 0]
  token = jnp.where(rows, token, NO_TOKEN)
  text = scanner.advance(params["tables"], draft.candidate_text, token)
  return draft.replace(
    failed=draft.failed | jnp.any(rows & broken, axis=-1),
    tokens=draft.tokens.at[..., step].set(token),
    lengths=draft.lengths + rows,
    log_weights=draft.log_weights + jnp.where(rows, log_prob, 0.0),
    finish=jnp.where(rows, lm.finish(text, token), draft.finish),
    candidate_text=text,
  )


def _extend_rollouts(
  lm: "LanguageModel",
  params: Params,
  draft: Draft,
  logits: Array,
  uniforms: Array,
  step: Array | int,
) -> Draft:
  """Draws token number `step` of the rollouts that go on.

  Logits are float[B, W, vocab], uniforms float32[B, W, R]; R tokens are the most.
  """
  rolling = draft.rolling
  said = jnp.concatenate([draft.said, draft.rollout], axis=-1)
  logits = sampling.penalised(logits, said, lm.search.repetition_penalty)
  token, broken = sampling.sample(uniforms[..., step], logits, lm.search.sample_top_k)
  token = jnp.where(rolling, token, NO_TOKEN)
  text = scanner.advance(params["tables"], draft.text, token)
  finish = jnp.where(rolling, lm.finish(text, token), draft.rollout_finish)
  on = rolling & (finish == types.RUNNING) & (step + 1 < draft.rollout.shape[-1])
  if not lm.search.rollout_to_eos:
    on &= ~text.ends
  return draft.replace(
    failed=draft.failed | (rolling & broken),
    rollout=draft.rollout.at[..., step].set(token),
    rollout_length=draft.rollout_length + rolling,
    rollout_finish=finish,
    rolling=on,
    text=text,
  )


class _Drafting(NamedTuple):
  """What the decoding loops carry: the draft, and the work done for it."""

  draft: Draft
  usage: Usage


def decode_together(
  lm: "LanguageModel",
  params: Params,
  state: "PolicyState",
  request: Request,
  draft: Draft,
  uniforms: Uniforms,
) -> tuple[Draft, Decoding[None], Usage]:
  """Decodes candidates, and rollouts beside them, to the longest set's length (L).

  Returns:
    The draft, the number of tokens drawn with the rollouts' keys and values [layers, B, W, H,
    L, D], and the counters.
  """
  B, W, G, L = draft.tokens.shape
  shared, end = context.leaf_context(params, state.proposing, request)
  length = trees.set_length(request.depth, lm.search)[..., None]

  def wanted(draft: Draft) -> Array:
    started = draft.lengths > 0
    return started & (draft.lengths < length) & (draft.finish == types.RUNNING)

  def last(drafting: _Drafting, step: Array) -> tuple[Array, Array]:
    draft = drafting.draft
    tokens = [draft.tokens[..., step - 1], draft.rollout[..., step - 1, None]]
    valid = [wanted(draft), draft.rolling[..., None]]
    return jnp.concatenate(tokens, axis=-1), jnp.concatenate(valid, axis=-1)

  def extend(drafting: _Drafting, hidden: Array, step: Array) -> _Drafting:
    draft, usage = drafting
    rows, rolling = wanted(draft), draft.rolling
    logits = decoding.next_logits(lm, params, hidden)
    draft = draft.replace(
      hidden=draft.hidden + jnp.where(rolling[..., None], hidden[:, :, -1], 0.0)
    )
    draft = _extend_candidates(lm, params, draft, rows, logits[:, :, :-1], uniforms, step)
    draft = _extend_rollouts(lm, params, draft, logits[:, :, -1], uniforms.rollout, step)
    return _Drafting(draft, usage.count(CANDIDATES, rows, (ROLLOUT, rolling)))

  scratch = state.proposing.pool.zeros(B, W, G + 1, slots=L)
  done = decoding.decode(
    lm,
    params,
    shared,
    end[..., None],
    Decoding(jnp.int32(1), _Drafting(draft, state.usage), scratch),
    goes_on=lambda drafting, step: (step < L) & wanted(drafting.draft),
    last=last,
    extend=extend,
  )
  own = each_layer(lambda a: a[:, :, :, -1], done.scratch)
  return done.texts.draft, Decoding(done.step, None, own), done.texts.usage


def decode_rollouts(
  lm: "LanguageModel",
  params: Params,
  state: "PolicyState",
  request: Request,
  draft: Draft,
  begun: Decoding[None],
  usage: Usage,
  uniforms: Array,
) -> tuple[Draft, Usage, KV]:
  """Decodes the rollouts that are longer than the candidates, one row per leaf.

  `begun` is what `decode_together` returned.

  Returns:
    The draft, the counters, and keys and values [layers, B, W, H, R, D] of all but the last
    token of each rollout.
  """
  B, W, R = draft.rollout.shape
  shared, end = context.leaf_context(params, state.proposing, request)

  def last(drafting: _Drafting, step: Array) -> tuple[Array, Array]:
    draft = drafting.draft
    token = jax.lax.dynamic_index_in_dim(draft.rollout, step - 1, 2, keepdims=False)
    return token, draft.rolling

  def extend(drafting: _Drafting, hidden: Array, step: Array) -> _Drafting:
    draft, usage = drafting
    rolling = draft.rolling
    logits = decoding.next_logits(lm, params, hidden)
    draft = draft.replace(hidden=draft.hidden + jnp.where(rolling[..., None], hidden, 0.0))
    draft = _extend_rollouts(lm, params, draft, logits, uniforms, step)
    return _Drafting(draft, usage.count(ROLLOUT, rolling))

  own = begun.scratch
  kept = min(R, own.slots)
  scratch: KV = each_layer(
    lambda whole, first: whole.at[..., :kept, :].set(first[..., :kept, :]),
    own.zeros(B, W, slots=R),
    own,
  )
  done = decoding.decode(
    lm,
    params,
    shared,
    end,
    Decoding(begun.step, _Drafting(draft, usage), scratch),
    goes_on=lambda drafting, step: drafting.draft.rolling,
    last=last,
    extend=extend,
  )
  return done.texts.draft, done.texts.usage, done.scratch


def first_tokens(
  lm: "LanguageModel",
  params: Params,
  request: Request,
  text: ScanState,
  logits: Array,
  draft: Draft,
) -> Draft:
  """At depth 0 the candidates are the most probable single tokens, already in hand."""
  config = lm.search
  B, W = request.mode.shape
  C = config.draws
  count = min(config.max_children, logits.shape[-1])
  tokens, log_probs, broken = sampling.filtered(logits, 1.0, count)
  after = jax.tree.map(lambda a: jnp.repeat(a[:, :, None], count, axis=2), text)
  after = scanner.advance(params["tables"], after, tokens)
  first = (request.mode == types.VISIT) & (request.depth == 0) & (request.finish == types.RUNNING)

  def widen(array: Array, size: int, fill: float) -> Array:
    pad = [(0, 0), (0, 0), (0, C - size)] + [(0, 0)] * (array.ndim - 3)
    return jnp.pad(array, pad, constant_values=fill)

  def choose(at_root: Array, deeper: Array, fill: float) -> Array:
    deeper = widen(deeper, deeper.shape[2], fill)
    at_root = widen(at_root, count, fill)
    return arrays.where(first, at_root, deeper)

  sets = jnp.full((B, W, count, config.max_set_length), NO_TOKEN, jnp.int32).at[..., 0].set(tokens)
  return draft.replace(
    failed=draft.failed | (first & broken),
    tokens=choose(sets, draft.tokens, NO_TOKEN),
    lengths=choose(jnp.ones((B, W, count), jnp.int32), draft.lengths, 0),
    log_weights=choose(log_probs, draft.log_weights, 0.0),
    finish=choose(lm.finish(after, tokens), draft.finish, 0),
  )
