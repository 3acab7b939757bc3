"""The seam between the search and a model: what the search asks, and what it is answered.

A search needs a model only through `Model`: three pure functions that thread an opaque state. A
language model is one (`rain_jax.policy`); a lookup table is another.
"""

from typing import Any, Protocol

import flax
import jax
import jax.numpy as jnp

from rain_jax.types.search_config import SearchConfig

Array = jax.Array


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


class BestDraft(flax.struct.PyTreeNode):
  """The best draft of the next segment, for B trees (segment-level rejection, CARDS, arXiv 2406.16306).

  Attributes:
    tokens: int32[B, T], then NO_TOKEN; T is the most that a draft has.
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

  def draft(self, params: Any, state: Any, wanted: Array, keys: Array) -> tuple[BestDraft, Any]:
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

    From now on a draft that makes the text of their first `end` int32[B] tokens has margin -inf.
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
