"""Shapes and sentinels; the seam between the search and a model, and its hyperparameters.

Axis legend, used in every docstring of the package:

    B  trees, one per prompt in flight          W  leaves per tree and step (1 = exact)
    N  node slots of a tree                     V  pages for visited nodes
    K  child slots of a visited node            L  tokens per token set (the longest)
    D  nodes on a path, root excluded           C  candidates drawn at a leaf
    R  tokens of a response                     E  width of a path embedding
    T  tokens of a call                         H  attention heads

`model` is the seam between the search and a model, `search_config` has the hyperparameters, `ranges`
what numbers of a configuration may be, `results` what a decoded response comes with.
"""

import jax

from rain_jax.types.model import (
  BestDraft,
  Commit,
  Drafter,
  Evaluation,
  Model,
  Request,
  Reviser,
  Rollout,
  check_evaluation,
  check_state,
)
from rain_jax.types.search_config import (
  MODES,
  VARIANTS,
  SearchConfig,
  adversarial_search,
  harmless_search,
  hyperparameters,
  truthful_search,
)

NO_NODE = -1  # no such node, in any array of node ids
NO_PAGE = -1  # the node was never visited
NO_TOKEN = -1  # padding after the end of a token set

# Why a text is finished, kept per node and reported per response.
RUNNING, EOS, STOP, LENGTH, EXHAUSTED, FAILED = 0, 1, 2, 3, 4, 5
FINISH_REASONS = ("running", "eos", "stop", "length", "exhausted", "failed")

# What the search asks of the model at one leaf.
IDLE, VISIT, GROW = 0, 1, 2

NOT_FINITE = "the model's output was not a finite number"  # an error of responses

__all__ = (
  "EOS",
  "EXHAUSTED",
  "FAILED",
  "FINISH_REASONS",
  "GROW",
  "IDLE",
  "LENGTH",
  "MODES",
  "NOT_FINITE",
  "NO_NODE",
  "NO_PAGE",
  "NO_TOKEN",
  "RUNNING",
  "STOP",
  "VARIANTS",
  "VISIT",
  "Array",
  "BestDraft",
  "Commit",
  "DataError",
  "Drafter",
  "Evaluation",
  "Model",
  "Request",
  "Reviser",
  "Rollout",
  "SearchConfig",
  "Stopped",
  "adversarial_search",
  "check_evaluation",
  "check_state",
  "harmless_search",
  "hyperparameters",
  "is_unicode",
  "never",
  "truthful_search",
)

Array = jax.Array


class DataError(ValueError):
  """Input that cannot be used; the message is one line and says what to do."""


def is_unicode(text: str) -> bool:
  """Whether a text can be written: JSON and command lines may hold half of a character."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def never() -> bool:
  """Nobody asks to stop."""
  return False


class Stopped(Exception):
  """Work was asked to stop, and did between two results; the same command goes on."""
