"""Counters of the work a language model does for a search (docs/architecture.md, section 4)."""

import flax
import jax.numpy as jnp

from rain_jax.types import Array

ROLES = ("context", "candidates", "rollout", "verdict")
CONTEXT, CANDIDATES, ROLLOUT, VERDICT = range(4)


class Usage(flax.struct.PyTreeNode):
  """Work done, kept in the loop (docs/architecture.md, section 4). `roles` are those of `ROLES`.

  Attributes:
    calls: int32[B, roles] sequential model calls in which the prompt had a token; one
      that decodes candidates and rollout together counts as candidates.
    tokens: int32[B, roles] tokens forwarded for the prompt.
    verdicts_read: int32[B] texts judged by the model, all readings in one call.
    verdicts_remembered: int32[B] texts whose verdict was known.
    run_calls: int32[B, roles] sequential calls since `init` of the batch that the slot is in.
    run_slots: int32[B, roles] the slot's token positions computed in them, padding included.
  """

  calls: Array
  tokens: Array
  verdicts_read: Array
  verdicts_remembered: Array
  run_calls: Array
  run_slots: Array

  def count(self, role: int, valid: Array, also: tuple[int, Array] | None = None) -> "Usage":
    """Counts one call with the tokens `valid` bool[B, ...], those of a second role apart."""
    rows = lambda mask: mask.reshape(mask.shape[0], -1).sum(-1)
    tokens = self.tokens.at[:, role].add(rows(valid))
    first, calls = rows(valid) > 0, self.calls
    each = lambda mask: mask.size // mask.shape[0]
    slots = self.run_slots.at[:, role].add(each(valid))
    if also is not None:
      second, mask = also
      tokens = tokens.at[:, second].add(rows(mask))
      calls = calls.at[:, second].add(~first & (rows(mask) > 0))
      slots = slots.at[:, second].add(each(mask))
    return self.replace(
      calls=calls.at[:, role].add(first),
      tokens=tokens,
      run_calls=self.run_calls.at[:, role].add(1),
      run_slots=slots,
    )


def no_usage(batch: int) -> Usage:
  """Counters of `batch` prompts, all zero."""
  zeros = lambda *shape: jnp.zeros(shape, jnp.int32)
  roles = len(ROLES)
  return Usage(
    calls=zeros(batch, roles),
    tokens=zeros(batch, roles),
    verdicts_read=zeros(batch),
    verdicts_remembered=zeros(batch),
    run_calls=zeros(batch, roles),
    run_slots=zeros(batch, roles),
  )
