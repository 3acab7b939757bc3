"""Segment-level rejection: no tree, whole segments drafted, judged, and drawn again.

What an expert would try before a search (CARDS, arXiv 2406.16306, with a reward model where this
has the model's own verdict): sample the next segment, to a text end; keep it if the verdict on the
text with it is good enough; otherwise sample it again; after some tries take the best. The drafts
are the model's part, `types.Drafter`.
"""

from typing import NamedTuple

import jax.numpy as jnp

from rain_jax.types import Array, SearchConfig, Segment


class Decision(NamedTuple):
  """What becomes of the best drafts of B trees.

  take: bool[B] it is committed.
  good: bool[B] its margin exceeds the threshold.
  failed: bool[B] the model's output was not finite.
  tried: int32[B] drafts of the segment so far, 0 after a commit.
  """

  take: Array
  good: Array
  failed: Array
  tried: Array


def decide(best: Segment, tried: Array, active: Array, config: SearchConfig) -> Decision:
  """Whether to commit the best draft, after `draft_rows` more; `tried` int32[B] before these."""
  failed = active & jnp.isnan(best.margin)
  tried = tried + config.draft_rows
  good = best.margin > config.draft_threshold
  take = active & ~failed & (good | (tried >= config.draft_tries))
  return Decision(take, good, failed, jnp.where(active & ~take, tried, 0))
