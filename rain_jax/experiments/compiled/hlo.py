"""The text of a compiled program: its computations, and which devices take part in its collectives.

XLA prints a program that is compiled as computations of instructions (openxla.org/xla, "HLO"). Only
what pricing it needs is read: shapes with the memory that they are in, operands, attributes.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}  # else the name says them
_SHAPE = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"(ROOT )?%?([\w.-]+) = ")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(r"(calls|body|condition|to_apply)=%?([\w.-]+)")
_NAME = re.compile(r"%([\w.-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_KINDS = re.compile(r"(?:ragged-)?all-[a-z-]+|collective-[a-z-]+|reduce-scatter")


@dataclasses.dataclass(frozen=True)
class Shape:
  """One array.

  Attributes:
    dtype: as XLA names it, such as bf16.
    dims: its sizes.
    memory: the space it is in; 0 is the device's main memory, any other lies on the chip.
    order: its axes, the one along which neighbours lie first.
    tile: sizes to which the first of them, from the last on, are padded.
  """

  dtype: str
  dims: tuple[int, ...]
  memory: int = 0
  order: tuple[int, ...] = ()
  tile: tuple[int, ...] = ()

  @property
  def elements(self) -> int:
    """How many there is room for: a tiled layout pads its last axes to whole tiles."""
    sizes = [self.dims[axis] for axis in self.order]
    if len(sizes) < max(len(self.tile), 1):
      return math.prod(self.dims)
    padded = [-(-size // unit) * unit for size, unit in zip(sizes, reversed(self.tile))]
    return math.prod(padded + sizes[len(padded) :])

  @property
  def nbytes(self) -> float:
    """Its bytes."""
    bits = _BITS.get(self.dtype)
    if bits is None:
      bits = int(re.findall(r"\d+", self.dtype)[0])
    return self.elements * bits / 8

  @property
  def moved(self) -> float:
    """Its bytes if it is in main memory, else 0."""
    return self.nbytes if self.memory == 0 else 0.0


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction.

  Attributes:
    name: of its result.
    opcode: such as fusion.
    shapes: of its results, those of nested tuples in order.
    operands: names of the instructions that it reads.
    inside: the text between its parentheses.
    attributes: the text after them.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  inside: str
  attributes: str

  @functools.cached_property
  def called(self) -> Mapping[str, str]:
    """Computations that it runs, by what they are to it, such as body."""
    return dict(_CALLED.findall(self.attributes))

  @property
  def scope(self) -> str:
    """Where in the traced program it comes from, such as jit(f)/while/body/add."""
    found = _OP_NAME.search(self.attributes)
    return found[1] if found else ""

  @property
  def collective(self) -> str | None:
    """Its kind if devices speak to each other in it; one that ends later counts where it begins."""
    kind = _KINDS.fullmatch(self.opcode)
    if kind is None or self.opcode.endswith("-done"):
      return None
    return self.opcode.removesuffix("-start")

  @property
  def meeting(self) -> tuple:
    """What tells one collective from others, though several parts of a fusion may name it.

    Its channel does not: those that `jax.shard_map` spells out may share one.
    """
    channel = re.search(r"channel_id=(\d+)", self.attributes)
    return (channel[1], self.scope, self.shapes) if channel else (self.name,)


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions by name, in order, and the last one's name."""

  name: str
  instructions: Mapping[str, Instruction]
  root: str

  @functools.cached_property
  def parameters(self) -> Mapping[int, str]:
    """Names of its parameters by number."""
    found = (i for i in self.instructions.values() if i.opcode == "parameter")
    return {int(i.inside): i.name for i in found}

  @functools.cached_property
  def users(self) -> Mapping[str, list[Instruction]]:
    """The instructions that read each result."""
    found: dict[str, list[Instruction]] = {}
    for one in self.instructions.values():
      for name in dict.fromkeys(one.operands):
        found.setdefault(name, []).append(one)
    return found


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program: computations by name, and the name of the one that is its entry."""

  computations: Mapping[str, Computation]
  entry: str

  def trips(self, loop: Instruction) -> int | None:
    """How often a while loop turns if the compiler or the loop's condition says so, else None.

    Loops over layers count from 0 up to a constant.
    """
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
      return int(known[1])
    condition = self.computations[loop.called["condition"]]
    test = condition.instructions[condition.root]
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
      return None
    limit = condition.instructions[test.operands[1]]
    return int(limit.inside) if limit.opcode == "constant" else None


def parse(text: str) -> Program:
  """Reads the text of a compiled program, as `jax.stages.Compiled.as_text` gives it."""
  computations: dict[str, Computation] = {}
  entry, name, root = "", "", ""
  inside: dict[str, Instruction] | None = None
  for line in text.splitlines():
    if inside is None:
      if found := _COMPUTATION.fullmatch(line):
        name, inside = found[2], {}
        entry = name if found[1] else entry
    elif line.startswith("}"):
      computations[name] = Computation(name, inside, root)
      inside = None
    elif head := _HEAD.match(line.strip()):
      one = _instruction(head[2], line.strip()[head.end() :])
      inside[one.name] = one
      if head[1]:
        root = one.name
  return Program(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
  end = _matching(text, 0) if text.startswith("(") else text.index(" ")
  shapes, rest = _shapes(text[:end]), text[end:].lstrip()
  begin = rest.index("(")
  close = _matching(rest, begin)
  inside = rest[begin + 1 : close - 1]
  return Instruction(name, rest[:begin], shapes, tuple(_NAME.findall(inside)), inside, rest[close:])


def _matching(text: str, begin: int) -> int:
  """The place after the parenthesis that closes the one at `begin`."""
  depth = 0
  for found in re.finditer(r"[()]", text[begin:]):
    depth += 1 if found[0] == "(" else -1
    if depth == 0:
      return begin + found.end()
  raise ValueError(f"no end of {text[begin : begin + 60]!r} in a compiled program.")


def _shapes(text: str) -> tuple[Shape, ...]:
  def one(dtype: str, dims: str, layout: str) -> Shape:
    place, tile = re.search(r"S\((\d+)\)", layout), re.search(r"T\(([\d,]+)\)", layout)
    numbers = lambda text: tuple(int(n.lstrip("<=")) for n in text.split(",") if n)
    order = numbers(layout.partition(":")[0])
    return Shape(
      dtype,
      numbers(dims),
      int(place[1]) if place else 0,
      order,
      numbers(tile[1]) if tile and order else (),
    )

  return tuple(one(*found) for found in _SHAPE.findall(text))


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation.

  Attributes:
    kind: such as all-reduce.
    groups: numbers of the devices that take part together, in the mesh's order.
  """

  kind: str
  groups: tuple[tuple[int, ...], ...]

  @classmethod
  def of(cls, instruction: Instruction, devices: int) -> "Collective":
    """What an instruction with a `collective` does in a program for that many devices."""
    kind = instruction.collective
    assert kind is not None
    if kind == "collective-permute":
      pairs = re.search(r"source_target_pairs=\{(.*?)\}(?:,|$)", instruction.attributes)
      found = re.findall(r"(\d+),(\d+)", pairs[1]) if pairs else []
      return cls(kind, tuple((int(a), int(b)) for a, b in found))
    return cls(kind, _groups(instruction.attributes, devices))

  def axes(self, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of a mesh, given as sizes by name, along which its devices speak to each other."""
    places = np.indices(tuple(mesh.values())).reshape(len(mesh), -1)
    apart = lambda axis: any(
      len({int(places[axis, device]) for device in group}) > 1 for group in self.groups
    )
    return tuple(name for axis, name in enumerate(mesh) if apart(axis))


def collectives(program: Program, devices: int) -> list[Collective]:
  """Every collective of a program, one that several parts of a fusion name once."""
  found: dict[tuple, Collective] = {}
  for computation in program.computations.values():
    for one in computation.instructions.values():
      if one.collective:
        found[one.meeting] = Collective.of(one, devices)
  return list(found.values())


def _groups(attributes: str, devices: int) -> tuple[tuple[int, ...], ...]:
  """The devices that take part in a collective together.

  XLA writes them out, as a transposed range, or by names of a mesh's axes; none are all devices.
  """
  written = re.search(r"replica_groups=(.*?)(, [a-z]\w*=|$)", attributes)
  groups = written[1] if written else "{}"
  numbers = lambda text: [int(n) for n in text.split(",")]
  tuples = lambda rows: tuple(tuple(int(n) for n in row) for row in rows)
  if groups == "{}":
    return (tuple(range(devices)),)
  if found := re.fullmatch(r"\{(\{[\d,{}]*\})\}", groups):
    return tuples(numbers(group) for group in re.findall(r"\{([\d,]+)\}", found[1]))
  if found := re.fullmatch(r"mesh\[([\w',=]+)\] \{([\w',]+)\}", groups):
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
    within = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", found[2])]
    return tuples(_along(np.arange(math.prod(sizes.values())), tuple(sizes.values()), within))
  ranged = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", groups)
  if ranged is None:
    raise ValueError(f"replica_groups={groups} of a collective cannot be read.")
  shape, order, transpose = ranged.groups()
  ids = np.arange(math.prod(numbers(order))).reshape(numbers(order))
  if transpose:
    ids = ids.transpose(numbers(transpose))
  return tuples(ids.reshape(numbers(shape)))


def _along(ids: np.ndarray, shape: tuple[int, ...], within: Sequence[int]) -> np.ndarray:
  """Rows of the devices that differ along the axes `within` of a mesh alone."""
  last = np.moveaxis(ids.reshape(shape), within, range(-len(within), 0))
  return last.reshape(-1, math.prod(shape[axis] for axis in within))
