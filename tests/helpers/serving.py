"""Scripted prompts served by the outer loop: a model that keeps its keys, and what its slots held."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import decode, types
from tests.helpers import scripted

BATCH, LONGEST = 4, 20
CONFIG = types.SearchConfig(
  set_lengths=(1, 2, 3),
  num_candidates=4,
  max_children=6,
  min_visits=3,
  value_threshold=0.6,
  max_iterations=16,
  extra_iterations=6,
  max_nodes=160,
  max_visited=40,
  max_path=10,
)
PROMPTS = scripted.make_prompts(13, seed=11, shortest=2, longest=LONGEST)


@dataclasses.dataclass(frozen=True)
class Watched(scripted.TableModel):
  """Keeps the key of each tree's last step in the state."""

  def init(self, batch):
    return super().init(batch) | {"key": jnp.zeros((batch, 2), jnp.uint32)}

  def evaluate(self, params, state, request, keys):
    busy = (request.mode != types.IDLE).any(-1)
    key = jnp.where(busy[:, None], jax.random.key_data(keys), state["key"])
    return super().evaluate(params, {**state, "key": key}, request, keys)


MODEL = Watched(CONFIG)


def key_of(index):
  return jax.random.fold_in(jax.random.key(0), index)


def fresh(batch=BATCH):
  return decode.init(batch, MODEL.init(batch), CONFIG, MODEL.embedding_size, LONGEST)


def serve(params, order, prompts=PROMPTS, state=None, **more):
  """`decode.serve` over prompts by number: the results, each with its slot's arrays."""
  begun = []

  def start(state, new):
    begun.append(dict(new))
    return state.replace(model=MODEL.start(state.model, new))

  queue = ((i, key_of(i), prompts[i]) for i in order)
  served = decode.serve(state or fresh(), MODEL, params, CONFIG, queue, start, **more)
  found = [(result, in_slot(state, result.slot)) for result, state in served]
  return found, begun


def in_slot(state, slot):
  """Everything a slot holds, on the host; keys as numbers."""
  state = state.replace(keys=jax.random.key_data(state.keys))
  return jax.tree.map(lambda array: np.array(array[slot]), state)


def shares_of_useful_slots(params, state, count, max_steps, sharding=None):
  """Lengths that differ tenfold: shares of slot-iterations with work in them.

  Returns:
    That of `decode.serve`, and that of batches in which all wait for the longest response.
  """
  batch = state.active.shape[0]
  prompts = scripted.make_prompts(count, seed=5, shortest=2, longest=LONGEST)
  before, spent = np.zeros(batch, int), [0, 0]
  fresh_slots = []

  def start(state, new):
    fresh_slots.extend(new)
    state = state.replace(model=MODEL.start(state.model, new))
    return state if sharding is None else jax.device_put(state, sharding.shardings)

  def watch(state):
    before[fresh_slots] = 0
    fresh_slots.clear()
    steps = np.array(state.counters.steps)
    done = steps - before
    spent[0] += done.sum()
    spent[1] += batch * done.max()  # whoever was busy all the time made every step
    before[:] = steps

  queue = ((i, key_of(i), prompts[i]) for i in range(len(prompts)))
  served = decode.serve(
    state,
    MODEL,
    params,
    CONFIG,
    queue,
    start,
    max_steps=max_steps,
    on_progress=watch,
    sharding=sharding,
  )
  results = sorted((result for result, _ in served), key=lambda r: r.index)
  lengths = [len(result.tokens) for result in results]
  assert max(lengths) >= 10 * min(lengths)
  steps = np.array([result.counters["steps"] for result in results])
  assert spent[0] == steps.sum()
  rounds = [steps[i : i + batch] for i in range(0, count, batch)]
  useful, waiting = spent[0] / spent[1], steps.sum() / (batch * sum(map(max, rounds)))
  print(
    f"{batch} slots, {steps.min()} to {steps.max()} steps per response: {useful:.1%} of"
    f" slot-iterations useful, {waiting:.1%} if all waited"
  )
  return useful, waiting
