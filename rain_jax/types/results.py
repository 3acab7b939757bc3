"""What a search did for a prompt: counts in the loop, and the finished response on the host."""

import dataclasses
from typing import Any

import flax

from rain_jax.types import Array


class Counters(flax.struct.PyTreeNode):
  """What was done for each prompt, int32[B] each.

  Attributes:
    steps: steps of the loop the prompt took part in.
    iterations: leaves selected, rolled out, evaluated and backed up.
    moves: token sets committed.
    rewinds: times the search left a path and went on from an earlier node.
    early_commits: moves made because a capacity ran out.
    inherited_commits: moves made on inherited statistics alone (`early_commit`).
    grows: dynamic node additions that drew from the model.
    joined: children that joined by dynamic node addition.
    similarity_updates: verdicts shared with a sibling.
    duplicates: candidates dropped as duplicates.
    revisits: verdicts counted again for a finished leaf.
    drafts: segments sampled and judged (segment-level rejection, adaptive mode).
    kept_best: moves made although nothing good was found (segment-level rejection, adaptive mode).
    taken_back: committed drafts that were taken back (adaptive mode).
    searched_moves: moves that a search found, of all (adaptive mode).
  """

  steps: Array
  iterations: Array
  moves: Array
  rewinds: Array
  early_commits: Array
  inherited_commits: Array
  grows: Array
  joined: Array
  similarity_updates: Array
  duplicates: Array
  revisits: Array
  drafts: Array
  kept_best: Array
  taken_back: Array
  searched_moves: Array


@dataclasses.dataclass(frozen=True)
class Result:
  """One finished response, on the host.

  Attributes:
    index: which prompt, as given.
    tokens: committed tokens, the finishing one included.
    finish: why it ended, a name of `types.FINISH_REASONS`.
    counters: name -> count.
    slot: the slot it was searched in, for the model's own per-slot records.
  """

  index: Any
  tokens: list[int]
  finish: str
  counters: dict[str, int]
  slot: int
