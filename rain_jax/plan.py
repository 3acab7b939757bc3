"""How much memory a search will need, before anything is compiled or allocated.

What stays (weights, prefixes, caches, trees) is exact: its shapes come from the functions
that will make it, evaluated abstractly. What comes and goes inside a step is a formula:
the largest of its phases, each the buffers that are alive together in it (design section 4).
"""

import dataclasses
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import decode
from rain_jax.models import Model
from rain_jax.policy import LanguageModel

_LOGIT_COPIES = 3  # logits, and what sampling makes of them


@dataclasses.dataclass(frozen=True)
class Plan:
  """Bytes by what they are for.

  Attributes:
    parts: name -> bytes, in the order in which they are printed.
    batch: trees side by side.
  """

  parts: dict[str, int]
  batch: int

  @property
  def total(self) -> int:
    """All parts together."""
    return sum(self.parts.values())

  def table(self) -> str:
    """One line per part, and the total."""
    lines = [*self.parts.items(), ("total", self.total)]
    return "\n".join(f"{name:<34}{size / 2**20:>12,.1f} MiB" for name, size in lines)


def nbytes(tree: Any) -> int:
  """Bytes of all arrays, or shapes of arrays, in a tree; random keys are two words each."""

  def size(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return 8 * leaf.size
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize

  return sum(map(size, jax.tree.leaves(tree)))


def plan(model: Model, lm: LanguageModel, batch: int, proposing_prefix: int = 0) -> Plan:
  """The memory of a search for `batch` prompts side by side, on one device.

  Args:
    model: the language model; an abstract one (`models.llama.abstract_model`) costs nothing.
    lm: the static part, with search, preference and limits.
    batch: trees side by side (B).
    proposing_prefix: tokens of the fixed prefix before every prompt.
  """
  config = lm.config
  kv_dtype = jnp.bfloat16 if _computes_in_bfloat16(model) else jnp.float32
  token = 2 * config.num_layers * config.num_kv_heads * config.head_size * np.dtype(kv_dtype).itemsize
  state = jax.eval_shape(
      lambda: decode.init(
          batch, lm.init(batch, kv_dtype), lm.search, lm.embedding_size, lm.max_response
      )
  )
  policy = state.model
  contexts = nbytes((policy.proposing.context, policy.judging.context))
  pools = nbytes((policy.proposing.pool, policy.judging.pool))
  prefixes = proposing_prefix + len(lm.preference.prefix_ids)
  parts = {
      "weights": nbytes(model.params),
      "prefixes": token * prefixes,
      "vocabulary tables": 40 * config.vocab_size,
      "contexts of both caches": contexts,
      "visited nodes of both caches": pools,
      "trees": nbytes(state.tree),
      "texts, hidden states, verdicts": nbytes(state) - contexts - pools - nbytes(state.tree),
      "temporaries of a step": temporaries(lm, batch, token, proposing_prefix),
  }
  return Plan(parts, batch)


def _computes_in_bfloat16(model: Model) -> bool:
  return any(leaf.dtype in (jnp.bfloat16, jnp.int8) for leaf in jax.tree.leaves(model.params))


def temporaries(lm: LanguageModel, batch: int, token: int, proposing_prefix: int) -> int:
  """Bytes of the largest phase of one step; `token` is the bytes of a token's keys and values.

  A phase holds the gathered path of each leaf (as read, and in the order in which attention
  reads it), the scratch of its rows, the keys and values of its new tokens, and the largest
  of what one layer's attention or one unembedding needs.
  """
  search, R, L = lm.search, lm.max_response, lm.search.set_size
  leaves, path = batch * search.leaves, search.max_path * L
  gathered = 2 * token * leaves * path
  context = lm.max_prompt + R + L + path
  rows = 2 + search.sampled_draws
  asked = lm.read_chunk + sum(map(len, lm.preference.suffix_ids))
  readings = len(lm.preference.suffix_ids)

  def arithmetic(tokens: int, seen: int, logits: int) -> int:
    """Attention and MLP of one layer, then the logits, of `tokens` of every leaf."""
    config = lm.config
    scores = config.num_heads * seen
    widths = 3 * config.intermediate_size + 6 * config.hidden_size
    layer = tokens * (scores + widths)
    return 4 * leaves * max(layer, _LOGIT_COPIES * logits * config.vocab_size)

  together = token * leaves * rows * L
  decoding = together + arithmetic(rows, proposing_prefix + context + L, rows)
  rolling = together + token * leaves * R + arithmetic(1, proposing_prefix + context + R, 1)
  seen = len(lm.preference.prefix_ids) + context + R + asked
  judging = token * leaves * (R + asked) + arithmetic(asked, seen, readings)
  return gathered + max(decoding, rolling, judging)


def bytes_available() -> int:
  """Bytes of the first device's memory, or of the host's where devices have none of their own."""
  stats = jax.devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"]
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check(needed: Plan, available: int) -> None:
  """Stops a run that cannot fit.

  Raises:
    ValueError: one line that says how much is missing, and what to lower.
  """
  if needed.total <= available:
    return
  if needed.parts["weights"] > available:
    lower = "model.dtype (bfloat16, int8)"
  else:
    fixed = sum(needed.parts[name] for name in ("weights", "prefixes", "vocabulary tables"))
    fits = (available - fixed) * needed.batch // max(1, needed.total - fixed)
    lower = f"batch_size to {fits}" if fits else "search.max_visited"
    lower += ", or limits.max_prompt, limits.max_response, search.max_visited or model.dtype"
  raise ValueError(
      f"{needed.total / 2**30:.1f} GiB needed for batch_size={needed.batch},"
      f" {available / 2**30:.1f} GiB available: lower {lower}."
  )
