"""Small helpers for arrays: rows picked by masks and indices, and how many bytes there are."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax.parallel import machine


def where(mask: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
  """`jnp.where` with a mask of fewer axes, aligned at the front."""
  return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b)


def gather(array: jax.Array, index: jax.Array) -> jax.Array:
  """array[b, index[b, w]] for array [B, V, ...] and index [B, W], negatives as 0."""
  return jax.vmap(lambda a, i: a[i])(array, jnp.maximum(index, 0))


def nbytes(tree: Any, places: Any = None) -> int:
  """Bytes of all arrays, or shapes of arrays, in a tree; random keys are two words each.

  With `places`, a tree of shardings, the bytes of one device's parts.
  """

  def size(leaf, place=None):
    shape = leaf.shape if place is None else place.shard_shape(leaf.shape)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return 8 * math.prod(shape)
    return math.prod(shape) * np.dtype(leaf.dtype).itemsize

  return sum(jax.tree.leaves(jax.tree.map(size, tree, *([] if places is None else [places]))))


def bytes_available() -> int:
  """Bytes of the first device's memory, or what the host gives where devices have none."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"]
  return machine.memory()
