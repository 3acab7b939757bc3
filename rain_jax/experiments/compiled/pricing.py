"""From the text of a compiled program to the least time that its phases take on a chip."""

import dataclasses
import math
from collections.abc import Mapping

import jax

from rain_jax.experiments.compiled import hlo
from rain_jax.experiments.compiled.chips import Chip
from rain_jax.experiments.compiled.costs import Cost, Movement, Pricing

# Named scopes of the search (docs/architecture.md, section 4) by the phase that they are priced in.
_LOOPS = {
  "draft/read_context": "draft context",
  "draft/rollout": "draft",
  "draft/self_evaluation": "draft verdict",
  "candidates": "candidates",
  "rollout": "rollout",
  "self_evaluation": "verdict",
}
_ONCE = {"read_leaves": "context"}
PHASES = ("sampling", "step", *_ONCE.values(), *_LOOPS.values())
"""Names of all phases."""


@dataclasses.dataclass(frozen=True)
class Priced:
  """A compiled program, read.

  Attributes:
    phases: cost of one turn of each phase on one device. Of a search: `context`, `candidates`,
      `rollout` and `verdict` are model calls, and so are `draft context`, `draft` and
      `draft verdict` of drafts; `step` is the rest of a step. Of sampling: a token's.
    largest: the instructions that move most.
  """

  phases: Mapping[str, Cost]
  largest: list[Movement]


def price(compiled: jax.stages.Compiled, mesh: Mapping[str, int], sampling: bool) -> Priced:
  """Prices what the loops at the entry of a search's or of sampling's program do in a turn.

  Args:
    compiled: the program.
    mesh: sizes of the mesh's axes by name.
    sampling: it is vanilla decoding, all of whose turns are alike.
  """
  program = hlo.parse(compiled.as_text() or "")
  phase = lambda table, scope: next((p for s, p in table.items() if f"/{s}/" in scope), None)
  pricing = Pricing(
    program, mesh, lambda scope: phase(_LOOPS, scope), lambda scope: phase(_ONCE, scope) or "step"
  )
  for one in program.computations[program.entry].instructions.values():
    if one.opcode == "while" and program.trips(one) is None:
      pricing.price(one.called["body"], "sampling" if sampling else None)
  return Priced(pricing.phases, pricing.largest(20))


def seconds(cost: Cost, chip: Chip) -> tuple[float, str]:
  """The least time for some work on one chip, and what bounds it: operations, memory or exchange."""
  bounds = {
    "operations": cost.flops / chip.flops,
    "memory": cost.moved / chip.bandwidth,
    "exchange": cost.exchanged_bytes / chip.interconnect,
  }
  bound = max(bounds, key=lambda name: bounds[name])
  return bounds[bound], bound


def together(phases: Mapping[str, Cost], turns: Mapping[str, float], chip: Chip) -> float:
  """The least time for so many turns of each phase."""
  return math.fsum(seconds(cost, chip)[0] * turns.get(name, 0.0) for name, cost in phases.items())
