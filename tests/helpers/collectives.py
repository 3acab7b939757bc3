"""Which devices speak to each other in a compiled program."""

import dataclasses
import re

import numpy as np

_KINDS = r" ((?:ragged-)?all-[a-z-]+|collective-[a-z-]+|reduce-scatter)\("


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation.

  Attributes:
    kind: such as all-reduce.
    groups: numbers of the devices that take part together, in the mesh's order.
  """

  kind: str
  groups: list[list[int]]

  def within(self, mesh, axis):
    """Whether no device speaks to one at another place of the mesh's axis."""
    places = np.indices(mesh.devices.shape)[mesh.axis_names.index(axis)].reshape(-1)
    return all(len({int(places[device]) for device in group}) == 1 for group in self.groups)


def collectives(text, devices):
  """Every collective of a program's text for a number of devices, one that ends later once."""
  found = []
  for line in text.splitlines():
    kind = re.search(_KINDS, line)
    if kind and not kind[1].endswith("-done"):
      groups = [] if kind[1].startswith("collective-permute") else _groups(line, devices)
      found.append(Collective(kind[1].removesuffix("-start"), groups))
  return found


def _groups(line, devices):
  """The devices that take part in a collective of a compiled program, as lists.

  XLA writes them out, as a transposed range, or by names of a mesh's axes; none are all devices.
  """
  groups = re.search(r"replica_groups=(.*?)(, [a-z]\w*=|$)", line)[1]
  numbers = lambda text: [int(n) for n in text.split(",")]
  if groups == "{}":
    return [list(range(devices))]
  if found := re.fullmatch(r"\{(\{[\d,{}]*\})\}", groups):
    return [numbers(group) for group in re.findall(r"\{([\d,]+)\}", found[1])]
  if found := re.fullmatch(r"mesh\[([\w',=]+)\] \{([\w',]+)\}", groups):
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
    named = re.findall(r"'(\w+)'", found[2])
    ids = np.arange(np.prod(list(sizes.values()))).reshape(*sizes.values())
    within = [list(sizes).index(name) for name in named]
    count = np.prod([sizes[name] for name in named])
    return np.moveaxis(ids, within, range(-len(within), 0)).reshape(-1, count).tolist()
  shape, order, transpose = re.fullmatch(
    r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", groups
  ).groups()
  ids = np.arange(np.prod(numbers(order))).reshape(numbers(order))
  if transpose:
    ids = ids.transpose(numbers(transpose))
  return ids.reshape(numbers(shape)).tolist()
