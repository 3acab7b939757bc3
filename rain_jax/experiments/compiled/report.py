"""Tables of what was compiled and priced."""

from collections.abc import Iterator, Sequence

from rain_jax.experiments.compiled import counts
from rain_jax.experiments.compiled.costs import Cost
from rain_jax.experiments.compiled.counts import Counts
from rain_jax.experiments.compiled.job import Compiled, Target
from rain_jax.experiments.compiled.pricing import PHASES, seconds, together
from rain_jax.text.columns import aligned


def head(target: Target) -> str:
  """What is compiled for what."""
  shape = " x ".join(f"{name} {size}" for name, size in target.mesh.shape.items())
  chip = target.chip
  return (
    f"{target.model}, {target.dtype}, {target.topology} ({shape}), {target.batch} prompts side by"
    f" side\n{chip.name}: {chip.flops / 1e12:.0f} TFLOP/s, {chip.memory / 1e9:.0f} GB,"
    f" {chip.bandwidth / 1e9:.0f} GB/s, between chips {chip.interconnect / 1e9:.0f} GB/s"
    f" ({chip.source})"
  )


def compiling(programs: Sequence[Compiled]) -> str:
  """Seconds to compile, and bytes of each device by the compiler beside the plan's."""
  mib = lambda size: "-" if size is None else f"{size / 2**20:,.0f}"
  lines = [["method", "program", "lower s", "compile s", "plan MiB", "compiler MiB", "plan is"]]
  for one in programs:
    planned = one.planned if one.program == "search" else None
    off = f"{100 * (planned / one.needed - 1):+.1f}%" if planned and one.needed else "-"
    lines.append(
      [
        one.method,
        one.program,
        f"{one.lowering:.1f}",
        f"{one.compiling:.1f}",
        mib(planned),
        mib(one.needed),
        off,
      ]
    )
  return aligned(lines)


def phases(target: Target, programs: Sequence[Compiled]) -> str:
  """Work of one turn of each phase on each chip, and the least time for it."""
  lines = [
    ["method", "phase", "GFLOP", "MB moved", "x floor", "exchanged", "ms at least", "bound by"]
  ]
  for one in programs:
    search = target.searches.get(one.method, next(iter(target.searches.values())))
    floor = target.floor(search)
    for name in PHASES:
      cost = one.priced.phases.get(name) if one.priced else None
      if cost is None:
        continue
      least, bound = seconds(cost, target.chip)
      lines.append(
        [
          one.method,
          name,
          f"{cost.flops / 1e9:,.1f}",
          f"{cost.moved / 1e6:,.0f}",
          "-" if name == "step" else f"{cost.moved / floor:.2f}",
          exchanged(cost),
          f"{1000 * least:.3f}",
          bound,
        ]
      )
  return aligned(lines)


def exchanged(cost: Cost) -> str:
  """Collectives: their number, kind, axes and bytes."""
  found = [
    f"{number:.0f} {kind} over {'+'.join(axes) or 'none'} {size / 1e6:,.1f} MB"
    for (kind, axes), (number, size) in sorted(cost.exchanged.items())
  ]
  return ", ".join(found) or "none"


def speeds(
  target: Target, programs: Sequence[Compiled], verdicts: Sequence[str], mixed_share: float
) -> str:
  """Tokens a second of each chip at most, vanilla beside the searches, by counts of a small model."""
  lines = [["method", "verdicts", "calls/token", "us/token at least", "tokens/s/chip", "x vanilla"]]
  vanilla = None
  for one, verdict, found in _counted(target, programs, verdicts, mixed_share):
    if found is None:
      lines.append([one.method, verdict, "drafts and searches", "-", "-", "-"])
      continue
    assert one.priced is not None
    least = together(one.priced.phases, found.turns, target.chip) / found.tokens
    vanilla = least if one.method == "vanilla" else vanilla
    calls = sum(n for name, n in found.turns.items() if name != "step") * target.rows
    lines.append(
      [
        one.method,
        verdict,
        f"{calls / found.tokens:.2f}",
        f"{1e6 * least:,.1f}",
        f"{1 / least / target.chips:,.1f}",
        f"{least / vanilla:.2f}" if vanilla else "-",
      ]
    )
  return aligned(lines)


def _counted(
  target: Target, programs: Sequence[Compiled], verdicts: Sequence[str], mixed_share: float
) -> Iterator[tuple[Compiled, str, Counts | None]]:
  for one in programs:
    if one.priced is None:
      continue
    if one.program == "sampling":
      yield one, "-", counts.sampling(target.workload, target.rows)
      continue
    search = target.searches[one.method]
    for verdict in verdicts:
      yield (
        one,
        verdict,
        counts.searching(target.workload, target.rows, search, verdict, mixed_share),
      )


def movements(programs: Sequence[Compiled], number: int) -> str:
  """The instructions of each program that move most."""
  lines = [["method", "phase", "MB", "instruction", "result", "from"]]
  for one in programs:
    for move in one.priced.largest[:number] if one.priced else ():
      shape = max(move.instruction.shapes, key=lambda s: s.nbytes)
      lines.append(
        [
          one.method,
          move.phase,
          f"{move.moved / 1e6:,.0f}",
          move.instruction.opcode,
          f"{shape.dtype}[{','.join(map(str, shape.dims))}]",
          move.instruction.scope.rpartition("body/")[2] or "-",
        ]
      )
  return aligned(lines)
