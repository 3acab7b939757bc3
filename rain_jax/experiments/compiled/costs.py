"""What a compiled program does: operations, bytes and collectives of one device, by phase.

Counted on the compiled text, after all that the compiler made of the program: an array that it
copies counts, one that it keeps on the chip does not. Loops over layers count as often as they turn.
A loop whose end depends on data (over tokens, over stretches of text) is a phase of its own, and its
cost that of one turn.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from rain_jax.experiments.compiled.hlo import Collective, Computation, Instruction, Program, Shape

# Names, and parts of names: nothing moves. What ends later is counted where it begins.
_FREE = frozenset(
  "parameter constant get-tuple-element tuple bitcast after-all partition-id iota opt-barrier"
  " copy-done slice-done async-done async-update all-reduce-done all-gather-done"
  " collective-permute-done".split()
)
_FREE_TARGETS = ("ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound")
_SAME = frozenset(("bitcast", "reshape", "transpose", "convert", "copy"))  # the same elements
_SLICES = frozenset(("dynamic-slice", "slice", "gather"))
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}  # and the operand that is written


@dataclasses.dataclass(frozen=True)
class Cost:
  """Work of one device.

  Attributes:
    flops: multiplications and additions of matrix products.
    moved: bytes read from and written to the device's memory.
    exchanged: number and bytes of collectives, by their kind and the mesh axes that they cross.
  """

  flops: float = 0.0
  moved: float = 0.0
  exchanged: Mapping[tuple[str, tuple[str, ...]], tuple[float, float]] = dataclasses.field(
    default_factory=dict
  )

  def __add__(self, other: "Cost") -> "Cost":
    exchanged = dict(self.exchanged)
    for key, (number, size) in other.exchanged.items():
      before = exchanged.get(key, (0.0, 0.0))
      exchanged[key] = (before[0] + number, before[1] + size)
    return Cost(self.flops + other.flops, self.moved + other.moved, exchanged)

  def times(self, number: float) -> "Cost":
    """As much, that often."""
    exchanged = {k: (number * n, number * size) for k, (n, size) in self.exchanged.items()}
    return Cost(number * self.flops, number * self.moved, exchanged)

  @property
  def exchanged_bytes(self) -> float:
    """Bytes of all collectives."""
    return sum(size for _, size in self.exchanged.values())


@dataclasses.dataclass(frozen=True)
class Movement:
  """An instruction that moves bytes, for those who look for the largest.

  Attributes:
    phase: that it belongs to.
    instruction: itself.
    moved: bytes, in all turns of the loops over layers around it.
  """

  phase: str
  instruction: Instruction
  moved: float


class Pricing:
  """The phases of a compiled program; see the module's text.

  Args:
    program: the compiled program.
    mesh: sizes of the mesh's axes by name; {"data": 1} on one device.
    loop_phase: from the scope of a loop whose end depends on data, its phase; None if it is none.
    once_phase: from the scope of an instruction in no such loop, its phase.
  """

  def __init__(
    self,
    program: Program,
    mesh: Mapping[str, int],
    loop_phase: Callable[[str], str | None],
    once_phase: Callable[[str], str],
  ):
    self._program, self._mesh = program, mesh
    self._loop_phase, self._once_phase = loop_phase, once_phase
    self._met: set[tuple] = set()  # collectives, which parts of a fusion name over again
    self.phases: dict[str, Cost] = {}
    self.movements: list[Movement] = []

  def price(self, computation: str, phase: str | None = None, scale: float = 1.0) -> None:
    """Adds what a computation does, all of it to `phase` if one is given."""
    for one in self._program.computations[computation].instructions.values():
      if one.opcode == "while":
        trips = self._program.trips(one)
        inner = phase or (
          self._phase_of_loop(one) if trips is None else self._once_phase(one.scope)
        )
        self.price(one.called["body"], inner, scale * (trips or 1))
      elif one.opcode in ("call", "async-start") and one.called:
        self.price(one.called.get("calls") or one.called["to_apply"], phase, scale)
      elif one.opcode == "conditional":
        for name in _branches(one.attributes):
          self.price(name, phase, scale)
      elif one.opcode not in _FREE:
        self._add(computation, one, phase or self._once_phase(one.scope), scale)

  def largest(self, number: int) -> list[Movement]:
    """The instructions that move most."""
    return sorted(self.movements, key=lambda one: -one.moved)[:number]

  def _phase_of_loop(self, loop: Instruction) -> str | None:
    """By most of what is in it: the compiler may have lost where the loop itself comes from.

    None of a loop that is no phase by itself, such as one around a whole iteration.
    """
    body = self._program.computations[loop.called["body"]].instructions.values()
    names = [self._loop_phase(one.scope) for one in body if one.scope] or [
      self._loop_phase(loop.scope)
    ]
    return max(dict.fromkeys(names), key=names.count)

  def _add(self, computation: str, one: Instruction, phase: str, scale: float) -> None:
    within = self._program.computations[computation]
    cost = Cost(self._flops(within, one), self._moved(within, one), self._exchanged(one)).times(
      scale
    )
    self.phases[phase] = self.phases.get(phase, Cost()) + cost
    if cost.moved:
      self.movements.append(Movement(phase, one, cost.moved))

  def _inside(self, one: Instruction) -> Iterator[tuple[Computation, Instruction]]:
    """An instruction's own computations, instruction by instruction."""
    if one.opcode == "fusion":
      called = self._program.computations[one.called["calls"]]
      for inner in called.instructions.values():
        yield called, inner
        yield from self._inside(inner)

  def _exchanged(self, one: Instruction) -> dict[tuple[str, tuple[str, ...]], tuple[float, float]]:
    found: dict[tuple[str, tuple[str, ...]], tuple[float, float]] = {}
    devices = math.prod(self._mesh.values())
    for each in (one, *(inner for _, inner in self._inside(one))):
      if each.collective:
        if each.meeting not in self._met:
          self._met.add(each.meeting)
          key = each.collective, Collective.of(each, devices).axes(self._mesh)
          before = found.get(key, (0.0, 0.0))
          size = max(shape.nbytes for shape in each.shapes)
          found[key] = before[0] + 1, before[1] + size
    return found

  # -- operations -------------------------------------------------------------------

  def _flops(self, within: Computation, one: Instruction) -> float:
    pairs = [(within, one), *self._inside(one)]
    return sum(_product_flops(around.instructions, each) for around, each in pairs)

  # -- bytes ------------------------------------------------------------------------

  def _moved(self, within: Computation, one: Instruction) -> float:
    if one.opcode == "copy-start":
      return one.shapes[0].moved + one.shapes[1].moved
    if one.opcode == "slice-start":
      source, part = one.shapes[:2]
      return part.moved + (part.nbytes if source.memory == 0 else 0.0)
    if one.opcode == "custom-call" and any(f'"{t}"' in one.attributes for t in _FREE_TARGETS):
      return 0.0
    return self._operands_read(within, one) + self._written(within, one)

  def _operands_read(self, within: Computation, one: Instruction) -> float:
    total = 0.0
    for number, name in enumerate(one.operands):
      source = within.instructions.get(name)
      if source is not None and len(source.shapes) == 1 and source.shapes[0].memory == 0:
        total += min(source.shapes[0].nbytes, self._use(one, number, source.shapes[0]))
    return total

  def _use(self, user: Instruction, number: int, shape: Shape) -> float:
    """Bytes that an instruction reads of its operand of that number."""
    if user.opcode in _SLICES and number == 0:
      return user.shapes[0].nbytes
    if user.opcode in _IN_PLACE and number == 0:
      return 0.0
    if user.opcode == "fusion":
      called = self._program.computations[user.called["calls"]]
      return self._uses(called, called.parameters[number], shape)
    return shape.nbytes

  def _uses(self, within: Computation, name: str, shape: Shape) -> float:
    """Bytes that a fused computation reads of one of its values."""
    total = 0.0
    for user in within.users.get(name, ()):
      if user.opcode == "tuple":  # handed on as it is
        continue
      if user.opcode in _SAME and user.name != within.root:
        total += self._uses(within, user.name, shape)
      else:
        numbers = (i for i, operand in enumerate(user.operands) if operand == name)
        total += sum(self._use(user, number, shape) for number in numbers)
    return min(total, shape.nbytes)

  def _written(self, within: Computation, one: Instruction) -> float:
    if one.opcode in _IN_PLACE:
      update = within.instructions[one.operands[_IN_PLACE[one.opcode]]]
      return update.shapes[0].nbytes if one.shapes[0].memory == 0 else 0.0
    if one.opcode != "fusion":
      return sum(shape.moved for shape in one.shapes)
    called = self._program.computations[one.called["calls"]]
    root = called.instructions[called.root]
    results = (
      [called.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    )
    if len(results) != len(one.shapes):
      return sum(shape.moved for shape in one.shapes)
    return sum(
      self._result(called, result, shape)
      for result, shape in zip(results, one.shapes)
      if shape.memory == 0
    )

  def _result(self, within: Computation, result: Instruction, shape: Shape) -> float:
    """Bytes that are written where a fused computation ends with `result`."""
    while result.opcode in _SAME and result.operands[0] in within.instructions:
      result = within.instructions[result.operands[0]]
    if result.opcode == "parameter":
      return 0.0 if result.shapes[0].dims == shape.dims else shape.nbytes
    if result.opcode in _IN_PLACE:
      return within.instructions[result.operands[_IN_PLACE[result.opcode]]].shapes[0].nbytes
    if result.opcode == "fusion" and len(result.shapes) == 1:
      called = self._program.computations[result.called["calls"]]
      return self._result(called, called.instructions[called.root], shape)
    return shape.nbytes


def _branches(attributes: str) -> list[str]:
  """The computations of a conditional, which XLA names one by one or as a list."""
  named = re.findall(r"(?:true|false)_computation=(%[\w.-]+)", attributes)
  listed = re.search(r"branch_computations=\{([^}]*)\}", attributes)
  return re.findall(r"%([\w.-]+)", " ".join([*named, listed[1] if listed else ""]))


def _product_flops(around: Mapping[str, Instruction], one: Instruction) -> float:
  """Operations of a matrix product, which TPUs do as a convolution; 0 of anything else."""
  if one.opcode not in ("dot", "convolution"):
    return 0.0
  left, right = (around[name].shapes[0] for name in one.operands[:2])
  (result,) = one.shapes
  if one.opcode == "dot":
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
    summed = [int(n) for n in found[1].split(",") if n] if found else []
    return 2.0 * math.prod(result.dims) * math.prod(left.dims[axis] for axis in summed)
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
  assert labels is not None
  size = lambda shape, names, label: shape.dims[names.index(label)]
  window = dict(re.findall(r"(\w+)=([\dx_-]+)", _window(one.attributes)))
  number = lambda key, axis, default: (
    int(window[key].split("x")[axis]) if key in window else default
  )
  total = 2.0 * size(result, labels[3], "b") * size(result, labels[3], "f")
  total *= size(right, labels[2], "i")
  for axis in range(sum(label.isdigit() for label in labels[1])):
    label = str(axis)
    before = int(window["pad"].split("x")[axis].split("_")[0]) if "pad" in window else 0
    spread = number("lhs_dilate", axis, 1)
    places = np.arange(size(result, labels[3], label))[:, None] * number("stride", axis, 1)
    places = places + np.arange(number("size", axis, 1)) * number("rhs_dilate", axis, 1) - before
    last = (size(left, labels[1], label) - 1) * spread
    total *= float(np.sum((places >= 0) & (places <= last) & (places % spread == 0)))
  groups = re.search(r"batch_group_count=(\d+)", one.attributes)
  return total / (int(groups[1]) if groups else 1)


def _window(attributes: str) -> str:
  found = re.search(r"window=\{([^}]*)\}", attributes)
  return found[1] if found else ""
