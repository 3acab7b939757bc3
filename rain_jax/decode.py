"""The outer loop: commit, rewind, and slots that refill.

Every tree does one step at a time and decides for itself whether to commit a move; none
waits for its neighbours (RAIN, section 3.1). A prompt's result depends on its own random
key alone, not on its slot or on who shares the batch: steps are counted per prompt, and
the key of a step is folded from the prompt's key and that count.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import flax
import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import search, types
from rain_jax import tree as trees
from rain_jax.parallel.batch_sharding import ROWS, WHOLE, BatchSharding, fetch
from rain_jax.parallel.loops import while_any
from rain_jax.search import drafts
from rain_jax.search.rewind import rewound
from rain_jax.tree import Tree
from rain_jax.types import NO_NODE, NO_TOKEN, Array, Commit, SearchConfig
from rain_jax.types.results import Counters, Result

NOT_YET = object()  # what a queue answers that has no prompt now, but may have one later


class DecodeState(flax.struct.PyTreeNode):
  """The whole state of B responses being searched for.

  Attributes:
    tree: the search trees.
    model: the model's opaque state.
    keys: [B] one random key per prompt.
    active: bool[B] a response is being searched for in this slot.
    finish: int32[B] why the response ended, or RUNNING.
    inherited: int32[B] visits the root had when it became the root.
    leaf: int32[B] the leaf visited last, NO_NODE if it was discarded since.
    response: int32[B, R + L] committed tokens, then NO_TOKEN.
    response_length: int32[B] in tokens.
    tried: int32[B] drafts of the next segment so far.
    counters: see `Counters`.
  """

  tree: Tree
  model: Any
  keys: Array
  active: Array
  finish: Array
  inherited: Array
  leaf: Array
  response: Array
  response_length: Array
  tried: Array
  counters: Counters


def init(
  batch: int, model_state: Any, config: SearchConfig, embedding_size: int, max_response: int
) -> DecodeState:
  """A state with `batch` empty slots for responses of up to `max_response` tokens (R)."""
  zeros = jnp.zeros(batch, jnp.int32)
  one = trees.empty(config, embedding_size)
  state = DecodeState(
    tree=jax.tree.map(lambda a: jnp.broadcast_to(a, (batch,) + a.shape), one),
    model=model_state,
    keys=jax.random.split(jax.random.key(0), batch),
    active=jnp.zeros(batch, bool),
    finish=zeros,
    inherited=zeros,
    leaf=jnp.full(batch, NO_NODE, jnp.int32),
    response=jnp.full((batch, max_response + config.max_set_length), NO_TOKEN, jnp.int32),
    response_length=zeros,
    tried=zeros,
    counters=Counters(**{name: zeros for name in Counters.__dataclass_fields__}),
  )
  return jax.tree.map(jnp.copy, state)  # one buffer per array, so that each can be donated


def reset_slots(state: DecodeState, mask: Array, keys: Array, config: SearchConfig) -> DecodeState:
  """Begins new responses in the slots of `mask` bool[B], with random keys `keys` [B].

  The model's own state for these slots is the caller's to prepare.
  """
  B = mask.shape[0]
  one = trees.empty(config, state.tree.embedding.shape[-1])
  pick = lambda fresh, old: jnp.where(mask.reshape((B,) + (1,) * (old.ndim - 1)), fresh, old)
  return state.replace(
    tree=jax.tree.map(pick, one, state.tree),
    keys=pick(keys, state.keys),
    active=mask | state.active,
    finish=pick(types.RUNNING, state.finish),
    inherited=pick(0, state.inherited),
    leaf=pick(NO_NODE, state.leaf),
    response=pick(NO_TOKEN, state.response),
    response_length=pick(0, state.response_length),
    tried=pick(0, state.tried),
    counters=jax.tree.map(lambda count: pick(0, count), state.counters),
  )


def trusted(tree: Tree, config: SearchConfig) -> Array:
  """Whether the root's best child meets the thresholds of a move, bool[]; one tree."""
  best = trees.best_child(tree, tree.root)
  return (
    (best >= 0)
    & (tree.visits[best] > config.min_visits)
    & (tree.value[best] > config.value_threshold)
  )


def _must_commit(
  tree: Tree, inherited: Array, iterations: Array, full: Array, config: SearchConfig
) -> Array:
  """Whether a tree commits after a step, bool[] (RAIN, section 3.1)."""
  limit = jnp.maximum(config.max_iterations, inherited + config.extra_iterations)
  done = trusted(tree, config) | (tree.visits[tree.root] >= limit)
  return full | ((iterations > 0) & done)


@jax.named_scope("commit")
def commit(
  state: DecodeState, model: types.Model, params: Any, mask: Array, config: SearchConfig
) -> DecodeState:
  """Commits the best child of the root in the trees of `mask` bool[B].

  The child's tokens join the response, its subtree is kept, and the rest is discarded.
  A tree whose root has no child ends its response.
  """
  tree = state.tree
  at = lambda array, node: jax.vmap(lambda a, i: a[i])(array, jnp.maximum(node, 0))
  best = jax.vmap(trees.best_child)(tree, tree.root)
  stuck = mask & (best < 0)
  move = mask & (best >= 0)
  length = jnp.where(move, at(tree.length, best), 0)
  made = Commit(
    mask=move,
    page=at(tree.page, best),
    tokens=at(tree.tokens, best),
    length=length,
    finish=at(tree.finish, best),
  )
  finish = jnp.where(move, made.finish, jnp.where(stuck, types.EXHAUSTED, state.finish))
  tree = jax.vmap(lambda t, b, m: trees.reroot(t, b, config.root_prior, m))(tree, best, move)
  lost = move & (state.leaf >= 0) & ~at(tree.alive, state.leaf)
  counters = state.counters
  after = model.commit(params, state.model, made)
  types.check_state(after, state.model, "commit")
  return state.replace(
    tree=tree,
    model=after,
    active=state.active & (finish == types.RUNNING),
    finish=finish,
    inherited=jnp.where(move, at(tree.visits, best), state.inherited),
    leaf=jnp.where(lost, NO_NODE, state.leaf),
    response=_appended(state, made.tokens, length),
    response_length=state.response_length + length,
    counters=counters.replace(moves=counters.moves + move, rewinds=counters.rewinds + lost),
  )


def _appended(state: DecodeState, tokens: Array, length: Array) -> Array:
  """The responses with the first `length` int32[B] of tokens int32[B, T] after them."""
  places = jnp.arange(tokens.shape[-1])
  at = jnp.where(
    places < length[:, None], state.response_length[:, None] + places, state.response.shape[1]
  )
  return jax.vmap(lambda r, i, t: r.at[i].set(t, mode="drop"))(state.response, at, tokens)


def iterate(
  state: DecodeState, model: types.Model, params: Any, config: SearchConfig
) -> tuple[DecodeState, Array, search.StepInfo]:
  """The inner loop's step in every active tree: (state, due, info).

  `due` bool[B] says which trees have to commit before they go on, see `move`.
  """
  keys = jax.vmap(jax.random.fold_in)(state.keys, state.counters.steps)
  active = state.active
  tree, model_state, info = search.step(
    state.tree, model, params, state.model, keys, active, config
  )
  due = jax.vmap(lambda t, i, n, u: _must_commit(t, i, n, u, config))(
    tree, state.inherited, info.iterations, info.full
  )
  old = state.counters
  counters = old.replace(
    steps=old.steps + active,
    iterations=old.iterations + info.iterations,
    rewinds=old.rewinds + rewound(state.leaf, state.tree.root, info),
    early_commits=old.early_commits + (active & info.full),
    grows=old.grows + info.grows,
    joined=old.joined + info.joined,
    similarity_updates=old.similarity_updates + info.similarity_updates,
    duplicates=old.duplicates + info.duplicates,
    revisits=old.revisits + info.revisits,
  )
  state = state.replace(
    tree=tree,
    model=model_state,
    active=active & ~info.failed,
    finish=jnp.where(info.failed, types.FAILED, state.finish),
    leaf=jnp.where(info.leaf >= 0, info.leaf, state.leaf),
    counters=counters,
  )
  return state, due & active & ~info.failed, info


class _Moves(NamedTuple):
  """Commits on inherited statistics: the state, and the trees that go on, bool[B]."""

  state: DecodeState
  due: Array


def move(
  state: DecodeState, model: types.Model, params: Any, due: Array, config: SearchConfig
) -> DecodeState:
  """Commits in the trees of `due` bool[B], and on while `early_commit` trusts the next."""
  state = commit(state, model, params, due, config)
  if not config.early_commit:
    return state

  still_trusted = jax.vmap(lambda tree: trusted(tree, config))

  def again(at: _Moves) -> _Moves:
    state = at.state
    inherited = state.counters.inherited_commits + at.due
    state = state.replace(counters=state.counters.replace(inherited_commits=inherited))
    state = commit(state, model, params, at.due, config)
    return _Moves(state, at.due & state.active & still_trusted(state.tree))

  first = _Moves(state, due & state.active & still_trusted(state.tree))
  return while_any(lambda at: at.due, again, first).state


def step(state: DecodeState, model: types.Model, params: Any, config: SearchConfig) -> DecodeState:
  """One step of every active tree: the inner loop's step, then commits where they are due."""
  if config.mode == "segments":
    return _segment_step(state, cast(types.Drafter, model), params, config)
  state, due, _ = iterate(state, model, params, config)
  return move(state, model, params, due, config)


def _segment_step(
  state: DecodeState, model: types.Drafter, params: Any, config: SearchConfig
) -> DecodeState:
  """Some drafts more for every active response, and the best one committed or not."""
  keys, active = jax.vmap(jax.random.fold_in)(state.keys, state.counters.steps), state.active
  best, drafted = model.draft(params, state.model, active, keys)
  types.check_state(drafted, state.model, "draft")
  take, good, failed, tried = drafts.decide(best, state.tried, active, config)
  finish = jnp.where(failed, types.FAILED, jnp.where(take, best.finish, state.finish))
  length = jnp.where(take, best.length, 0)
  after = model.commit_draft(params, drafted, take)
  types.check_state(after, state.model, "commit_draft")
  old = state.counters
  return state.replace(
    model=after,
    active=active & (finish == types.RUNNING),
    finish=finish,
    response=_appended(state, best.tokens, length),
    response_length=state.response_length + length,
    tried=tried,
    counters=old.replace(
      steps=old.steps + active,
      moves=old.moves + take,
      drafts=old.drafts + active * config.draft_rows,
      kept_best=old.kept_best + (take & ~good),
    ),
  )


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
    on_progress: called with the state after each of those, once what ended was yielded.
    sharding: how the state lies over a mesh; None on one device.

  Yields:
    A `Result` for each prompt, in the order in which they end, and the state then.
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

  The queue may answer `NOT_YET`. Prompts in slots of which `dropped` is true give theirs up.
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
