"""Responses that are being searched for: their state, empty, refilled, and longer."""

from typing import Any

import flax
import jax
import jax.numpy as jnp

from rain_jax import types
from rain_jax.search import tree as trees
from rain_jax.search.tree import Tree
from rain_jax.types import NO_NODE, NO_TOKEN, Array, SearchConfig
from rain_jax.types.results import Counters


class Revocable(flax.struct.PyTreeNode):
  """What the adaptive mode keeps of B responses beside their trees.

  Attributes:
    searching: bool[B] the tree search is at work at the root; otherwise drafts are.
    begin: int32[B, M] where each committed draft that can be taken back begins in the response,
      newest first, then NO_TOKEN; M is `SearchConfig.max_rewinds`, and as many are enough.
    end: int32[B, M] where it ends.
  """

  searching: Array
  begin: Array
  end: Array


class DecodeState(flax.struct.PyTreeNode):
  """The whole state of B responses being searched for.

  Attributes:
    tree: the search trees.
    model: the model's opaque state.
    keys: [B] one random key per prompt.
    active: bool[B] a response is being searched for in this slot.
    finish: int32[B] why the response ended, or RUNNING.
    inherited: int32[B] visits the root had when it became the root.
    leaf: int32[B] the leaf visited last, NO_NODE if it was discarded since.
    response: int32[B, R + L] committed tokens, then NO_TOKEN.
    response_length: int32[B] in tokens.
    tried: int32[B] drafts of the next segment so far.
    counters: see `Counters`.
    revocable: what the adaptive mode can take back; None in another mode.
  """

  tree: Tree
  model: Any
  keys: Array
  active: Array
  finish: Array
  inherited: Array
  leaf: Array
  response: Array
  response_length: Array
  tried: Array
  counters: Counters
  revocable: Revocable | None = None


def init(
  batch: int, model_state: Any, config: SearchConfig, embedding_size: int, max_response: int
) -> DecodeState:
  """A state with `batch` empty slots for responses of up to `max_response` tokens (R)."""
  zeros = jnp.zeros(batch, jnp.int32)
  one = trees.empty(config, embedding_size)
  state = DecodeState(
    tree=jax.tree.map(lambda a: jnp.broadcast_to(a, (batch,) + a.shape), one),
    model=model_state,
    keys=jax.random.split(jax.random.key(0), batch),
    active=jnp.zeros(batch, bool),
    finish=zeros,
    inherited=zeros,
    leaf=jnp.full(batch, NO_NODE, jnp.int32),
    response=jnp.full((batch, max_response + config.max_set_length), NO_TOKEN, jnp.int32),
    response_length=zeros,
    tried=zeros,
    counters=Counters(**{name: zeros for name in Counters.__dataclass_fields__}),
    revocable=_nothing_revocable(batch, config) if config.mode == "adaptive" else None,
  )
  return jax.tree.map(jnp.copy, state)  # one buffer per array, so that each can be donated


def _nothing_revocable(batch: int, config: SearchConfig) -> Revocable:
  none = jnp.full((batch, max(config.max_rewinds, 1)), NO_TOKEN, jnp.int32)
  return Revocable(searching=jnp.zeros(batch, bool), begin=none, end=none)


def replanted(state: DecodeState, mask: Array, config: SearchConfig) -> DecodeState:
  """A fresh tree, nothing but an unvisited root, for the responses of `mask` bool[B]."""
  one = trees.empty(config, state.tree.embedding.shape[-1])
  pick = lambda fresh, old: jnp.where(mask.reshape(mask.shape + (1,) * (old.ndim - 1)), fresh, old)
  return state.replace(
    tree=jax.tree.map(pick, one, state.tree),
    inherited=pick(0, state.inherited),
    leaf=pick(NO_NODE, state.leaf),
    tried=pick(0, state.tried),
  )


def reset_slots(state: DecodeState, mask: Array, keys: Array, config: SearchConfig) -> DecodeState:
  """Begins new responses in the slots of `mask` bool[B], with random keys `keys` [B].

  The model's own state for these slots is the caller's to prepare.
  """
  B = mask.shape[0]
  pick = lambda fresh, old: jnp.where(mask.reshape((B,) + (1,) * (old.ndim - 1)), fresh, old)
  revocable = state.revocable
  if revocable is not None:
    revocable = jax.tree.map(pick, _nothing_revocable(B, config), revocable)
  return replanted(state, mask, config).replace(
    keys=pick(keys, state.keys),
    active=mask | state.active,
    finish=pick(types.RUNNING, state.finish),
    response=pick(NO_TOKEN, state.response),
    response_length=pick(0, state.response_length),
    counters=jax.tree.map(lambda count: pick(0, count), state.counters),
    revocable=revocable,
  )


def appended(state: DecodeState, tokens: Array, length: Array) -> Array:
  """The responses with the first `length` int32[B] of tokens int32[B, T] after them."""
  places = jnp.arange(tokens.shape[-1])
  at = jnp.where(
    places < length[:, None], state.response_length[:, None] + places, state.response.shape[1]
  )
  return jax.vmap(lambda r, i, t: r.at[i].set(t, mode="drop"))(state.response, at, tokens)
