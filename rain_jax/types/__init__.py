"""Shapes, sentinels, configs and the seam between the search and a model.

Axis legend, used in every docstring of the package:

    B  trees, one per prompt in flight          W  leaves per tree and step (1 = exact)
    N  node slots of a tree                     V  pages for visited nodes
    K  child slots of a visited node            L  tokens per token set (the longest)
    D  nodes on a path, root excluded           C  candidates drawn at a leaf
    R  tokens of a response                     E  width of a path embedding
    T  tokens of a call                         H  attention heads

A search needs a model only through `Model`: three pure functions that thread an
opaque state. A language model is one (`rain_jax.policy`); a lookup table is another.
"""

import dataclasses
import typing
from typing import Any, Protocol

import flax
import jax
import jax.numpy as jnp

from rain_jax.types import ranges

NO_NODE = -1  # no such node, in any array of node ids
NO_PAGE = -1  # the node was never visited
NO_TOKEN = -1  # padding after the end of a token set

# Why a text is finished, kept per node and reported per response.
RUNNING, EOS, STOP, LENGTH, EXHAUSTED, FAILED = 0, 1, 2, 3, 4, 5
FINISH_REASONS = ("running", "eos", "stop", "length", "exhausted", "failed")

MODES = ("exact", "segments", "adaptive")  # of a search, see `SearchConfig`

# What the search asks of the model at one leaf.
IDLE, VISIT, GROW = 0, 1, 2

NOT_FINITE = "the model's output was not a finite number"  # an error of responses

Array = jax.Array


class DataError(ValueError):
  """Input that cannot be used; the message is one line and says what to do."""


def is_unicode(text: str) -> bool:
  """Whether a text can be written: JSON and command lines may hold half of a character."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def never() -> bool:
  """Nobody asks to stop."""
  return False


class Stopped(Exception):
  """Work was asked to stop, and did between two results; the same command goes on."""


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
    draft_rows: drafts of a segment sampled side by side (segments).
    draft_tries: drafts after which the best so far is committed, whatever its margin (segments).
    draft_threshold: margin of the verdict above which a draft is good, in [-1, 1] (segments,
      adaptive).
    root_rows: drafts of a segment sampled side by side (adaptive).
    root_tries: drafts after which a text is taken back or searched from, none being good
      (adaptive).
    max_rewinds: committed drafts that a response may take back (adaptive).
    search_after: of these, after how many a search comes before the next (adaptive).
  """

  set_lengths: tuple[int, ...] = (1, 2, 4, 10)
  num_candidates: int = 10
  max_children: int = 20
  redraw: bool = False
  temperature: float = 1.0
  top_k: int = 15
  repetition_penalty: float = 1.0
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
  draft_rows: int = 4
  draft_tries: int = 16
  draft_threshold: float = 0.0
  root_rows: int = 1
  root_tries: int = 2
  max_rewinds: int = 8
  search_after: int = 8

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


class Request(flax.struct.PyTreeNode):
  """What the search asks of the model in one step, for W leaves of each of B trees.

  A path runs from the child of the root to the leaf; entries after `path_length` are
  padding. The root's own text is what the model has been told to commit.

  Attributes:
    mode: int32[B, W]; IDLE, VISIT (roll out, evaluate, propose) or GROW (draw one
      greedy and `grow_draws` sampled candidates; nothing else).
    leaf_page: int32[B, W] page of the leaf, below `max_visited`.
    first_visit: bool[B, W]; the leaf's page was assigned in this step.
    finish: int32[B, W]; why the leaf's text is finished, or RUNNING.
    depth: int32[B, W] token sets between the start of the response and the leaf.
    path_length: int32[B, W] nodes on the path, the leaf included; 0 at the root.
    path_pages: int32[B, W, D] pages of the path's nodes.
    path_tokens: int32[B, W, D, L] their tokens, NO_TOKEN after a set's end.
    path_lengths: int32[B, W, D] their lengths in tokens, 0 after the path's end.
  """

  mode: Array
  leaf_page: Array
  first_visit: Array
  finish: Array
  depth: Array
  path_length: Array
  path_pages: Array
  path_tokens: Array
  path_lengths: Array


class Rollout(flax.struct.PyTreeNode):
  """What a model rolled out from the leaves, for those who watch; the search does not read it.

  Attributes:
    tokens: int32[B, W, R] tokens after the leaf, then NO_TOKEN.
    finish: int32[B, W] why the text after them is finished, or RUNNING.
  """

  tokens: Array
  finish: Array


class Evaluation(flax.struct.PyTreeNode):
  """What the model answers to a `Request`. Entries of IDLE leaves are ignored.

  Attributes:
    tokens: int32[B, W, C, L] candidates, greedy first, NO_TOKEN after their ends; at
      depth 0 the `max_children` most probable tokens, most probable first.
    lengths: int32[B, W, C] their lengths in tokens; 0 marks an unused row.
    log_weights: float[B, W, C] log of the product of their token probabilities.
    finish: int32[B, W, C] why the text after a candidate is finished, or RUNNING.
    value: float[B, W] the verdict, in [-1, 1] (VISIT only); NaN, for any mode but IDLE,
      where the model's output was not finite: that response has failed.
    embeddings: float[B, W, D, E] for every node on the path, of the text from the
      node's own tokens to the end of the rollout (VISIT only).
    rollout: what was rolled out, None for a model that judges leaves by themselves.
  """

  tokens: Array
  lengths: Array
  log_weights: Array
  finish: Array
  value: Array
  embeddings: Array
  rollout: Rollout | None = None


class Segment(flax.struct.PyTreeNode):
  """The best draft of the next segment, for B trees (segment-level rejection, CARDS, arXiv 2406.16306).

  Attributes:
    tokens: int32[B, R], then NO_TOKEN.
    length: int32[B] in tokens; 0 before there is any.
    finish: int32[B] why the text ends with it, or RUNNING.
    margin: float32[B] of the verdict on the text with it, averaged over the readings, in [-1, 1];
      NaN where the model's output was not finite: that response has failed.
  """

  tokens: Array
  length: Array
  finish: Array
  margin: Array


class Commit(flax.struct.PyTreeNode):
  """A move that the outer loop makes, for B trees; trees with `mask` False keep still.

  Attributes:
    mask: bool[B].
    page: int32[B] page of the committed node, NO_PAGE if it was never visited.
    tokens: int32[B, L], NO_TOKEN after the set's end.
    length: int32[B] in tokens.
    finish: int32[B] why the response ends with this move, or RUNNING.
  """

  mask: Array
  page: Array
  tokens: Array
  length: Array
  finish: Array


class Model(Protocol):
  """What the search needs of a model: pure functions over an opaque, batched state.

  `params` is whatever the functions need that does not change; `state` is a pytree
  whose arrays have B among their axes.
  """

  @property
  def embedding_size(self) -> int:
    """Width of a path embedding (E)."""

  def evaluate(
    self, params: Any, state: Any, request: Request, keys: Array
  ) -> tuple[Evaluation, Any]:
    """Answers a request; `keys` [B] are fresh for every step of every prompt."""

  def commit(self, params: Any, state: Any, commit: Commit) -> Any:
    """Makes committed tokens part of the context that paths start from."""


class Drafter(Model, Protocol):
  """What segment-level rejection needs of a model, beside what a search does."""

  def draft(self, params: Any, state: Any, wanted: Array, keys: Array) -> tuple[Segment, Any]:
    """Samples `drafts_at_once` drafts of the next segment of the texts `wanted` bool[B], and judges them.

    Returns:
      The best so far since the last commit, these and earlier ones, and the state, which holds it.
    """

  def commit_draft(self, params: Any, state: Any, mask: Array) -> Any:
    """Makes the best draft part of the context, for trees in `mask` bool[B]; it is held no longer."""


class Reviser(Drafter, Protocol):
  """What the adaptive mode needs of a model, beside what drafts need."""

  def rewind(self, params: Any, state: Any, mask: Array, begin: Array, end: Array) -> Any:
    """Goes back to the first `begin` int32[B] tokens of the responses in `mask` bool[B].

    From now on a draft that makes the text of their first `end` int32[B] tokens is never the best.
    """


def check_evaluation(
  answer: Evaluation, request: Request, config: SearchConfig, embedding_size: int
) -> None:
  """Compares a model's answer with what `Evaluation` says; when traced, at no cost later.

  Raises:
    ValueError: one line that names the field, what was expected, and what was found.
  """
  leaves = request.mode.shape
  rows, path = (*leaves, config.draws), (*leaves, config.max_path)
  expected: dict[str, tuple[tuple[int, ...], type]] = {
    "tokens": ((*rows, config.max_set_length), jnp.int32),
    "lengths": (rows, jnp.int32),
    "log_weights": (rows, jnp.floating),
    "finish": (rows, jnp.int32),
    "value": (leaves, jnp.floating),
    "embeddings": ((*path, embedding_size), jnp.floating),
  }
  fields = {name: getattr(answer, name) for name in expected}
  if answer.rollout is not None:
    tokens = answer.rollout.tokens
    fields |= {"rollout.tokens": tokens, "rollout.finish": answer.rollout.finish}
    longest = tokens.shape[-1:]  # R, which the search does not know
    expected |= {
      "rollout.tokens": ((*leaves, *longest), jnp.int32),
      "rollout.finish": (leaves, jnp.int32),
    }
  for name, (shape, dtype) in expected.items():
    array = fields[name]
    if jnp.shape(array) != shape or not jnp.issubdtype(jnp.result_type(array), dtype):
      kind = "float" if dtype is jnp.floating else "int32"
      raise ValueError(
        f"The model's evaluate: {name} must be {kind}{list(shape)}, is {_kind(array)}."
      )


def check_state(after: Any, before: Any, method: str) -> None:
  """Compares the state that a model returned with the one it was given; when traced.

  Raises:
    ValueError: one line that names the method and what differs.
  """
  expected: Any = jax.tree.structure(before)
  found: Any = jax.tree.structure(after)
  if expected != found:
    raise ValueError(
      f"The model's {method}: its state must keep its structure {expected}, is {found}."
    )
  leaves = jax.tree_util.tree_leaves_with_path(before)
  for (path, old), new in zip(leaves, jax.tree.leaves(after), strict=True):
    if _kind(old) != _kind(new):
      name = f"state{jax.tree_util.keystr(path)}"
      raise ValueError(f"The model's {method}: {name} must stay {_kind(old)}, is {_kind(new)}.")


def _kind(array: Any) -> str:
  return f"{jnp.result_type(array)}{list(jnp.shape(array))}"
