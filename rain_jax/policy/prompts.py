"""Prompts: what a slot is asked, and reading it into a cache's context."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from rain_jax.models import KV, NO_POSITION, Segment, backend, each_layer, forward
from rain_jax.models.cache import PathCache
from rain_jax.policy import context
from rain_jax.policy.params import Params, Side
from rain_jax.policy.usage import CONTEXT, Usage
from rain_jax.types import Array

if TYPE_CHECKING:
  from rain_jax.policy.language_model import LanguageModel


class Prompt(flax.struct.PyTreeNode):
  """A prompt for one slot.

  Attributes:
    tokens: int32[P], padded with anything.
    length: int32[] tokens, at least 1.
    ends: bool[] its text ends in a text end.
  """

  tokens: Array
  length: Array
  ends: Array


def padded(texts: Sequence[Sequence[int]], ends: Sequence[bool], size: int) -> Prompt:
  """Prompts of `size` tokens at most as one, fields [B, ...], on the host; `ends` says of each."""
  # A program takes them to wherever it runs.
  tokens: Any = np.zeros((len(texts), size), np.int32)
  for row, ids in enumerate(texts):
    tokens[row, : len(ids)] = ids
  length: Any = np.array([len(ids) for ids in texts], np.int32)
  ended: Any = np.array(ends, bool)
  return Prompt(tokens, length, ended)


class _Reading(NamedTuple):
  """A prompt that is read.

  context: keys and values so far.
  begin: int32[] the first position that is not read.
  hidden: [hidden] after the last one that is.
  usage: work counters.
  """

  context: KV
  begin: Array
  hidden: Array
  usage: Usage


def read_prompt(
  lm: "LanguageModel",
  params: Params,
  cache: PathCache,
  slot: Array,
  prompt: Prompt,
  upto: Array,
  side: Side,
  usage: Usage,
) -> tuple[PathCache, Array, Usage]:
  """Reads one prompt into one slot's context, in chunks.

  Args:
    lm: the language model.
    params: its arrays.
    cache: of that side.
    slot: int32[] which slot; nothing is read if there is none of that number.
    prompt: one prompt.
    upto: int32[] how many of its tokens are read now.
    side: whose prefix stands before it.
    usage: work counters.

  Returns:
    The cache, [hidden] after the last token that was read, and the work counters.
  """
  S = cache.tokens.shape[-1]
  tokens = jnp.zeros(S, jnp.int32).at[: prompt.tokens.shape[0]].set(prompt.tokens)
  prefix, offset = context.prefix(params, side)
  graphdef, weights = context.reader(lm, params, side)
  chunk = min(backend.prompt_chunk(), prompt.tokens.shape[0])
  # What is masked is multiplied by zero, and zero times a NaN that a failed prompt left is NaN.
  wipe = lambda kv: each_layer(lambda a: a.at[:, slot].set(0), kv)
  cache = cache.replace(context=wipe(cache.context), pool=wipe(cache.pool))

  def unread(reading: _Reading) -> Array:
    return reading.begin < upto

  def read(reading: _Reading) -> _Reading:
    begin, usage = reading.begin, reading.usage
    at = begin + jnp.arange(chunk)
    valid = at < upto
    seen = jnp.arange(S)
    own = each_layer(lambda a: jax.lax.dynamic_index_in_dim(a, slot, 1), reading.context)
    positions = jnp.where(seen < begin, seen + offset, NO_POSITION)[None]
    hidden, new = forward(
      graphdef,
      weights,
      tokens[jnp.minimum(at, S - 1)][None],
      jnp.where(valid, at + offset, NO_POSITION)[None],
      [*prefix, own.segment(positions, begin)],
    )
    at = jnp.where(valid, at, S)
    stored = each_layer(
      # [layers, 1, H, T, D] -> [T, layers, H, D]: indices around a slice come first.
      lambda a, n: a.at[:, slot, :, at].set(jnp.moveaxis(n[:, 0], 2, 0), mode="drop"),
      reading.context,
      new,
    )
    row = jnp.arange(cache.length.shape[0])[:, None] == slot
    usage = usage.count(CONTEXT, row & valid).replace(
      run_slots=usage.run_slots.at[:, CONTEXT].add(chunk * row[:, 0])
    )
    last = hidden[0, jnp.minimum(upto - 1 - begin, chunk - 1)].astype(reading.hidden.dtype)
    return _Reading(stored, begin + chunk, last, usage)

  nothing = jnp.zeros(context.shapes(lm, side).hidden_size, cache.context.dtype)
  done = jax.lax.while_loop(unread, read, _Reading(cache.context, jnp.int32(0), nothing, usage))
  return (
    cache.replace(
      context=done.context,
      tokens=cache.tokens.at[slot].set(tokens),
      length=cache.length.at[slot].set(prompt.length),
      cached=cache.cached.at[slot].set(upto),
      pooled=cache.pooled.at[slot].set(False),
    ),
    done.hidden,
    done.usage,
  )


def read_prompts(
  lm: "LanguageModel", params: Params, prompts: Prompt, side: Side
) -> tuple[Array, list[Segment], Array]:
  """Reads B prompts at once, without a cache.

  Returns:
    hidden [B, P, hidden], the segments that continuations see (prefix, and keys and values
    [layers, B, H, P, D]), and int32[B] the position after each prompt.
  """
  prefix, shift = context.prefix(params, side)
  at = jnp.arange(prompts.tokens.shape[-1])
  positions = jnp.where(at < prompts.length[:, None], at + shift, NO_POSITION)
  reader = context.reader(lm, params, side)
  hidden, kv = forward(*reader, prompts.tokens, positions, prefix)
  return hidden, [*prefix, kv.segment(positions, prompts.length.max())], prompts.length + shift
