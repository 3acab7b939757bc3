"""Decoding: responses in slots that refill, a step at a time, until each has ended.

`outer_loop` runs the steps, `exact` is the method's own, `drafting` has segment-level rejection and
the adaptive mode, `state` is what they work on.
"""

from rain_jax.decode.exact import commit, iterate, move, trusted
from rain_jax.decode.outer_loop import (
  NOT_YET,
  advance,
  refill_slots,
  result,
  rounds,
  serve,
  step,
)
from rain_jax.decode.state import DecodeState, init, reset_slots
from rain_jax.types.results import Result

__all__ = (
  "NOT_YET",
  "DecodeState",
  "Result",
  "advance",
  "commit",
  "init",
  "iterate",
  "move",
  "refill_slots",
  "reset_slots",
  "result",
  "rounds",
  "serve",
  "step",
  "trusted",
)
