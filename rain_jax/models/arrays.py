"""How many bytes arrays take, and how many there are."""

import math
import os
from typing import Any

import jax
import numpy as np

_CACHED = 32 << 20  # bytes of weights that a processor's caches hold, about


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


def in_caches(weights: Any) -> bool:
  """Whether they are read from a processor's caches: a small model's, on a CPU."""
  return jax.default_backend() == "cpu" and nbytes(weights) <= _CACHED


def bytes_available() -> int:
  """Bytes of the first device's memory, or of the host's where devices have none of their own."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"]
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
