"""What the new tokens of a call are read after: the shared prefix, and paths of the tree."""

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from rain_jax import types
from rain_jax.models import ModelConfig, Segment
from rain_jax.models import cache as caches
from rain_jax.models.cache import PathCache, Paths
from rain_jax.policy.params import Params, Side
from rain_jax.types import NO_TOKEN, Array, Request

if TYPE_CHECKING:
  from rain_jax.policy.language_model import LanguageModel


def reader(lm: "LanguageModel", params: Params, side: Side) -> tuple[nnx.GraphDef, Any]:
  """Structure and parameters of the model that reads a side; verdicts may be another model's."""
  if side == "evaluating" and lm.verdict is not None:
    return lm.verdict.graphdef, params["verdict_model"]
  return lm.graphdef, params["model"]


def shapes(lm: "LanguageModel", side: Side) -> ModelConfig:
  """Shapes of the model that reads a side."""
  return lm.verdict.config if side == "evaluating" and lm.verdict is not None else lm.config


def prefix(params: Params, side: Side) -> tuple[list[Segment], int]:
  """The fixed prefix of a side and its length in tokens.

  A list of no or one segment without batch axes: every tree and row shares it.
  """
  kv = params["proposing_prefix"] if side == "proposing" else params["evaluating_prefix"]
  length = kv.slots
  return ([kv.segment(jnp.arange(length))] if length else []), length


def paths(request: Request, tail: Array | None = None) -> Paths:
  """The request's paths with `tail` int32[B, W, R] after them, or nothing."""
  if tail is None:
    tail = jnp.full(request.mode.shape + (1,), NO_TOKEN)
  return Paths(request.path_pages, request.path_tokens, request.path_lengths, tail)


def leaf_context(params: Params, cache: PathCache, request: Request) -> tuple[list[Segment], Array]:
  """Segments that all rows of a leaf share, and the position after each leaf, int32[B, W]."""
  leaves = paths(request)
  total = leaves.total(cache)
  before, shift = prefix(params, "proposing")
  shown = jnp.where(request.mode == types.IDLE, 0, total)
  return [*before, *caches.segments(cache, leaves, shown, shift)], total + shift


def response(cache: PathCache, request: Request, committed: Array, max_response: int) -> Array:
  """The response as it stands at each leaf, int32[B, W, R], then NO_TOKEN.

  Args:
    cache: the proposing cache.
    request: of the leaves.
    committed: int32[B] tokens of the response that are part of the cache's context.
    max_response: R.
  """
  leaves = paths(request)
  begin = (cache.length - committed)[:, None, None]
  at = jnp.broadcast_to(begin + jnp.arange(max_response), (*request.mode.shape, max_response))
  token = caches.locate(cache, leaves, at).token
  return jnp.where(at < leaves.total(cache)[..., None], token, NO_TOKEN)
