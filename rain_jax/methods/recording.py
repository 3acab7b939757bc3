"""A response's search, step by step: an exact record, for pictures and for data.

Recording stays out of the hot path: it drives the same pure functions as
`decode.advance`, one step per call, and reads the trees between iteration and commit,
when nothing is discarded yet. Node ids of the arrays are used again after a commit;
those of a `Recording` never are.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import decode, types
from rain_jax.types import Array, SearchConfig

SEARCH, COMMIT, END = "search", "commit", "end"  # kinds of frames
DRAFT, REWIND = "draft", "rewind"  # those of the adaptive mode
_READ = (
  "root",
  "alive",
  "parent",
  "depth",
  "tokens",
  "length",
  "finish",
  "visit_weight",
  "visits",
  "value",
  "prior",
  "page",
)


class Numbers(NamedTuple):
  """What the tree knows of a node, see `rain_jax.search.tree.Tree`."""

  visit_weight: float
  visits: int
  value: float
  prior: float


@dataclasses.dataclass
class Node:
  """A token set, from its first appearance on; frames are places in `Recording.frames`.

  Attributes:
    parent: its parent's place in `Recording.nodes`, -1 for the empty response.
    depth: token sets from the start of the response to the node.
    tokens: its token ids.
    text: its text as it continues its parent's.
    finish: why the text ends here, a name of `types.FINISH_REASONS`.
    born: frame in which it appeared.
    died: frame of the commit, or of the rewind, that discarded it, or None.
    committed: frame of its own commit, or None.
  """

  parent: int
  depth: int
  tokens: list[int]
  text: str
  finish: str
  born: int
  died: int | None = None
  committed: int | None = None


@dataclasses.dataclass
class Visit:
  """One iteration's leaf.

  Attributes:
    node: the leaf.
    verdict: on the text up to the rollout's end, in [-1, 1].
    rollout: text after the leaf.
    finish: why the text ends after the rollout; "running" if it does not.
    response: where it ends, the whole response's text.
  """

  node: int
  verdict: float
  rollout: str
  finish: str
  response: str | None = None


@dataclasses.dataclass
class Frame:
  """What one step did, or one commit after it.

  Attributes:
    step: number of the step.
    kind: SEARCH, COMMIT, or END for a search that had nothing left to commit; DRAFT for drafts of a
      segment, the best of which is a visit's rollout, and REWIND where drafts are taken back.
    visits: leaves visited; one, unless `SearchConfig.leaves` says otherwise.
    grown: nodes that grew a child (dynamic node addition).
    changed: [node, *`Numbers`] of nodes that are new or whose numbers changed.
    similar: [visited, sibling, similarity] of siblings that shared a verdict.
    rewound: the leaf from which the search went back, or the end of what was taken back, or None.
    node: the node committed, or the one that the response went back to, or None.
    reason: of a commit: "trusted", "limit" (of iterations), "room" (a capacity ran out),
      "inherited" (`SearchConfig.early_commit`) or "draft".
  """

  step: int
  kind: str
  visits: list[Visit] = dataclasses.field(default_factory=list)
  grown: list[int] = dataclasses.field(default_factory=list)
  changed: list[list] = dataclasses.field(default_factory=list)
  similar: list[list] = dataclasses.field(default_factory=list)
  rewound: int | None = None
  node: int | None = None
  reason: str = ""


@dataclasses.dataclass
class Recording:
  """The whole search of one response.

  Attributes:
    prompt: what the user said.
    response: the text that was committed.
    finish: why it ended.
    verdict: the model's own on the whole response.
    preference: what it was aligned with, see `SessionConfig.aligned_with`.
    counters: work done.
    search: the search's hyperparameters.
    nodes: every token set the search ever proposed, parents before children.
    frames: what happened, in order.
  """

  prompt: str
  response: str
  finish: str
  verdict: float | None
  preference: str
  counters: dict[str, int]
  search: dict[str, Any]
  nodes: list[Node]
  frames: list[Frame]

  def as_json(self) -> dict[str, Any]:
    """Plain values."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> "Recording":
    """What `as_json` gave; KeyError or TypeError if it is something else."""
    frames = [
      Frame(**{**f, "visits": [Visit(**visit) for visit in f["visits"]]}) for f in value["frames"]
    ]
    return cls(**{**value, "nodes": [Node(**node) for node in value["nodes"]], "frames": frames})

  def numbers(self, frame: int) -> dict[int, Numbers]:
    """The numbers of the nodes in the tree after a frame; negative frames from the end.

    Committed token sets above the root are no longer in the tree.
    """
    last = range(len(self.frames))[frame]
    known: dict[int, Numbers] = {}
    root = 0
    for one in self.frames[: last + 1]:
      known |= {node: Numbers(*numbers) for node, *numbers in one.changed}
      root = one.node if one.node is not None else root
    above = self.path(root)[:-1]

    def gone(node: int) -> bool:
      died = self.nodes[node].died
      return died is not None and died <= last

    return {node: one for node, one in known.items() if node not in above and not gone(node)}

  def path(self, node: int) -> list[int]:
    """Nodes from the empty response to `node`, both included."""
    return path(self.nodes, node)


def path(nodes: Sequence[Node], node: int) -> list[int]:
  """Nodes from the empty response to `node`, both included."""
  found = [node]
  while nodes[found[-1]].parent >= 0:
    found.append(nodes[found[-1]].parent)
  return found[::-1]


class Recorder:
  """Follows the search in one slot.

  Args:
    config: the search's hyperparameters.
    piece: text of tokens (second) as they continue others (first).
    whole: text of a whole response's tokens.
  """

  def __init__(
    self,
    config: SearchConfig,
    piece: Callable[[Sequence[int], Sequence[int]], str],
    whole: Callable[[Sequence[int]], str],
  ):
    self.config, self._piece, self._whole = config, piece, whole
    self.nodes = [Node(-1, 0, [], "", types.FINISH_REASONS[types.RUNNING], 0)]
    self.frames: list[Frame] = []
    self._ids = {0: 0}  # id in the arrays -> place in `nodes`
    self._root = 0
    self._leaf: int | None = None  # visited last, unless discarded since
    self._numbers: dict[int, Numbers] = {}

  def tokens(self, node: int) -> list[int]:
    """Token ids from the start of the response to the end of `node`."""
    return [token for one in self._path(node) for token in self.nodes[one].tokens]

  def searched(
    self, step: int, tree: Mapping[str, np.ndarray], seen: Mapping[str, np.ndarray]
  ) -> Frame:
    """Notes an iteration; `tree` and `seen` are this slot's arrays, see `_iterate`."""
    frame = Frame(step, SEARCH)
    before = self._numbers
    self._add_nodes(tree)
    frame.changed = self._changed(tree)
    by_page = {int(tree["page"][i]): node for i, node in self._ids.items() if tree["page"][i] >= 0}
    for w, mode in enumerate(seen["mode"]):
      if mode == types.GROW:
        frame.grown.append(by_page[int(seen["leaf_page"][w])])
      elif mode == types.VISIT:
        frame.visits.append(self._visit(by_page[int(seen["leaf_page"][w])], seen, w))
    if frame.visits:
      leaf = frame.visits[-1].node
      onward = self._leaf is None or self._leaf == self._root or self._leaf in self._path(leaf)
      frame.rewound = None if onward else self._leaf
      self._leaf = leaf
    frame.similar = self._similar(frame, before)
    self.frames.append(frame)
    return frame

  def moved(self, step: int, tree: Mapping[str, np.ndarray], full: bool) -> list[Frame]:
    """Notes the commits after an iteration; one without a new root ended the response."""
    root = self._ids[int(tree["root"])]
    if root == self._root:
      self.frames.append(Frame(step, END))
      return self.frames[-1:]
    moves = [node for node in self._path(root) if node not in self._path(self._root)]
    frames: list[Frame] = []
    for node in moves:
      best = self._numbers[node]
      trusted = best.visits > self.config.min_visits and best.value > self.config.value_threshold
      first = "room" if full else "trusted" if trusted else "limit"
      frame = Frame(step, COMMIT, node=node, reason="inherited" if frames else first)
      place = len(self.frames)
      self.nodes[node].committed = place
      for other in self._ids.values():
        kept = node in self._path(other) or other in self._path(node)
        if not kept and self.nodes[other].died is None:
          self.nodes[other].died = place
      if self._leaf is not None and self.nodes[self._leaf].died == place:
        frame.rewound, self._leaf = self._leaf, None
      self.frames.append(frame)
      frames.append(frame)
    self._root = root
    self._ids = {i: node for i, node in self._ids.items() if tree["alive"][i]}
    self._numbers = {i: one for i, one in self._numbers.items() if i in self._ids.values()}
    frames[-1].changed = self._changed(tree)
    return frames

  def _path(self, node: int) -> list[int]:
    return path(self.nodes, node)

  def _add_nodes(self, tree: Mapping[str, np.ndarray]) -> None:
    new = [int(i) for i in np.flatnonzero(tree["alive"]) if int(i) not in self._ids]
    # A step adds children to nodes that were there before it (and were visited in it).
    for i in new:
      parent = self._ids[int(tree["parent"][i])]
      tokens = tree["tokens"][i, : tree["length"][i]].tolist()
      text = self._piece(self.tokens(parent), tokens)
      finish = types.FINISH_REASONS[tree["finish"][i]]
      self.nodes.append(Node(parent, int(tree["depth"][i]), tokens, text, finish, len(self.frames)))
      self._ids[i] = len(self.nodes) - 1

  def _changed(self, tree: Mapping[str, np.ndarray]) -> list[list]:
    now = {
      node: Numbers(
        visit_weight=float(tree["visit_weight"][i]),
        visits=int(tree["visits"][i]),
        value=float(tree["value"][i]),
        prior=float(tree["prior"][i]),
      )
      for i, node in self._ids.items()
    }
    changed = [[node, *one] for node, one in sorted(now.items()) if self._numbers.get(node) != one]
    self._numbers = now
    return changed

  def _visit(self, node: int, seen: Mapping[str, np.ndarray], w: int) -> Visit:
    before = self.tokens(node)
    rollout = [int(t) for t in seen["rollout"][w] if t >= 0]
    finish = int(seen["finish"][w])
    return Visit(
      node=node,
      verdict=float(seen["value"][w]),
      rollout=self._piece(before, rollout) if rollout else "",
      finish=types.FINISH_REASONS[finish],
      response=self._whole(before + rollout) if finish != types.RUNNING else None,
    )

  def _similar(self, frame: Frame, before: Mapping[int, Numbers]) -> list[list]:
    """Siblings whose visit weight grew by a share: [on the path, sibling, similarity]."""
    on_path = {node for visit in frame.visits for node in self._path(visit.node)}
    of_parent = {self.nodes[node].parent: node for node in on_path}
    return [
      [
        of_parent[self.nodes[node].parent],
        node,
        (weight - before[node].visit_weight) / self.config.similarity_weight,
      ]
      for node, weight, visits, _, _ in frame.changed
      if node in before and weight > before[node].visit_weight and visits == before[node].visits
    ]


class _Seen(NamedTuple):
  """What the model was asked in a step, and what it answered, for the leaves of each tree.

  mode, leaf_page, value, finish: [B, W]; finish of the text after the rollout.
  rollout: int32[B, W, R] tokens, then NO_TOKEN; R is 0 for a model without rollouts.
  """

  mode: Array
  leaf_page: Array
  value: Array
  rollout: Array
  finish: Array


@functools.partial(jax.jit, static_argnames=("model", "config"), donate_argnames="state")
def _iterate(
  state: decode.DecodeState,
  model: types.Model,
  params: Any,
  config: SearchConfig,
  active: Array | None = None,
) -> tuple[decode.DecodeState, Array, Array, _Seen]:
  """`decode.iterate`: (state, due, full, seen)."""
  state, due, info = decode.iterate(state, model, params, config, active)
  asked, answer = info.request, info.answer
  none = types.Rollout(jnp.zeros(asked.mode.shape + (0,), jnp.int32), asked.finish)
  rollout = none if answer.rollout is None else answer.rollout
  seen = _Seen(asked.mode, asked.leaf_page, answer.value, rollout.tokens, rollout.finish)
  return state, due, info.full, seen


_move = jax.jit(decode.move, static_argnames=("model", "config"), donate_argnames="state")


def advance(
  state: decode.DecodeState,
  model: types.Model,
  params: Any,
  config: SearchConfig,
  recorders: Mapping[int, Recorder],
) -> tuple[decode.DecodeState, dict[int, list[Frame]]]:
  """One step of a batch, as `decode.advance` does it, and its frames by slot.

  Args:
    state: of the batch.
    model: the callables.
    params: handed to the model.
    config: the search's hyperparameters.
    recorders: one for each slot that is followed; its response must not have ended.
  """
  steps = np.array(state.counters.steps)
  state, due, full, frames = searched(state, model, params, config, recorders)
  if not due.any():
    return state, frames
  state = _move(state, model, params, due, config)
  for slot, tree in trees_of(state, [slot for slot in recorders if due[slot]]).items():
    frames[slot] += recorders[slot].moved(int(steps[slot]), tree, bool(full[slot]))
  return state, frames


def searched(
  state: decode.DecodeState,
  model: types.Model,
  params: Any,
  config: SearchConfig,
  recorders: Mapping[int, Recorder],
  active: np.ndarray | None = None,
) -> tuple[decode.DecodeState, np.ndarray, np.ndarray, dict[int, list[Frame]]]:
  """`decode.iterate`, watched: the state, which trees are due and which are full, and the frames."""
  steps = np.array(state.counters.steps)
  state, due, full, seen = _iterate(state, model, params, config, active)
  # Copies: the buffers are donated to what comes next.
  host = {name: np.array(array) for name, array in seen._asdict().items()}
  frames = {
    slot: [recorders[slot].searched(int(steps[slot]), tree, {n: a[slot] for n, a in host.items()})]
    for slot, tree in trees_of(state, recorders).items()
  }
  return state, np.array(due), np.array(full), frames


def trees_of(state: decode.DecodeState, slots: Iterable[int]) -> dict[int, dict[str, np.ndarray]]:
  """What a `Recorder` reads of the trees in some slots, copied."""
  trees = {name: np.array(getattr(state.tree, name)) for name in _READ}
  return {slot: {name: array[slot] for name, array in trees.items()} for slot in slots}
