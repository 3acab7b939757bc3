"""The decoding loop: a token for every row at a time, each row with its own scratch.

Candidates and rollouts (`rollout`), and whole responses (`whole_responses`), are decoded by
it: what they differ in is which rows there are, what is drawn, and when a row ends.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rain_jax.models import KV, NO_POSITION, Segment, each_layer, forward, unembed
from rain_jax.parallel.loops import ordered_after, while_any
from rain_jax.policy import context, sampling
from rain_jax.policy.params import Params, Side
from rain_jax.types import Array

if TYPE_CHECKING:
  from rain_jax.policy.language_model import LanguageModel

Texts = TypeVar("Texts")


class Decoding(NamedTuple, Generic[Texts]):
  """Rows that are decoded, between two tokens.

  step: int32[] number of the token that comes next, from 0 for the first after the context.
  texts: what is known of the rows' texts, any pytree.
  scratch: keys and values [layers, *rows, H, S, D] of the tokens before the last one.
  """

  step: Array
  texts: Texts
  scratch: KV


def decode(
  lm: "LanguageModel",
  params: Params,
  shared: Sequence[Segment],
  end: Array,
  start: Decoding[Texts],
  *,
  goes_on: Callable[[Texts, Array], Array],
  last: Callable[[Texts, Array], tuple[Array, Array]],
  extend: Callable[[Texts, Array, Array], Texts],
) -> Decoding[Texts]:
  """Reads the rows' last tokens and draws their next ones, until no row goes on.

  Args:
    lm: the language model.
    params: its arrays.
    shared: the context before the rows' own tokens.
    end: int32, broadcast to [*rows]; the position after that context.
    start: rows whose first token, at least, is drawn.
    goes_on: from texts and step, bool[...]; the loop ends when none is true.
    last: from texts and step, int32[*rows] tokens number `step - 1`, and bool[*rows] which of
      them are read.
    extend: from texts, hidden states [*rows, hidden] after those tokens, and step, the texts
      with token number `step`.
  """
  places = jnp.arange(start.scratch.slots)

  def one_more(at: Decoding[Texts]) -> Decoding[Texts]:
    tokens, valid = last(at.texts, at.step)
    seen = jnp.where(places < at.step - 1, end[..., None] + places, NO_POSITION)
    hidden, new = forward(
      lm.graphdef,
      params["model"],
      jnp.maximum(tokens, 0)[..., None],
      jnp.where(valid, end + at.step - 1, NO_POSITION)[..., None],
      [
        *shared,
        at.scratch.segment(jnp.broadcast_to(seen, (*valid.shape, places.size)), used=at.step - 1),
      ],
    )
    texts = extend(at.texts, hidden[..., 0, :], at.step)
    return Decoding(at.step + 1, texts, _put(at.scratch, ordered_after(hidden, new), at.step - 1))

  return while_any(lambda at: goes_on(at.texts, at.step), one_more, start)


def _put(scratch: KV, new: KV, step: Array) -> KV:
  """Stores the keys and values of one token per row at place `step`."""
  put = lambda old, fresh: jax.lax.dynamic_update_slice_in_dim(
    old, fresh.astype(old.dtype), step, axis=-2
  )
  return each_layer(put, scratch, new)


def next_logits(lm: "LanguageModel", params: Params, hidden: Array) -> Array:
  """Logits float32[..., vocab] that the next token is drawn from: `logits`, some tokens suppressed."""
  found, suppressed = logits(lm, params, hidden), params["tables"].suppressed
  # Finite, since a logit that is not means that the model failed.
  return found if suppressed is None else jnp.where(suppressed, -1e9, found)


def logits(lm: "LanguageModel", params: Params, hidden: Array, side: Side = "proposing") -> Array:
  """Logits float32[..., vocab] after a side's hidden states, to be drawn from by `sampling`.

  A mesh that splits the model leaves every shard its own part of the vocabulary.
  """
  graphdef, params = context.reader(lm, params, side)
  if jax.sharding.get_abstract_mesh().empty:
    return unembed(graphdef, params, hidden)
  # As one axis of rows: a TPU was seen to lay eleven candidates along the lanes, padded to 128.
  rows = unembed(graphdef, params, hidden.reshape(-1, hidden.shape[-1]))
  axes = sampling.vocabulary_axes(rows.shape[-1])
  rows = jax.lax.with_sharding_constraint(rows, PartitionSpec(None, axes or None))
  return rows.reshape(*hidden.shape[:-1], rows.shape[-1])
