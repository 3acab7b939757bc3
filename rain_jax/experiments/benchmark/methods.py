"""The methods that are measured: each one call, from prompts to responses."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import decode, types
from rain_jax.experiments.benchmark.subjects import MeasuredSession, Subject, keys_of
from rain_jax.methods.rain import searches
from rain_jax.methods.sampling import best
from rain_jax.methods.sampling import samples as samples_of
from rain_jax.models import NO_POSITION, forward, unembed
from rain_jax.parallel.batch_sharding import fetch
from rain_jax.parallel.loops import while_any
from rain_jax.policy import context, sampling
from rain_jax.policy.language_model import LanguageModel
from rain_jax.policy.params import Override, Params
from rain_jax.policy.prompts import Prompt
from rain_jax.policy.usage import ROLES
from rain_jax.text import scanner
from rain_jax.text.scanner import ScanState
from rain_jax.types import NO_TOKEN, Array, SearchConfig

VERDICTS = ("good", "bad", "mixed", "model")
"""Forced good for all texts, for none, or for a share of them; or the model's own."""


@functools.partial(jax.jit, static_argnames=("lm", "batch"))
def begin_search(
  lm: LanguageModel, params: Params, proposing: Prompt, evaluating: Prompt, keys: Array, batch: int
) -> decode.DecodeState:
  """A state of `batch` searches whose prompts have been read."""
  state = lm.empty_slots(batch, params)
  state = decode.reset_slots(state, jnp.ones(batch, bool), keys, lm.search)
  pick = lambda prompt, slot: jax.tree.map(lambda a: a[slot], prompt)

  def start(slot, model):
    return lm.start(params, model, slot, pick(proposing, slot), pick(evaluating, slot))

  return state.replace(model=jax.lax.fori_loop(0, batch, start, state.model))


class _Texts(NamedTuple):
  """Texts that are read whole for every token.

  step: int32[] number of the token that comes next.
  tokens: int32[B, P + R] prompts and responses.
  finish: int32[B] why a text ended, or RUNNING.
  text: `ScanState` [B] of the responses.
  forwarded: int32[B] tokens forwarded.
  """

  step: Array
  tokens: Array
  finish: Array
  text: ScanState
  forwarded: Array

  @property
  def running(self) -> Array:
    """bool[B]: the response goes on."""
    return self.finish == types.RUNNING


@functools.partial(jax.jit, static_argnames="lm")
def sample_without_cache(
  lm: LanguageModel, params: Params, prompts: Prompt, keys: Array
) -> tuple[Array, Array]:
  """Vanilla sampling that reads the whole text again for every token.

  Returns:
    int32[B] tokens of each response and int32[B] tokens forwarded for it.
  """
  B, P = prompts.tokens.shape
  room = jnp.zeros((B, lm.max_response), jnp.int32)
  tokens = jnp.concatenate([prompts.tokens, room], axis=1)
  rows, at = jnp.arange(B), jnp.arange(P + lm.max_response)
  prefix, shift = context.prefix(params, "proposing")
  uniforms = jax.vmap(lambda key: jax.random.uniform(key, (lm.max_response,)))(keys)

  def extend(texts: _Texts) -> _Texts:
    on, length = texts.running, prompts.length + texts.text.length
    positions = jnp.where(at < length[:, None], at + shift, NO_POSITION)
    hidden, _ = forward(lm.graphdef, params["model"], texts.tokens, positions, prefix)
    logits = unembed(lm.graphdef, params["model"], hidden[rows, length - 1])
    drawn, _ = sampling.categorical(uniforms[:, texts.step], logits)
    token = jnp.where(on, drawn, NO_TOKEN)
    text = scanner.advance(params["tables"], texts.text, token)
    place = jnp.where(on, length, at.size)
    return _Texts(
      step=texts.step + 1,
      tokens=texts.tokens.at[rows, place].set(token, mode="drop"),
      finish=jnp.where(on, lm.finish(text, token), texts.finish),
      text=text,
      forwarded=texts.forwarded + jnp.where(on, length, 0),
    )

  zeros = jnp.zeros(B, jnp.int32)
  start = _Texts(jnp.int32(0), tokens, zeros, scanner.empty((B,)), zeros)
  done = while_any(lambda texts: texts.running, extend, start)
  return done.text.length, done.forwarded


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
  session = MeasuredSession(subject, batch)

  def call(seed: int) -> Work:
    ((_, drawn),) = samples_of(session, seed, 1)
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
  """RAIN, or drafts, with the given search and verdicts of `VERDICTS`; a function of the seed.

  `mixed_share` of the texts are good where verdicts are mixed.
  """
  good = {"good": 1.0, "bad": 0.0, "mixed": mixed_share, "model": -1.0}[verdicts]
  override = Override(jnp.float32(good), jnp.float32(0.0))
  session = MeasuredSession(subject, batch, search, override)
  count, slots = session.workers

  def look(worker, ended, state):
    """Counts of the slots in which responses have ended, and of the whole batch so far."""
    if not ended:
      return worker, None, None
    usage, counters, length = fetch((state.model.usage, state.counters, state.response_length))
    done = [one.slot for one in ended]
    own = jax.tree.map(lambda a: a[done], (usage, vars(counters), length))
    return worker, own, (usage.run_calls[0], usage.run_slots.sum(0))

  def call(seed: int) -> Work:
    own, batches = [], {}
    for worker, some, whole in searches(session, seed, look):
      if some is not None:
        own.append(some)
        batches[worker] = whole  # since it began
    usage, every, length = jax.tree.map(lambda *parts: np.concatenate(parts), *own)
    run_calls, run_slots = (np.sum(parts, 0) for parts in zip(*batches.values()))
    counters = {k: int(v.sum()) for k, v in every.items()}
    tokens, forwarded = int(length.sum()), int(usage.tokens.sum())
    moves = max(counters["moves"], 1)
    details = {
      "iterations_per_move": counters["iterations"] / moves,
      "rewinds_per_response": counters["rewinds"] / batch,
      "inherited_commits_per_move": counters["inherited_commits"] / moves,
      "verdicts_read_per_token": int(usage.verdicts_read.sum()) / tokens,
      "verdicts_remembered_per_token": int(usage.verdicts_remembered.sum()) / tokens,
      "calls_by_role": _by_role(usage.calls.sum(0) / tokens),
      "tokens_by_role": _by_role(usage.tokens.sum(0) / tokens),
      "padding_by_role": _by_role((run_slots - usage.tokens.sum(0)) / tokens),
      "executed_by_role": _by_role(run_calls / count),
      "steps": int(every["steps"].max()),
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
  session = MeasuredSession(subject, batch)

  def call(seed: int) -> Work:
    ((_, chosen, _, work),) = best(session, seed, samples=samples)
    total = lambda name: sum(one[name] for one in work)
    tokens, details = sum(map(len, chosen)), {"samples": samples}
    return Work(tokens, total("model_calls"), total("tokens_forwarded"), None, details)

  return call


def _by_role(values) -> dict[str, float]:
  return {role: float(value) for role, value in zip(ROLES, values)}
