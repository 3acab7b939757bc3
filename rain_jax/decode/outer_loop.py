"""The outer loop: commit, rewind, and slots that refill.

Every tree does one step at a time and decides for itself whether to commit a move; none
waits for its neighbours (RAIN, section 3.1). A prompt's result depends on its own random
key alone, not on its slot or on who shares the batch: steps are counted per prompt, and
the key of a step is folded from the prompt's key and that count.

What a step is depends on `SearchConfig.mode`: `exact` is the method, `drafting` has
segment-level rejection and the adaptive mode.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import types
from rain_jax.decode import drafting
from rain_jax.decode.exact import iterate, move
from rain_jax.decode.state import DecodeState, reset_slots
from rain_jax.parallel.batch_sharding import ROWS, WHOLE, BatchSharding, fetch
from rain_jax.parallel.loops import while_any
from rain_jax.types import Array, SearchConfig
from rain_jax.types.results import Result

NOT_YET = object()
"""What a queue of prompts answers that has none now, but may have one later."""


def step(state: DecodeState, model: types.Model, params: Any, config: SearchConfig) -> DecodeState:
  """One step of every active response: some drafts, or an iteration of the search, and commits."""
  if config.mode == "segments":
    return drafting.segment_step(state, cast(types.Drafter, model), params, config)
  if config.mode == "adaptive":
    return drafting.adaptive_step(state, cast(types.Reviser, model), params, config)
  state, due, _ = iterate(state, model, params, config)
  return move(state, model, params, due, config)


class _Steps(NamedTuple):
  """The state after a number of steps, int32[]."""

  state: DecodeState
  done: Array


@functools.partial(
  jax.jit, static_argnames=("model", "config", "wait_for_all", "sharding"), donate_argnames="state"
)
def advance(
  state: DecodeState,
  model: types.Model,
  params: Any,
  config: SearchConfig,
  max_steps: Array,
  wait_for_all: bool = False,
  sharding: BatchSharding | None = None,
) -> DecodeState:
  """Steps until a response ends (or all do), or `max_steps` are done.

  Over several shards, each does `max_steps` unless all its responses end: none
  knows of the others, and whoever stopped early would only wait for them.
  """
  wait_for_all = wait_for_all or (sharding is not None and sharding.shards > 1)

  def own(state: DecodeState, params: Any, max_steps: Array) -> DecodeState:
    running = state.active.sum()

    def unfinished(at: _Steps) -> Array:
      now = at.state.active.sum()
      enough = now > 0 if wait_for_all else (now == running) & (now > 0)
      return enough & (at.done < max_steps)

    def body(at: _Steps) -> _Steps:
      return _Steps(step(at.state, model, params, config), at.done + 1)

    return while_any(unfinished, body, _Steps(state, jnp.int32(0))).state

  if sharding is None:
    return own(state, params, max_steps)
  return sharding.map(own, WHOLE, WHOLE)(state, params, max_steps)


def serve(
  state: DecodeState,
  model: types.Model,
  params: Any,
  config: SearchConfig,
  prompts: Iterable[tuple[Any, Array, Any]],
  start: Callable[[DecodeState, dict[int, Any]], DecodeState],
  max_steps: int = 1_000_000,
  on_progress: Callable[[DecodeState], None] | None = None,
  sharding: BatchSharding | None = None,
) -> Iterator[tuple[Result, DecodeState]]:
  """Answers prompts with a batch that never drains (continuous batching).

  Args:
    state: fresh from `init`.
    model: the callables.
    params: handed to the model.
    config: the search's hyperparameters.
    prompts: (index, random key, prompt) triples, read as slots come free.
    start: puts prompts, by slot, into the model's state.
    max_steps: steps between two looks at the state, for progress reports.
    on_progress: called with the state after each of those, and after what ended in them
      was yielded.
    sharding: how the state lies over a mesh; None on one device.

  Yields:
    A `Result` for each prompt, in the order in which they end, with the state it was
    read from.
  """
  for ended, _, state in rounds(
    state, model, params, config, prompts, start, max_steps=max_steps, sharding=sharding
  ):
    for one in ended:
      yield one, state
    if on_progress:
      on_progress(state)


def rounds(
  state: DecodeState,
  model: types.Model,
  params: Any,
  config: SearchConfig,
  prompts: Iterable[tuple[Any, Array, Any]],
  start: Callable[[DecodeState, dict[int, Any]], DecodeState],
  *,
  max_steps: int,
  sharding: BatchSharding | None = None,
  dropped: Callable[[Any], bool] = lambda index: False,
) -> Iterator[tuple[list[Result], dict[int, Any], DecodeState]]:
  """As `serve`, by calls of `advance`: what ended, what goes on in which slot, and the state.

  The queue may answer `NOT_YET` for a prompt, but should wait for one while no slot is taken.
  `dropped` is asked of the prompts in slots before each call: where it says so the slot is free
  for another one, and there is no result.
  """
  queue = iter(prompts)
  batch = state.active.shape[0]
  held: dict[int, Any] = {}
  more = True
  while True:
    fresh: dict[int, Any] = {}
    keys: dict[int, Array] = {}
    gone = [slot for slot in held if dropped(held[slot])]
    if gone:
      held = {slot: index for slot, index in held.items() if slot not in gone}
      active = state.active & np.isin(np.arange(batch), gone, invert=True)
      state = state.replace(active=jax.device_put(active, state.active.sharding))
    while more and len(held) < batch:
      item = next(queue, None)
      if item is None or item is NOT_YET:
        more = item is NOT_YET
        break
      slot = min(set(range(batch)) - held.keys())
      held[slot], keys[slot], fresh[slot] = item
    if fresh:
      state = start(refill_slots(state, keys, config, sharding), fresh)
    if not held:
      if more:
        continue
      return
    state = advance(state, model, params, config, max_steps, sharding=sharding)
    active = fetch(state.active)
    ended = [slot for slot in held if not active[slot]]
    yield [result(state, slot, held.pop(slot)) for slot in ended], held, state


@functools.partial(jax.jit, static_argnames=("config", "sharding"), donate_argnames="state")
def _reset_slots(
  state: DecodeState, mask: Any, keys: Array, config: SearchConfig, sharding: BatchSharding | None
) -> DecodeState:
  if sharding is None:
    return reset_slots(state, mask, keys, config)
  own = lambda state, mask, keys: reset_slots(state, mask, keys, config)
  return sharding.map(own, ROWS, ROWS)(state, mask, keys)


def refill_slots(
  state: DecodeState,
  keys: dict[int, Array],
  config: SearchConfig,
  sharding: BatchSharding | None = None,
) -> DecodeState:
  """`reset_slots` for slots given by number, with their random keys; one at least."""
  batch = range(state.active.shape[0])
  mask = np.array([slot in keys for slot in batch])
  filler = next(iter(keys.values()))
  return _reset_slots(
    state, mask, jnp.stack([keys.get(slot, filler) for slot in batch]), config, sharding
  )


def result(state: DecodeState, slot: int, index: Any) -> Result:
  """What a slot holds whose response has ended; `index` says which prompt it was."""
  response, length, finish, counters = fetch(
    (state.response, state.response_length, state.finish, state.counters)
  )
  return Result(
    index=index,
    tokens=response[slot, : length[slot]].tolist(),
    finish=types.FINISH_REASONS[finish[slot]],
    counters={k: int(v[slot]) for k, v in vars(counters).items()},
    slot=slot,
  )
