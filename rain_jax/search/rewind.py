"""The rewind: a search that leaves its path and goes on from an earlier node (RAIN, section 3.1).

Nothing is undone for it. Every descent (`selection`) starts at the root again, and no token of a tree
is final before its commit, so that a rewind is only seen: the next leaf does not lie beyond the last.
"""

import jax.numpy as jnp

from rain_jax.search.inner_loop import StepInfo
from rain_jax.types import Array


def rewound(before: Array, root: Array, info: StepInfo) -> Array:
  """Where a step went back, bool[B]: it left the path of the step before it.

  That is, the leaf visited before lies on none of the way to the leaf visited now. The other way to
  rewind is a commit that discards the leaf visited last, see `decode.commit`.

  Args:
    before: int32[B] the leaf that was visited last, NO_NODE if there was none.
    root: int32[B] of the trees.
    info: what the step did.
  """
  # Every path goes on from the root, which is not among its nodes.
  onward = jnp.any(info.path == before[:, None], axis=-1) | (before == root)
  return (before >= 0) & (info.leaf >= 0) & ~onward
