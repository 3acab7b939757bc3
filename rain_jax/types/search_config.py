"""Hyperparameters of the search, and the paper's three variants of it."""

import dataclasses
import typing
from typing import Any

from rain_jax.types import ranges

MODES = ("exact", "segments", "adaptive")  # of a search, see `SearchConfig`


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """Hyperparameters of the method; the defaults are those of its published code (HH variant).

  Raises `ValueError` for numbers that no search can run with.

  Attributes:
    set_lengths: tokens per set at depth 0, 1, 2, and from there on (RAIN, section 3.2).
    num_candidates: children of a freshly expanded node.
    max_children: the most that dynamic node addition may grow a node to (K).
    redraw: keep drawing, up to twice as often, until the candidates are distinct
      (adversarial variant) instead of dropping duplicates.
    temperature: of the candidates; the rollout always samples at 1.
    top_k: most probable tokens a candidate may draw from.
    repetition_penalty: of tokens that the response holds already, in candidates and rollouts; 1 is
      none, see `policy.sampling.penalised`.
    sample_top_k: most probable tokens that a rollout, a draft or a plain sample may draw from; 0 is
      all of them, as published.
    rollout_to_eos: roll out whole responses (truthful variant), not to the next
      text end.
    exploration: weight `c` of the prior term in the selection score.
    root_prior: share of the model's prior at a root; the rest is uniform.
    similarity_threshold: cosine similarity from which a sibling shares a verdict
      (1.0 or less; a value above 1 turns the similarity update off).
    similarity_weight: visit weight a sibling of similarity 1 gains.
    grow_threshold: dynamic node addition is due below this variance norm, per token
      of the children's sets (0 turns it off).
    min_visits: a move needs more visits than this ...
    value_threshold: ... and a mean value above this, or ...
    max_iterations: ... this many iterations at its root, inherited ones included, or
    extra_iterations: this many on top of the inherited ones.
    leaves: leaves selected per tree and step, with virtual loss (W); 1 is exact.
    early_commit: let inherited statistics commit a move without a new iteration.
    max_nodes: node slots per tree (N).
    max_visited: pages for visited nodes per tree (V).
    max_path: nodes between root and leaf (D).
    mode: "exact", the method; "segments", no search, but segment-level rejection; or "adaptive",
      drafts that can be taken back, and the search where they fail; see `rain_jax.decode.drafting`.
    draft_length: tokens of a draft, whatever ends in it; 0 is to its next text end (segments,
      adaptive).
    draft_rows: drafts of a segment sampled side by side (segments).
    draft_tries: drafts after which the best so far is committed, whatever its margin (segments).
    draft_threshold: margin of the verdict above which a draft is good, in [-1, 1] (segments,
      adaptive).
    root_rows: drafts of a segment sampled side by side (adaptive).
    root_tries: drafts after which a text is taken back or searched from, none being good
      (adaptive).
    max_rewinds: committed drafts that a response may take back (adaptive).
    search_after: of these, after how many a search comes before the next (adaptive).
    search_below: margin of the best draft below which a search comes in its place, where nothing is
      taken back; -1 never searches (adaptive).
  """

  set_lengths: tuple[int, ...] = (1, 2, 4, 10)
  num_candidates: int = 10
  max_children: int = 20
  redraw: bool = False
  temperature: float = 1.0
  top_k: int = 15
  repetition_penalty: float = 1.0
  sample_top_k: int = 0
  rollout_to_eos: bool = False
  exploration: float = 2.0
  root_prior: float = 0.75
  similarity_threshold: float = 0.95
  similarity_weight: float = 0.2
  grow_threshold: float = 0.03
  min_visits: int = 6
  value_threshold: float = 0.8
  max_iterations: int = 50
  extra_iterations: int = 15
  leaves: int = 1
  early_commit: bool = False
  max_nodes: int = 1024
  max_visited: int = 96
  max_path: int = 16
  mode: str = "exact"
  draft_length: int = 0
  draft_rows: int = 4
  draft_tries: int = 16
  draft_threshold: float = 0.0
  root_rows: int = 1
  root_tries: int = 2
  max_rewinds: int = 64
  search_after: int = 64
  search_below: float = 1.0

  def __post_init__(self) -> None:
    wrong = ranges.fault(ranges.SEARCH, vars(self))
    if wrong:
      raise ValueError(wrong)
    if self.mode not in MODES:
      raise ValueError(f"mode={self.mode!r:.60}: expected one of {', '.join(MODES)}.")
    lengths = self.set_lengths
    if not isinstance(lengths, (tuple, list)) or not all(map(ranges.SET_LENGTH.holds, lengths)):
      raise ValueError(f"set_lengths={lengths!r:.60}: expected {ranges.SET_LENGTH} in each place.")
    if not lengths or lengths[0] != 1 or any(n < 2 for n in lengths[1:]):
      raise ValueError(f"set_lengths={lengths!r:.60}: the first must be 1, later ones 2 or more.")
    object.__setattr__(self, "set_lengths", tuple(lengths))
    if self.num_candidates > self.max_children:
      raise ValueError(
        f"num_candidates={self.num_candidates}: expected 2 to max_children ({self.max_children})."
      )
    room = 1 + (self.leaves + 1) * (self.num_candidates + 1)
    if self.max_nodes < room:
      raise ValueError(f"max_nodes={self.max_nodes}: at least {room} are needed.")
    if self.max_visited < 2 * self.leaves + 1:
      raise ValueError(
        f"max_visited={self.max_visited}: at least {2 * self.leaves + 1} are needed."
      )

  @property
  def max_set_length(self) -> int:
    """Tokens of the longest token set (L)."""
    return max(self.set_lengths)

  @property
  def searches(self) -> bool:
    """Whether there is a tree search in this mode."""
    return self.mode == "exact" or (self.mode == "adaptive" and self.search_below > -1)

  @property
  def drafts_at_once(self) -> int:
    """Drafts of a segment sampled side by side, in the modes that draft."""
    return self.root_rows if self.mode == "adaptive" else self.draft_rows

  @property
  def draws(self) -> int:
    """Candidates drawn at a leaf, the greedy one included (C).

    At depth 0 the same axis carries the `max_children` most probable tokens.
    """
    sampled = (2 if self.redraw else 1) * self.num_candidates - 1
    return max(1 + sampled, self.max_children)

  @property
  def sampled_draws(self) -> int:
    """Sampled candidates at an expansion, before duplicates are dropped."""
    return (2 if self.redraw else 1) * self.num_candidates - 1

  @property
  def grow_draws(self) -> int:
    """Sampled candidates of a dynamic node addition, before duplicates are dropped."""
    return 3 if self.redraw else 1


def harmless_search(**overrides: Any) -> SearchConfig:
  """The HH variant of the published code: `SearchConfig` as it stands."""
  return SearchConfig(**overrides)


def adversarial_search(**overrides: Any) -> SearchConfig:
  """The adversarial variant: hotter candidates, redrawn until distinct."""
  return SearchConfig(**{**dict(redraw=True, temperature=2.0, min_visits=5), **overrides})


def truthful_search(**overrides: Any) -> SearchConfig:
  """The truthful variant: rollouts to the end of the response, more visits a move."""
  return SearchConfig(**{**dict(rollout_to_eos=True, min_visits=16, max_path=24), **overrides})


def hyperparameters() -> dict[str, Any]:
  """Name and type of each field of `SearchConfig` but for the mode, which a method decides."""
  return {
    field.name: typing.get_origin(field.type) or field.type
    for field in dataclasses.fields(SearchConfig)
    if field.name != "mode"
  }


VARIANTS = {
  "harmless": harmless_search,
  "adversarial": adversarial_search,
  "truthful": truthful_search,
}
