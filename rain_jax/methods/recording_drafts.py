"""Recordings of the adaptive mode: drafts, what is taken back, and the searches between them."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np

from rain_jax import decode, types
from rain_jax.decode import drafting
from rain_jax.methods import recording
from rain_jax.methods.recording import COMMIT, DRAFT, REWIND, Frame, Node, Visit
from rain_jax.search.drafts import Drafts
from rain_jax.types import Array, SearchConfig


class Recorder(recording.Recorder):
  """Follows one response; a search's tree hangs on the node that its root stands for."""

  def drafted(
    self, step: int, tokens: Sequence[int], finish: int, margin: float, taken: bool
  ) -> list[Frame]:
    """Notes a round of drafts, the best of which has these tokens, and its commit if it was `taken`."""
    frames = [Frame(step, DRAFT)]
    before, name = self.tokens(self._root), types.FINISH_REASONS[finish]
    text = self._piece(before, tokens) if tokens else ""
    if np.isfinite(margin):  # there was one that had not been taken back before
      whole = self._whole([*before, *tokens]) if finish != types.RUNNING else None
      frames[0].visits.append(Visit(self._root, margin, text, name, whole))
    self.frames.append(frames[0])
    if taken:
      self._discard(len(self.frames))
      place, depth = len(self.nodes), self.nodes[self._root].depth + 1
      self.nodes.append(
        Node(
          self._root, depth, list(tokens), text, name, len(self.frames) - 1, None, len(self.frames)
        )
      )
      frames.append(Frame(step, COMMIT, node=place, reason="draft"))
      self.frames.append(frames[1])
      self._plant(place)
    return frames

  def taken_back(self, step: int, length: int) -> Frame:
    """Notes that the response went back to its first `length` tokens."""
    left, gone = self._root, []
    while len(self.tokens(left)) > length:
      gone.append(left)
      left = self.nodes[left].parent
    self._discard(len(self.frames))
    for node in gone:
      self.nodes[node].died = len(self.frames)
    frame = Frame(step, REWIND, node=left, rewound=self._root)
    self.frames.append(frame)
    self._plant(left)
    return frame

  def _discard(self, frame: int) -> None:
    """The tree below the root dies."""
    for node in self._ids.values():
      if node != self._root and self.nodes[node].died is None:
        self.nodes[node].died = frame

  def _plant(self, node: int) -> None:
    """A fresh tree, whose root is the array's first node, begins at `node`."""
    self._root, self._ids, self._leaf, self._numbers = node, {0: node}, None, {}


@functools.partial(jax.jit, static_argnames=("model", "config"), donate_argnames="state")
def _draft(
  state: decode.DecodeState, model: types.Reviser, params: Any, mask: Array, config: SearchConfig
) -> tuple[decode.DecodeState, Drafts, Array]:
  return drafting.draft_round(state, model, params, mask, config)


_after_search = jax.jit(
  drafting.after_search, static_argnames=("model", "config"), donate_argnames="state"
)
_rewind = jax.jit(drafting.rewind, static_argnames=("model", "config"), donate_argnames="state")


def advance(
  state: decode.DecodeState,
  model: types.Model,
  params: Any,
  config: SearchConfig,
  recorders: Mapping[int, Recorder],
) -> tuple[decode.DecodeState, dict[int, list[Frame]]]:
  """One step of a batch in the adaptive mode, and its frames by slot; see `recording.advance`."""
  model = cast(types.Reviser, model)
  assert state.revocable is not None
  steps, active = np.array(state.counters.steps), np.array(state.active)
  searching = active & np.array(state.revocable.searching)
  frames: dict[int, list[Frame]] = {slot: [] for slot in recorders}
  back = np.zeros_like(active)
  if (active & ~searching).any():
    state, made, left = _draft(state, model, params, active & ~searching, config)
    made = jax.tree.map(np.array, made)
    back |= np.array(left)
    for slot, recorder in recorders.items():
      if active[slot] and not searching[slot]:
        best = jax.tree.map(lambda a: a[slot], made.best)
        tokens = best.tokens[: best.length].tolist()
        frames[slot] += recorder.drafted(
          int(steps[slot]), tokens, int(best.finish), float(best.margin), bool(made.good[slot])
        )
  if searching.any():
    following = {slot: one for slot, one in recorders.items() if searching[slot]}
    state, due, full, found = recording.searched(state, model, params, config, following, searching)
    frames |= found
    state, given_up = _after_search(state, due, model, params, config)
    given_up = np.array(given_up)
    back |= given_up
    moved = [slot for slot in following if due[slot] and not given_up[slot]]
    for slot, tree in recording.trees_of(state, moved).items():
      frames[slot] += following[slot].moved(int(steps[slot]), tree, bool(full[slot]))
  if back.any():
    state = _rewind(state, model, params, back, config)
    length = np.array(state.response_length)
    for slot, recorder in recorders.items():
      if back[slot]:
        frames[slot].append(recorder.taken_back(int(steps[slot]), int(length[slot])))
  return state, frames
