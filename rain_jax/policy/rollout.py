"""Candidates and rollouts, decoded side by side (RAIN, section 3.2; docs/architecture.md, section 4).

The rows of a leaf share everything up to the leaf's last token; each row's own tokens
live in a small scratch. Candidates are at most L tokens long; a rollout that goes on
longer is decoded to its end in a second loop, with one row per leaf.
"""

import math

import flax
import jax
import jax.numpy as jnp

from rain_jax import tree as trees
from rain_jax import types
from rain_jax.models import NO_POSITION, forward
from rain_jax.models import cache as caches
from rain_jax.parallel.loops import while_any
from rain_jax.policy import common, sampling
from rain_jax.policy.usage import CANDIDATES, ROLLOUT
from rain_jax.text import scanner
from rain_jax.text.scanner import ScanState
from rain_jax.types import NO_TOKEN, Array


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
  failed: Array


class Uniforms(flax.struct.PyTreeNode):
  """The uniform numbers that decide what is drawn.

  Attributes:
    candidates: float32[B, W, L, G].
    rollout: float32[B, W, R].
  """

  candidates: Array
  rollout: Array


def draw_uniforms(lm, keys: Array) -> Uniforms:
  """Uniforms for one evaluation; `keys` [B], fresh for each."""
  config = lm.search
  shape = (config.leaves, config.max_set_length, candidate_rows(config))
  numbers = math.prod(shape[1:]) + lm.max_response
  uniforms = jax.vmap(lambda key: jax.random.uniform(key, (config.leaves, numbers)))(keys)
  split = math.prod(shape[1:])
  return Uniforms(uniforms[..., :split].reshape(-1, *shape), uniforms[..., split:])


def candidate_rows(config) -> int:
  """Rows in which candidates are decoded (G): one greedy, the others sampled."""
  return 1 + max(config.sampled_draws, config.grow_draws)


def start_draft(lm, params, request, text, logits, uniforms: Uniforms) -> Draft:
  """Draws the first token of every row from the logits after the leaf."""
  config = lm.search
  B, W = request.mode.shape
  G, L = candidate_rows(config), config.max_set_length
  open_leaf = (request.mode == types.VISIT) & (request.finish == types.RUNNING)
  rows = jnp.arange(G)
  wanted = jnp.where(
    (request.mode == types.GROW)[..., None],
    rows <= config.grow_draws,
    (open_leaf & (request.depth > 0))[..., None] & (rows <= config.sampled_draws),
  )
  each = jax.tree.map(lambda a: jnp.repeat(a[:, :, None], G, axis=2), text)
  rolling = open_leaf & (lm.search.rollout_to_eos | ~text.ends)
  draft = Draft(
    tokens=jnp.full((B, W, G, L), NO_TOKEN, jnp.int32),
    lengths=jnp.zeros((B, W, G), jnp.int32),
    log_weights=jnp.zeros((B, W, G), jnp.float32),
    finish=jnp.zeros((B, W, G), jnp.int32),
    candidate_text=each,
    rollout=jnp.full((B, W, lm.max_response), NO_TOKEN, jnp.int32),
    rollout_length=jnp.zeros((B, W), jnp.int32),
    rollout_finish=request.finish,
    rolling=rolling,
    text=text,
    hidden=jnp.zeros((B, W, lm.config.hidden_size), jnp.float32),
    failed=jnp.zeros((B, W), bool),
  )
  draft = _extend_candidates(lm, params, draft, wanted, logits[:, :, None], uniforms, 0)
  return _extend_rollouts(lm, params, draft, logits, uniforms, 0)


def _extend_candidates(lm, params, draft: Draft, rows, logits, uniforms, step) -> Draft:
  """Draws token number `step` of the candidates in `rows` bool[B, W, G].

  Logits are float[B, W, G or 1, vocab]. Weights are of the filtered distribution.
  """
  config = lm.search
  tokens, log_probs = sampling.filtered(logits, config.temperature, config.top_k)
  B, W, G = rows.shape
  shape = (B, W, G) + tokens.shape[3:]
  tokens, log_probs = jnp.broadcast_to(tokens, shape), jnp.broadcast_to(log_probs, shape)
  index, _ = sampling.draw(jnp.exp(log_probs), uniforms.candidates[:, :, step])
  index = index.at[..., 0].set(0)[..., None]  # row 0 is greedy
  token = jnp.take_along_axis(tokens, index, axis=-1)[..., 0]
  log_prob = jnp.take_along_axis(log_probs, index, axis=-1)[..., 0]
  token = jnp.where(rows, token, NO_TOKEN)
  text = scanner.advance(params["tables"], draft.candidate_text, token)
  return draft.replace(
    failed=draft.failed | jnp.any(rows & sampling.not_finite(logits), axis=-1),
    tokens=draft.tokens.at[..., step].set(token),
    lengths=draft.lengths + rows,
    log_weights=draft.log_weights + jnp.where(rows, log_prob, 0.0),
    finish=jnp.where(rows, lm.finish(text, token), draft.finish),
    candidate_text=text,
  )


def _extend_rollouts(lm, params, draft: Draft, logits, uniforms, step) -> Draft:
  """Draws token number `step` of the rollouts that go on; logits float[B, W, vocab]."""
  rolling = draft.rolling
  token = jnp.where(rolling, sampling.categorical(uniforms.rollout[..., step], logits), NO_TOKEN)
  text = scanner.advance(params["tables"], draft.text, token)
  finish = jnp.where(rolling, lm.finish(text, token), draft.rollout_finish)
  on = rolling & (finish == types.RUNNING)
  if not lm.search.rollout_to_eos:
    on &= ~text.ends
  return draft.replace(
    failed=draft.failed | (rolling & sampling.not_finite(logits)),
    rollout=draft.rollout.at[..., step].set(token),
    rollout_length=draft.rollout_length + rolling,
    rollout_finish=finish,
    rolling=on,
    text=text,
  )


def _decode_context(lm, params, state, request):
  """Segments that all rows of a leaf share, and the first position after the leaf."""
  cache = state.proposing
  paths = common.paths(request, jnp.full(request.mode.shape + (1,), NO_TOKEN))
  total = paths.ends(cache)[..., -1]
  prefix, shift = common.prefix(params, "proposing")
  shown = jnp.where(request.mode == types.IDLE, 0, total)
  return [*prefix, *caches.segments(cache, paths, shown, shift)], total + shift


def decode_together(lm, params, state, request, draft: Draft, uniforms: Uniforms):
  """Decodes candidates, and rollouts beside them, to the longest set's length (L)."""
  config = lm.search
  B, W, G, L = draft.tokens.shape
  shared, behind = _decode_context(lm, params, state, request)
  length = trees.set_length(request.depth, config)[..., None]
  places = jnp.arange(L)

  def wanted(draft):
    started = draft.lengths > 0
    return started & (draft.lengths < length) & (draft.finish == types.RUNNING)

  def unfinished(carry):
    step, draft = carry[:2]
    return (step < L) & wanted(draft)

  def decode(carry):
    step, draft, scratch, usage = carry
    rows, rolling = wanted(draft), draft.rolling
    last = jnp.concatenate(
      [draft.tokens[..., step - 1], draft.rollout[..., step - 1, None]], axis=-1
    )
    valid = jnp.concatenate([rows, rolling[..., None]], axis=-1)
    at = behind[..., None] + step - 1
    seen = jnp.where(places < step - 1, behind[..., None] + places, NO_POSITION)
    seen = jnp.broadcast_to(seen[:, :, None], (B, W, G + 1, L))
    hidden, new = forward(
      lm.graphdef,
      params["model"],
      jnp.maximum(last, 0)[..., None],
      jnp.where(valid, at, NO_POSITION)[..., None],
      [*shared, scratch.segment(seen)],
    )
    hidden = hidden[..., 0, :]
    logits = common.logits(lm, params, hidden)
    draft = draft.replace(
      hidden=draft.hidden + jnp.where(rolling[..., None], hidden[:, :, -1], 0.0)
    )
    draft = _extend_candidates(lm, params, draft, rows, logits[:, :, :-1], uniforms, step)
    draft = _extend_rollouts(lm, params, draft, logits[:, :, -1], uniforms, step)
    usage = usage.count(CANDIDATES, rows, (ROLLOUT, rolling))
    return step + 1, draft, common.put(scratch, new, step - 1), usage

  scratch = common.scratch(lm, state.proposing.pool.keys.dtype, B, W, G + 1, L)
  step, draft, scratch, usage = while_any(
    unfinished, decode, (jnp.int32(1), draft, scratch, state.usage)
  )
  own = jax.tree.map(lambda a: a[:, :, :, -1], scratch)
  return draft, (step, own), usage


def decode_rollouts(lm, params, state, request, draft: Draft, begun, usage, uniforms: Uniforms):
  """Decodes the rollouts that are longer than the candidates, one row per leaf."""
  B, W, R = draft.rollout.shape
  shared, behind = _decode_context(lm, params, state, request)
  step, own = begun
  places = jnp.arange(R)

  def unfinished(carry):
    return carry[1].rolling

  def decode(carry):
    step, draft, scratch, usage = carry
    rolling = draft.rolling
    seen = jnp.where(places < step - 1, behind[..., None] + places, NO_POSITION)
    last = jax.lax.dynamic_index_in_dim(draft.rollout, step - 1, 2)
    hidden, new = forward(
      lm.graphdef,
      params["model"],
      jnp.maximum(last, 0),
      jnp.where(rolling, behind + step - 1, NO_POSITION)[..., None],
      [*shared, scratch.segment(seen, used=step - 1)],
    )
    hidden = hidden[:, :, 0]
    logits = common.logits(lm, params, hidden)
    draft = draft.replace(hidden=draft.hidden + jnp.where(rolling[..., None], hidden, 0.0))
    draft = _extend_rollouts(lm, params, draft, logits, uniforms, step)
    return step + 1, draft, common.put(scratch, new, step - 1), usage.count(ROLLOUT, rolling)

  scratch = common.scratch(lm, own.keys.dtype, B, W, R)
  kept = min(R, own.keys.shape[-2])
  scratch = jax.tree.map(
    lambda whole, first: whole.at[..., :kept, :].set(first[..., :kept, :]), scratch, own
  )
  _, draft, _, usage = while_any(unfinished, decode, (step, draft, scratch, usage))
  return draft, usage


def first_tokens(lm, params, request, text, logits, draft: Draft) -> Draft:
  """At depth 0 the candidates are the most probable single tokens, already in hand."""
  config = lm.search
  B, W = request.mode.shape
  C = config.draws
  count = min(config.max_children, logits.shape[-1])
  tokens, log_probs = sampling.filtered(logits, 1.0, count)
  after = jax.tree.map(lambda a: jnp.repeat(a[:, :, None], count, axis=2), text)
  after = scanner.advance(params["tables"], after, tokens)
  first = (request.mode == types.VISIT) & (request.depth == 0) & (request.finish == types.RUNNING)

  def widen(array, size, fill):
    pad = [(0, 0), (0, 0), (0, C - size)] + [(0, 0)] * (array.ndim - 3)
    return jnp.pad(array, pad, constant_values=fill)

  def choose(at_root, deeper, fill):
    deeper = widen(deeper, deeper.shape[2], fill)
    at_root = widen(at_root, count, fill)
    return common.where(first, at_root, deeper)

  sets = jnp.full((B, W, count, config.max_set_length), NO_TOKEN, jnp.int32).at[..., 0].set(tokens)
  return draft.replace(
    failed=draft.failed | (first & sampling.not_finite(logits)),
    tokens=choose(sets, draft.tokens, NO_TOKEN),
    lengths=choose(jnp.ones((B, W, count), jnp.int32), draft.lengths, 0),
    log_weights=choose(log_probs, draft.log_weights, 0.0),
    finish=choose(lm.finish(after, tokens), draft.finish, 0),
  )
