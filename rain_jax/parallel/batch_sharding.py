"""Batches over the mesh axis `data`: every shard runs its own loops (docs/architecture.md, section 5).

`jax.shard_map` gives each shard its own trees. Its loops end when its own trees are done,
so that inside them no shard waits for another or speaks to one. How a model lies over the
other axes of the mesh is left to the compiler.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

DATA = "data"
ROWS, WHOLE = PartitionSpec(DATA), PartitionSpec()


def over_data(fn: Callable, mesh: Mesh | AbstractMesh, in_specs: Any, out_specs: Any) -> Callable:
  """`fn` on each shard of `data`; specs name no other axis (`ROWS` splits the first axis)."""
  return jax.shard_map(
    fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names={DATA}, check_vma=False
  )


@dataclasses.dataclass(frozen=True)
class BatchSharding:
  """How the state of a batch lies over a mesh; hashable, to be a static argument.

  Attributes:
    mesh: has an axis `data`.
    structure: of the state.
    leaves: how each of its arrays is split, over all axes of the mesh.
  """

  mesh: Mesh | AbstractMesh
  structure: Any
  leaves: tuple[PartitionSpec, ...]

  @classmethod
  def of(
    cls, mesh: Mesh | AbstractMesh, make: Callable[[int], Any], others: Callable[[Any], Any]
  ) -> "BatchSharding":
    """The sharding of the states that `make` returns for a batch of any size.

    Args:
      mesh: the mesh.
      make: a state with room for that many trees; evaluated abstractly. Each of its
        arrays has one axis that grows with the batch.
      others: from a state, a `PartitionSpec` of the same structure, over other axes.
    """
    one, two = (jax.eval_shape(lambda: make(batch)) for batch in (1, 2))

    def split(small, large, spec):
      axis = next(i for i, n in enumerate(large.shape) if n != small.shape[i])
      names = [*spec, *(None,) * (large.ndim - len(spec))]
      names[axis] = DATA
      return PartitionSpec(*names)

    specs = jax.tree.map(split, one, two, others(two))
    return cls(mesh, jax.tree.structure(specs), tuple(jax.tree.leaves(specs)))

  @property
  def shards(self) -> int:
    """How many parts the batch has."""
    return self.mesh.shape[DATA]

  @property
  def shardings(self) -> Any:
    """A `NamedSharding` for each array of the state."""
    return self.structure.unflatten([NamedSharding(self.mesh, spec) for spec in self.leaves])

  def map(self, fn: Callable, *specs: PartitionSpec) -> Callable:
    """`fn(state, *more) -> state` on each shard of `data`; `specs` are those of `more`."""
    keep = lambda spec: PartitionSpec(*(name if name == DATA else None for name in spec))
    state = self.structure.unflatten([keep(spec) for spec in self.leaves])
    mapped = over_data(fn, self.mesh, (state, *specs), state)
    # The next program finds the state where this one found it.
    place = lambda state: jax.lax.with_sharding_constraint(state, self.shardings)
    return lambda state, *more: place(mapped(state, *more))


def fetch(tree: Any) -> Any:
  """Arrays as numpy arrays, whole, also those of which other processes hold parts.

  All processes have to ask for the same, at the same point of the program.
  """
  arrays = [a for a in jax.tree.leaves(tree) if isinstance(a, jax.Array)]
  far = [a.sharding for a in arrays if not a.is_fully_addressable]
  meshes = [sharding.mesh for sharding in far if isinstance(sharding, NamedSharding)]
  return jax.device_get(_everywhere(meshes[0])(tree) if meshes else tree)


@functools.cache
def _everywhere(mesh: Mesh | AbstractMesh) -> Callable[[Any], Any]:
  return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, WHOLE))
