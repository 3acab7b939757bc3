"""Drafts of whole segments: when one is good, and when there have been enough of them.

What an expert would try before a search (CARDS, arXiv 2406.16306, with a reward model where this
has the model's own verdict): sample the next segment, to a text end or of a given length; keep it
if the verdict on the text with it is good enough; otherwise sample it again. What comes after too
many bad ones is the outer loop's part (`rain_jax.decode.drafting`), the drafts are the model's
(`types.Drafter`).
"""

from typing import NamedTuple

import jax.numpy as jnp

from rain_jax.types import Array, BestDraft, SearchConfig


class Drafts(NamedTuple):
  """What has been drafted after the committed text of B responses.

  best: the best drafts.
  good: bool[B] its margin exceeds the threshold.
  over: bool[B] it is not good, and no more are to be drafted.
  failed: bool[B] the model's output was not finite.
  tried: int32[B] how many there were.
  """

  best: BestDraft
  good: Array
  over: Array
  failed: Array
  tried: Array


def judge(best: BestDraft, tried: Array, mask: Array, tries: int, config: SearchConfig) -> Drafts:
  """What `drafts_at_once` more drafts came to in the responses of `mask` bool[B].

  Args:
    best: these and earlier ones.
    tried: int32[B] drafts before these.
    mask: bool[B].
    tries: drafts that are enough.
    config: the search's hyperparameters.
  """
  failed = mask & jnp.isnan(best.margin)
  going = mask & ~failed
  tried = jnp.where(mask, tried + config.drafts_at_once, tried)
  good = going & (best.margin > config.draft_threshold)
  return Drafts(best, good, going & ~good & (tried >= tries), failed, tried)
