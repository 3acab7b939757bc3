"""Recordings of scripted searches, and recordings made by hand."""

import collections
import dataclasses

import jax
import jax.numpy as jnp

from rain_jax import decode, types
from rain_jax.methods import recording
from rain_jax.search import tree as trees
from tests.helpers import scripted, serving


@dataclasses.dataclass(frozen=True)
class Drafting(scripted.TableModel):
  """Answers with a rollout, two tokens that tell the leaf's slot and depth."""

  def evaluate(self, params, state, request, keys):
    answer, state = super().evaluate(params, state, request, keys)
    tokens = jnp.stack([request.leaf_page, request.depth, jnp.full_like(request.depth, -1)], -1)
    return answer.replace(rollout=types.Rollout(tokens, request.finish)), state


def spell(before, ids):
  return "".join(f"<{i}>" for i in ids)


def record(params, prompts, config=serving.CONFIG):
  """Records prompts side by side: recorders, and per slot the tree after every step."""
  model = Drafting(config)
  state = decode.init(
    serving.BATCH, model.init(serving.BATCH), config, model.embedding_size, serving.LONGEST
  )
  state = decode.refill_slots(state, {slot: serving.key_of(slot) for slot in prompts}, config)
  state = state.replace(model=model.start(state.model, prompts))
  following = {s: recording.Recorder(config, spell, lambda ids: spell((), ids)) for s in prompts}
  recorders, after = dict(following), collections.defaultdict(list)
  while following:
    state, frames = recording.advance(state, model, params, config, following)
    for slot in frames:
      summary = trees.summary(jax.tree.map(lambda a: a[slot], state.tree))
      after[slot].append((len(recorders[slot].frames) - 1, summary))
      if not state.active[slot]:
        del following[slot]
  return recorders, after, state


def made_recording(nodes, frames, **more):
  return recording.Recording(
    **{
      "prompt": "a prompt",
      "response": "a response",
      "finish": "stop",
      "verdict": 1.0,
      "preference": "harmless",
      "counters": {"moves": 2},
      "search": {},
      "nodes": nodes,
      "frames": frames,
    }
    | more
  )
