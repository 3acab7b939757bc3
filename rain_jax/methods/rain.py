"""RAIN over a session's prompts: searches side by side, each in its slot."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from rain_jax import decode, types
from rain_jax.methods import recording, recording_drafts, thoughts
from rain_jax.methods.ahead import Program
from rain_jax.methods.responses import responded, review_program, work_of
from rain_jax.methods.session import Query, Response, Session
from rain_jax.parallel import workers
from rain_jax.parallel.batch_sharding import ROWS, WHOLE, BatchSharding, fetch
from rain_jax.policy.language_model import LanguageModel
from rain_jax.policy.params import Params
from rain_jax.text import encoding

T = TypeVar("T")
STEPS = 16  # at most, between two looks at the slots
STEPS_SHARDED = (
  4  # where shards know nothing of each other, and a slot that has ended waits so long
)


@dataclasses.dataclass(frozen=True)
class SearchStep:
  """A search that is watched, one step further.

  Attributes:
    query: the prompt.
    nodes: every token set so far; a list that goes on growing.
    frames: what happened in this step.
    response: the response, once it has ended.
    revocable: committed text may be taken back, until the response ends.
  """

  query: Query
  nodes: list[recording.Node]
  frames: list[recording.Frame]
  response: Response | None = None
  revocable: bool = False


@dataclasses.dataclass(frozen=True)
class BatchProgress:
  """What a batch has done so far for the prompts that it is at.

  Attributes:
    worker: which batch, of those that run side by side.
    slots: prompts it has room for.
    busy: prompts it is at.
    response_tokens: committed for them; of best-of-N, those of the best samples so far.
    tokens_forwarded: by the model, for them.
    rewinds: of their searches, and committed drafts that were taken back.
    samples: whole responses drawn for them, of a method that chooses among several.
    samples_wanted: how many they get.
  """

  worker: int
  slots: int
  busy: int
  response_tokens: int
  tokens_forwarded: int
  rewinds: int
  samples: int = 0
  samples_wanted: int = 0


@thoughts.thinking
def rain(
  session: Session,
  seed: int,
  skip: frozenset[str] = frozenset(),
  on_progress: Callable[[BatchProgress], None] | None = None,
) -> Iterator[Response]:
  """Answers the session's prompts by RAIN, in the order in which they end.

  Args:
    session: with the prompts.
    seed: of the run; a prompt's key is folded from it and the prompt's id.
    skip: ids of prompts to leave out.
    on_progress: called every few steps.
  """

  def look(worker, ended, state):
    return [searched(session, result, state) for result in ended], _progress(worker, state)

  for responses, progress in searches(session, seed, look, skip):
    yield from responses
    if on_progress:
      on_progress(progress)


def searches(
  session: Session,
  seed: int,
  look: Callable[[int, list[decode.Result], decode.DecodeState], T],
  skip: frozenset[str] = frozenset(),
) -> Iterator[T]:
  """The searches of `rain`, in batches side by side that take up prompts as slots come free.

  Args:
    session: with the prompts.
    seed: of the run.
    look: is told every few steps of one batch: which it is, what has ended in it, and its state.
    skip: ids of prompts to leave out.

  Yields:
    What `look` returns.
  """
  queries = [q for q in session.queries if q.record.id not in skip]
  if not queries:
    return
  items = workers.Shared((q, q.key(seed), q) for q in queries)
  count, slots = session.workers
  looking = threading.Lock()

  def batch(worker: int) -> Iterator[T]:
    for ended, _, state in rounds(session, slots, items):
      with looking:  # or two batches might compile the same program
        found = look(worker, ended, state)
      yield found

  with contextlib.closing(workers.merged([batch(worker) for worker in range(count)])) as found:
    yield from found


def rounds(
  session: Session,
  slots: int,
  items: Iterable[Any],
  steps: int | None = None,
  dropped: Callable[[Any], bool] = lambda index: False,
) -> Iterator[tuple[list[decode.Result], dict[int, Any], decode.DecodeState]]:
  """One batch of searches, see `decode.rounds`, which can be fed while it runs.

  Args:
    session: gives everything but the prompts.
    slots: of the batch.
    items: (index, random key, query) of each prompt; of that session, or `serving` made the query.
    steps: between two looks at the slots, at most.
    dropped: whether nobody waits for the answer to the prompt of that index any more.
  """
  for program in _programs(session):
    session.await_program(program)
  return decode.rounds(
    _empty_slots(session, slots),
    session.lm,
    session.params,
    session.config.search,
    items,
    functools.partial(_read_prompts, session),
    sharding=session.sharding,
    max_steps=steps or _max_steps(session),
    dropped=dropped,
  )


def _max_steps(session: Session) -> int:
  return STEPS if session.shards == 1 else STEPS_SHARDED


def committed(session: Session, state: decode.DecodeState) -> list[list[int]]:
  """The tokens in each slot that are final: those that the adaptive mode may take back are not."""
  response, final = fetch((state.response, state.response_length))
  if state.revocable is not None:
    begin, taken_back = fetch((state.revocable.begin, state.counters.taken_back))
    left = session.config.search.max_rewinds - taken_back
    revocable = (begin >= 0) & (np.arange(begin.shape[1]) < left[:, None])
    oldest = np.where(revocable, begin, response.shape[1]).min(axis=1, initial=response.shape[1])
    final = np.minimum(final, oldest)
  return [row[:count].tolist() for row, count in zip(response, final)]


def _progress(worker: int, state: decode.DecodeState) -> BatchProgress:
  counters = state.counters
  active, length, forwarded, rewinds, taken_back = fetch(
    (
      state.active,
      state.response_length,
      state.model.usage.tokens,
      counters.rewinds,
      counters.taken_back,
    )
  )
  of_active = lambda counts: int(counts[active].sum())
  return BatchProgress(
    worker,
    active.size,
    of_active(active),
    of_active(length),
    of_active(forwarded),
    of_active(rewinds) + of_active(taken_back),
  )


def watch(
  session: Session,
  seed: int,
  skip: frozenset[str] = frozenset(),
  on_progress: Callable[[BatchProgress], None] | None = None,
) -> Iterator[SearchStep]:
  """As `rain`, step by step: everything that the searches do, then their responses.

  The responses are those of `rain`. Slower: the host reads every tree in every step,
  and the next batch waits for the last response of the one before. `on_progress` is called
  after every step of a batch.
  """
  session_config = session.config
  revocable = session_config.search.mode == "adaptive"
  advance: Any = recording_drafts.advance if revocable else recording.advance
  everyone = frozenset(query.record.id for query in session.queries)
  for queries in list(session.batches(skip)):
    by_id = {query.record.id: query for query in queries}
    session, lost = thoughts.think(session, seed, everyone - by_id.keys())
    for one in lost:
      yield SearchStep(by_id[one.record.id], [], [], one)
    held = dict(enumerate(q for q in session.queries if q.record.id in by_id))
    if not held:
      continue
    keys = {slot: query.key(seed) for slot, query in held.items()}
    state = decode.refill_slots(_empty_slots(session, session.slots), keys, session_config.search)
    state = _read_prompts(session, state, held)
    recorders = {slot: _recorder(session, query) for slot, query in held.items()}
    while recorders:
      state, frames = advance(state, session.lm, session.params, session_config.search, recorders)
      active = np.asarray(state.active)
      for slot, new in frames.items():
        recorder, response = recorders[slot], None
        if not active[slot]:
          response = searched(session, decode.result(state, slot, held[slot]), state)
          response = _with_recording(session, response, recorders.pop(slot))
        yield SearchStep(held[slot], recorder.nodes, new, response, revocable)
      if on_progress:
        on_progress(_progress(0, state))


def programs(session: Session) -> list[Program]:
  """The programs of `rain` with the session's hyperparameters."""
  (_, slots), sharding = session.workers, session.sharding
  places: Any = _places(session) if sharding is None else sharding.shardings

  def state() -> Any:
    shapes = jax.eval_shape(lambda: session.empty(slots))
    if sharding is None:
      return jax.tree.map(lambda a: _placed(a, places), shapes)
    return jax.tree.map(_placed, shapes, places)

  def begin() -> jax.stages.Lowered:
    first = [0, *[None] * (session.shards - 1)]
    return begin_prompts.lower(*_beginning(session, state(), {0: session.queries[0]}, first))

  def steps() -> jax.stages.Lowered:
    search, most = session.config.search, _max_steps(session)
    return decode.advance.lower(
      state(), session.lm, session.params, search, most, sharding=sharding
    )

  searching, reading = _programs(session)
  return [Program(searching, steps), Program(reading, begin), review_program(session)]


def _programs(session: Session) -> tuple[str, str]:
  """The names of the programs that search and that read prompts."""
  mode = session.config.search.mode
  return f"the search ({mode})", f"the reading of prompts ({mode})"


def _placed(shape: Any, place: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)


def _empty_slots(session: Session, slots: int) -> decode.DecodeState:
  """A batch of slots for searches, in their places.

  They are bound to those places from the first step on, as all later states are by the
  weights: a state that is not yet bound would have every program compiled once more.
  """
  return _emptying(session.lm, slots, _places(session))(session.params)


def _places(session: Session) -> BatchSharding | jax.sharding.Sharding:
  (weight, *_) = jax.tree.leaves(session.params["model"])
  return session.sharding or weight.sharding


@functools.lru_cache(maxsize=16)
def _emptying(
  lm: LanguageModel, slots: int, place: BatchSharding | jax.sharding.Sharding
) -> Callable[[Params], decode.DecodeState]:
  """Makes empty slots; the program is compiled once."""
  places = place.shardings if isinstance(place, BatchSharding) else place
  return jax.jit(functools.partial(lm.empty_slots, slots), out_shardings=places)


def _read_prompts(
  session: Session, state: decode.DecodeState, fresh: dict[int, Query]
) -> decode.DecodeState:
  """Puts prompts, by slot, into the model's state, one in each shard at a time."""
  share = state.active.shape[0] // session.shards
  waiting = [[s for s in fresh if s // share == shard] for shard in range(session.shards)]
  while any(waiting):
    now = [slots.pop(0) if slots else None for slots in waiting]
    state = begin_prompts(*_beginning(session, state, fresh, now))
  return state


def _beginning(
  session: Session, state: Any, fresh: dict[int, Query], now: Sequence[int | None]
) -> tuple[Any, ...]:
  """What `begin_prompts` is called with, for one slot of each shard or None."""
  share = state.active.shape[0] // session.shards
  slot = np.array([share if s is None else s % share for s in now], np.int32)
  queries = [None if s is None else fresh[s] for s in now]
  prompts = session.prompts(queries, "proposing"), session.prompts(queries, "evaluating")
  return state, session.lm, session.params, slot, *prompts, session.sharding


def searched(session: Session, result: decode.Result, state: decode.DecodeState) -> Response:
  """A search's response, with the model's own verdict on it and all the work done for it."""
  finish, work = types.FINISH_REASONS.index(result.finish), search_work(result, state)
  return responded(session, [result.index], [result.tokens], [finish], [work])[0]


def search_work(result: decode.Result, state: decode.DecodeState) -> dict[str, int]:
  """Counters of all the work done for a search."""
  usage = fetch(state.model.usage)
  return {
    **result.counters,
    **work_of(usage.calls[result.slot], usage.tokens[result.slot]),
    "verdicts_read": int(usage.verdicts_read[result.slot]),
    "verdicts_remembered": int(usage.verdicts_remembered[result.slot]),
  }


def _recorder(session: Session, query: Query) -> recording.Recorder:
  # A few tokens before a piece are enough to tell how it continues them.
  piece = lambda before, ids: encoding.decode_response(
    session.loaded.tokenizer, (query.proposing + list(before))[-16:], ids
  )
  search = session.config.search
  kind = recording_drafts.Recorder if search.mode == "adaptive" else recording.Recorder
  return kind(search, piece, lambda ids: session.decoded(query, ids))


def _with_recording(session: Session, response: Response, recorder: recording.Recorder) -> Response:
  whole = recording.Recording(
    prompt=response.record.prompt,
    response=response.text,
    finish=response.finish_reason,
    verdict=response.verdict,
    preference=session.aligned_with,
    counters=response.counters,
    search=dataclasses.asdict(session.config.search),
    nodes=recorder.nodes,
    frames=recorder.frames,
  )
  return dataclasses.replace(response, recording=whole)


@functools.partial(jax.jit, static_argnames=("lm", "sharding"), donate_argnames="state")
def begin_prompts(state, lm, params, slot, proposing, evaluating, sharding):
  """Begins one prompt in each shard; rows of no shard's slot begin nothing."""

  def own(state, params, slot, proposing, evaluating):
    slot, proposing, evaluating = jax.tree.map(lambda a: a[0], (slot, proposing, evaluating))
    return state.replace(model=lm.start(params, state.model, slot, proposing, evaluating))

  if sharding is not None:
    own = sharding.map(own, WHOLE, ROWS, ROWS, ROWS)
  return own(state, params, slot, proposing, evaluating)
