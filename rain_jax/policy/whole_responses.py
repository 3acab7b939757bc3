"""What RAIN is compared with: vanilla sampling and self-evaluated best-of-N.

Both use the search's model, caches, sampling and verdict template. The samples of one
prompt are rows of one query: they share the prompt's keys and values.
"""

import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rain_jax import types
from rain_jax.models import NO_POSITION, forward
from rain_jax.parallel.batch_sharding import ROWS, WHOLE, over_data
from rain_jax.parallel.loops import while_any
from rain_jax.policy import common, sampling, self_evaluation
from rain_jax.policy.language_model import LanguageModel, Prompt
from rain_jax.text import scanner
from rain_jax.types import NO_TOKEN, Array


class Samples(flax.struct.PyTreeNode):
  """N whole responses for each of B prompts.

  Attributes:
    tokens: int32[B, N, R], the finishing token included, then NO_TOKEN.
    length: int32[B, N].
    finish: int32[B, N] why they ended.
    text: `scanner.ScanState` [B, N] after them.
    calls: int32[B] sequential model calls the prompt took part in.
    forwarded: int32[B] tokens forwarded for the prompt.
  """

  tokens: Array
  length: Array
  finish: Array
  text: scanner.ScanState
  calls: Array
  forwarded: Array


def _read_prompts(lm: LanguageModel, params: Any, prompts: Prompt, side: str):
  """Reads B prompts at once: hidden [B, P, hidden] and their segment [layers, B, H, P, D]."""
  prefix, shift = common.prefix(params, side)
  at = jnp.arange(prompts.tokens.shape[-1])
  positions = jnp.where(at < prompts.length[:, None], at + shift, NO_POSITION)
  hidden, kv = forward(lm.graphdef, params["model"], prompts.tokens, positions, prefix)
  return hidden, [*prefix, kv.segment(positions, prompts.length.max())], prompts.length + shift


@functools.partial(jax.jit, static_argnames=("lm", "samples", "mesh"))
def sample(
  lm: LanguageModel,
  params: Any,
  prompts: Prompt,
  keys: Array,
  first: Array,
  samples: int,
  mesh: Mesh | None = None,
) -> Samples:
  """Samples whole responses at temperature 1 (vanilla decoding, with its cache).

  Args:
    lm: the language model; only its model, limits and stop conditions are used.
    params: from `policy.make_params`.
    prompts: fields [B, ...].
    keys: [B] random keys.
    first: int32[] number of the first sample, so that more can be drawn later.
    samples: how many to draw for each prompt (N).
    mesh: to spread the prompts over, if any.
  """
  draw = functools.partial(_sample, lm, samples)
  if mesh is not None:
    draw = over_data(draw, mesh, (WHOLE, ROWS, ROWS, WHOLE), ROWS)
  return draw(params, prompts, keys, first)


def _sample(lm, samples, params, prompts, keys, first) -> Samples:
  B, N, R = prompts.length.shape[0], samples, lm.max_response
  hidden, shared, behind = _read_prompts(lm, params, prompts, "proposing")
  last = jnp.take_along_axis(hidden, (prompts.length - 1)[:, None, None], axis=1)[:, 0]
  uniforms_of = lambda key, i: jax.random.uniform(jax.random.fold_in(key, i), (R,))
  uniforms = jax.vmap(lambda key: jax.vmap(lambda i: uniforms_of(key, i))(first + jnp.arange(N)))(
    keys
  )
  behind = behind[:, None]

  def extend(carry, logits, step):
    tokens, length, finish, text = carry
    on = finish == types.RUNNING
    broken = on & sampling.not_finite(logits)
    token = jnp.where(on, sampling.categorical(uniforms[..., step], logits), NO_TOKEN)
    text = scanner.advance(params["tables"], text, token)
    finish = jnp.where(on, lm.finish(text, token), finish)
    finish = jnp.where(broken, types.FAILED, finish)
    tokens = tokens.at[..., step].set(jnp.where(broken, NO_TOKEN, token))
    return tokens, length + (on & ~broken), finish, text

  def unfinished(carry):
    return carry[1][2] == types.RUNNING

  def decode(carry):
    step, texts, scratch, forwarded, calls = carry
    on = texts[2] == types.RUNNING
    at = jnp.arange(R)
    seen = jnp.where(at < step - 1, behind[..., None] + at, NO_POSITION)
    seen = jnp.broadcast_to(seen, (B, N, R))
    token = jax.lax.dynamic_index_in_dim(texts[0], step - 1, 2)
    hidden, new = forward(
      lm.graphdef,
      params["model"],
      jnp.maximum(token, 0),
      jnp.where(on, behind + step - 1, NO_POSITION)[..., None],
      [*shared, scratch.segment(seen, used=step - 1)],
    )
    logits = common.logits(lm, params, hidden[:, :, 0])
    scratch = common.put(scratch, new, step - 1)
    texts = extend(texts, logits, step)
    return step + 1, texts, scratch, forwarded + on.sum(-1), calls + on.any(-1)

  text = scanner.empty((B, N)).replace(ends=jnp.repeat(prompts.ends[:, None], N, 1))
  zeros = jnp.zeros((B, N), jnp.int32)
  texts = (jnp.full((B, N, R), NO_TOKEN, jnp.int32), zeros, zeros, text)
  logits = common.logits(lm, params, last)[:, None]
  texts = extend(texts, jnp.broadcast_to(logits, (B, N, logits.shape[-1])), 0)
  scratch = common.scratch(lm, shared[-1].keys.dtype, B, N, R)
  start = (jnp.int32(1), texts, scratch, prompts.length, jnp.ones(B, jnp.int32))
  _, texts, _, forwarded, calls = while_any(unfinished, decode, start)
  tokens, length, finish, text = texts
  return Samples(tokens, length, finish, text, calls, forwarded)


@functools.partial(jax.jit, static_argnames=("lm", "mesh"))
def self_evaluate(
  lm: LanguageModel, params: Any, prompts: Prompt, samples: Samples, mesh: Mesh | None = None
) -> tuple[Array, Array, Array]:
  """The model's own verdict on whole responses (RAIN, section 3.2).

  Args:
    lm: the language model.
    params: from `policy.make_params`.
    prompts: the conversations as the verdict reads them, fields [B, ...].
    samples: the responses.
    mesh: to spread the prompts over, if any.

  Returns:
    value float32[B, N] in [-1, 1], margins float32[B, N, readings] (how much more probable
    the good label is than the bad one), both NaN where the model's output was not finite,
    and int32[B] tokens forwarded.
  """
  read = functools.partial(_self_evaluate, lm)
  if mesh is not None:
    read = over_data(read, mesh, (WHOLE, ROWS, ROWS), ROWS)
  return read(params, prompts, samples)


def _self_evaluate(lm, params, prompts, samples) -> tuple[Array, Array, Array]:
  _, shared, behind = _read_prompts(lm, params, prompts, "evaluating")
  judged, _ = lm.judged(samples.text, samples.finish)
  R = samples.tokens.shape[-1]
  suffixes = self_evaluation.Suffixes.of(lm.preference, R)
  at = jnp.arange(R)
  in_text = at < judged[..., None]
  positions, tokens, valid = suffixes.behind_text(
    jnp.broadcast_to(behind[:, None, None] + at, samples.tokens.shape),
    self_evaluation.spoken(lm.preference, samples.tokens),
    in_text,
    behind[:, None] + judged,
    jnp.ones(judged.shape, bool),
  )
  hidden, _ = forward(
    lm.graphdef,
    params["model"],
    jnp.maximum(tokens, 0),
    jnp.where(valid, positions, NO_POSITION),
    shared,
    suffixes.mask(judged.shape),
  )
  logits = common.logits(lm, params, hidden[:, :, suffixes.last])
  margins = self_evaluation.margins(lm.preference, logits, params["correction"])
  failed = (samples.finish == types.FAILED)[..., None]
  margins = jnp.where(failed, jnp.nan, margins)
  value = self_evaluation.values(margins, lm.soft_verdicts)
  return value, margins, prompts.length + valid.sum((1, 2))
