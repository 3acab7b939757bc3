"""What proposing and evaluating share."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rain_jax.models import KV, Segment, unembed
from rain_jax.models.cache import Paths
from rain_jax.types import Array, Request


def prefix(params: dict, side: str) -> tuple[list[Segment], int]:
  """The fixed prefix of a side, `proposing` or `evaluating`, and its length in tokens.

  A list of no or one segment without batch axes: every tree and row shares it.
  """
  kv = params[f"{side}_prefix"]
  length = kv.keys.shape[-2]
  return ([kv.segment(jnp.arange(length))] if length else []), length


def paths(request: Request, tail: Array) -> Paths:
  """The request's paths with `tail` int32[B, W, R] after them."""
  return Paths(request.path_pages, request.path_tokens, request.path_lengths, tail)


def logits(lm, params: dict, hidden: Array) -> Array:
  """Logits float32[..., vocab] after hidden states, all of them wherever they are needed.

  Over a mesh the vocabulary is put together before anything is drawn. Were its parts left
  apart, the compiler would pass pieces on from device to device inside loops that only
  some of the devices are still in.
  """
  found = unembed(lm.graphdef, params["model"], hidden)
  if jax.sharding.get_abstract_mesh().empty:
    return found
  return jax.lax.with_sharding_constraint(found, PartitionSpec())


def scratch(lm, kv_dtype, *shape) -> KV:
  """Zeroed keys and values [layers, *shape[:-1], H, shape[-1], D]."""
  config = lm.config
  full = (config.num_layers, *shape[:-1], config.num_kv_heads, shape[-1], config.head_size)
  return KV(jnp.zeros(full, kv_dtype), jnp.zeros(full, kv_dtype))


def put(scratch: KV, new: KV, step) -> KV:
  """Stores the keys and values of one token per row at place `step`."""
  put = lambda old, fresh: jax.lax.dynamic_update_slice_in_dim(
    old, fresh.astype(old.dtype), step, axis=-2
  )
  return jax.tree.map(put, scratch, new)


def where(mask: Array, a: Array, b: Array) -> Array:
  """`jnp.where` with a mask of fewer axes, aligned at the front."""
  return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b)


def gather(array: Array, index: Array) -> Array:
  """array[b, index[b, w]] for array [B, V, ...] and index [B, W], negatives as 0."""
  return jax.vmap(lambda a, i: a[i])(array, jnp.maximum(index, 0))
