"""The methods that are measured: each one call, from prompts to responses."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import decode, types
from rain_jax.experiments.benchmark.subjects import Subject
from rain_jax.models import NO_POSITION, forward, unembed
from rain_jax.parallel import workers
from rain_jax.parallel.loops import while_any
from rain_jax.policy import common, sampling, whole_responses
from rain_jax.policy.language_model import LanguageModel, Prompt
from rain_jax.policy.self_evaluation import Override
from rain_jax.policy.usage import ROLES
from rain_jax.text import scanner
from rain_jax.types import NO_TOKEN, Array, SearchConfig

VERDICTS = ("good", "bad", "mixed", "model")
"""Forced good for all texts, for none, or for a share of them; or the model's own."""

_SAMPLES_PER_CALL = 16  # of best-of-N


@functools.partial(jax.jit, static_argnames=("lm", "batch"))
def begin_search(
  lm: LanguageModel, params: Any, proposing: Prompt, evaluating: Prompt, keys: Array, batch: int
) -> decode.DecodeState:
  """A state of `batch` searches whose prompts have been read."""
  dtype = params["evaluating_prefix"].keys.dtype
  state = decode.init(batch, lm.init(batch, dtype), lm.search, lm.embedding_size, lm.max_response)
  state = decode.refill(state, jnp.ones(batch, bool), keys, lm.search)
  pick = lambda prompt, slot: jax.tree.map(lambda a: a[slot], prompt)

  def start(slot, model):
    return lm.start(params, model, slot, pick(proposing, slot), pick(evaluating, slot))

  return state.replace(model=jax.lax.fori_loop(0, batch, start, state.model))


@functools.partial(jax.jit, static_argnames="lm")
def sample_without_cache(
  lm: LanguageModel, params: Any, prompts: Prompt, keys: Array
) -> tuple[Array, Array]:
  """Vanilla sampling that reads the whole text again for every token.

  Returns:
    int32[B] tokens of each response and int32[B] tokens forwarded for it.
  """
  B, P = prompts.tokens.shape
  room = jnp.zeros((B, lm.max_response), jnp.int32)
  tokens = jnp.concatenate([prompts.tokens, room], axis=1)
  rows, at = jnp.arange(B), jnp.arange(P + lm.max_response)
  prefix, shift = common.prefix(params, "proposing")
  uniforms = jax.vmap(lambda key: jax.random.uniform(key, (lm.max_response,)))(keys)

  def unfinished(carry):
    return carry[2] == types.RUNNING

  def extend(carry):
    step, tokens, finish, text, forwarded = carry
    on, length = finish == types.RUNNING, prompts.length + text.length
    positions = jnp.where(at < length[:, None], at + shift, NO_POSITION)
    hidden, _ = forward(lm.graphdef, params["model"], tokens, positions, prefix)
    logits = unembed(lm.graphdef, params["model"], hidden[rows, length - 1])
    token = jnp.where(on, sampling.categorical(uniforms[:, step], logits), NO_TOKEN)
    text = scanner.advance(params["tables"], text, token)
    tokens = tokens.at[rows, jnp.where(on, length, at.size)].set(token, mode="drop")
    finish = jnp.where(on, lm.finish(text, token), finish)
    return step + 1, tokens, finish, text, forwarded + jnp.where(on, length, 0)

  zeros = jnp.zeros(B, jnp.int32)
  carry = (jnp.int32(0), tokens, zeros, scanner.empty((B,)), zeros)
  _, _, _, text, forwarded = while_any(unfinished, extend, carry)
  return text.length, forwarded


@dataclasses.dataclass(frozen=True)
class Work:
  """What one measured call did, summed over its prompts.

  Attributes:
    tokens: response tokens made.
    calls: sequential model calls, each counted for every prompt that took part.
    forwarded: tokens forwarded.
    padding: token positions computed for nothing; None where nobody counts them.
    details: further columns of the row.
  """

  tokens: int
  calls: int
  forwarded: int
  padding: int | None
  details: Mapping[str, Any]


def vanilla(subject: Subject, batch: int) -> Callable[[int], Work]:
  """Cached sampling, one response per prompt; a function of the seed."""
  prompts = subject.prompts("proposing", batch)

  def call(seed: int) -> Work:
    drawn = whole_responses.sample(subject.lm, subject.params, prompts, keys_of(seed, batch), 0, 1)
    longest = int(drawn.length.max())
    slots = batch * (subject.lm.max_prompt + longest - 1)
    forwarded = int(drawn.forwarded.sum())
    return Work(int(drawn.length.sum()), int(drawn.calls.sum()), forwarded, slots - forwarded, {})

  return call


def no_cache(subject: Subject, batch: int) -> Callable[[int], Work]:
  """Vanilla sampling without a cache; a function of the seed."""
  prompts = subject.prompts("proposing", batch)

  def call(seed: int) -> Work:
    length, forwarded = sample_without_cache(
      subject.lm, subject.params, prompts, keys_of(seed, batch)
    )
    length, forwarded = np.asarray(length), int(forwarded.sum())
    slots = batch * int(length.max()) * (subject.lm.max_prompt + subject.lm.max_response)
    return Work(int(length.sum()), int(length.sum()), forwarded, slots - forwarded, {})

  return call


def rain(
  subject: Subject, batch: int, search: SearchConfig, verdicts: str, mixed_share: float = 0.5
) -> Callable[[int], Work]:
  """RAIN with the given search and verdicts of `VERDICTS`; a function of the seed.

  `mixed_share` of the texts are good where verdicts are mixed.
  """
  lm = dataclasses.replace(subject.lm, search=search)
  good = {"good": 1.0, "bad": 0.0, "mixed": mixed_share, "model": -1.0}[verdicts]
  override = Override(jnp.float32(good), jnp.float32(0.0))
  params = {**subject.params, "override": override}
  sides = subject.prompts("proposing", batch), subject.prompts("evaluating", batch)
  count, slots = workers.layout(subject.params["model"], batch)

  def lane(keys, firsts):
    for first in firsts:
      mine = lambda a: a[first : first + slots]
      state = begin_search(lm, params, *jax.tree.map(mine, sides), mine(keys), slots)
      state = decode.advance(state, lm, params, search, 1_000_000, wait_for_all=True)
      yield jax.tree.map(
        np.asarray, (state.model.usage, vars(state.counters), state.response_length)
      )

  def call(seed: int) -> Work:
    keys, firsts = keys_of(seed, batch), workers.Shared(range(0, batch, slots))
    found = list(workers.merged([lane(keys, firsts) for _ in range(count)]))
    usage, every, length = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
    counters = {k: int(v.sum()) for k, v in every.items()}
    tokens, forwarded = int(length.sum()), int(usage.tokens.sum())
    moves = max(counters["moves"], 1)
    # A batch's own counts stand beside each of its slots.
    run_calls, run_slots = usage.run_calls[::slots].sum(0), usage.run_slots.sum(0)
    details = {
      "iterations_per_move": counters["iterations"] / moves,
      "rewinds_per_response": counters["rewinds"] / batch,
      "inherited_commits_per_move": counters["inherited_commits"] / moves,
      "verdicts_read_per_token": int(usage.verdicts_read.sum()) / tokens,
      "verdicts_remembered_per_token": int(usage.verdicts_remembered.sum()) / tokens,
      "calls_by_role": _by_role(usage.calls.sum(0) / tokens),
      "tokens_by_role": _by_role(usage.tokens.sum(0) / tokens),
      "padding_by_role": _by_role((run_slots - usage.tokens.sum(0)) / tokens),
      "executed_calls_per_token": int(run_calls.sum()) * slots / tokens,
      "early_commits_per_response": counters["early_commits"] / batch,
      "side_by_side": count * slots,
    }
    return Work(
      tokens, int(usage.calls.sum()), forwarded, int(run_slots.sum()) - forwarded, details
    )

  return call


def best_of_n(subject: Subject, batch: int, samples: int) -> Callable[[int], Work]:
  """N whole responses, the one the model judges best kept; a function of the seed."""
  sides = subject.prompts("proposing", batch), subject.prompts("evaluating", batch)
  size = min(samples, _SAMPLES_PER_CALL)
  rounds = math.ceil(samples / size)

  def call(seed: int) -> Work:
    best, kept, calls, forwarded = np.full(batch, -np.inf), np.zeros(batch, int), 0, 0
    for first in range(rounds):
      drawn = whole_responses.sample(
        subject.lm, subject.params, sides[0], keys_of(seed, batch), first * size, size
      )
      value, margins, judged = whole_responses.self_evaluate(
        subject.lm, subject.params, sides[1], drawn
      )
      # The margin of two probabilities lies within 1 of 0, so it only settles ties.
      score, length = np.asarray(value + margins.mean(-1) / 8), np.asarray(drawn.length)
      top = score.argmax(-1)
      rows = np.arange(batch)
      kept = np.where(score[rows, top] > best, length[rows, top], kept)
      best = np.maximum(best, score.max(-1))
      calls += int(drawn.calls.sum()) + batch
      forwarded += int(drawn.forwarded.sum() + judged.sum())
    return Work(int(kept.sum()), calls, forwarded, None, {"samples": rounds * size})

  return call


def _by_role(values) -> dict[str, float]:
  return {role: float(value) for role, value in zip(ROLES, values)}


def keys_of(seed: int, batch: int) -> Array:
  """[B] random keys of a measured call."""
  return jax.random.split(jax.random.key(seed), batch)
