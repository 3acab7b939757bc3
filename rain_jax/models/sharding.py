"""Where parameters live on a mesh: logical axes of weights to mesh axes (design section 4)."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import nnx
from flax import traverse_util
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from rain_jax.models.llama import Model


@dataclasses.dataclass(frozen=True)
class Rules:
  """The mesh axis over which each logical axis is split; None keeps it whole."""

  layers: str | None = None
  vocab: str | None = "tensor"
  embed: str | None = None
  heads: str | None = "tensor"
  kv_heads: str | None = "tensor"
  head: str | None = None
  mlp: str | None = "tensor"


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """A tree of parameters as one level, keyed by paths such as 'layers/q/weight'."""
  return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  return traverse_util.unflatten_dict(flat, sep="/")


def logical_axes(model: Model) -> dict[str, tuple[str, ...]]:
  """The logical axes of each parameter, by its path; the model may be abstract."""
  _, state = nnx.split(nnx.merge(model.graphdef, model.params))
  return {"/".join(path): variable.axes for path, variable in nnx.to_flat_state(state)}


def partition_spec(
    axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh, rules: Rules = Rules()
) -> PartitionSpec:
  """How one parameter is split: every axis by its rule, if the mesh has that axis and it divides.

  An axis that the mesh axis does not divide stays whole: a model with fewer key-value heads than
  shards keeps all of them on every shard.
  """
  spec = []
  for axis, size in zip(axes, shape, strict=True):
    name = getattr(rules, axis)
    spec.append(name if name in mesh.shape and size % mesh.shape[name] == 0 else None)
  return PartitionSpec(*spec)


def make_mesh(tensor: int = 1) -> Mesh:
  """A mesh of all devices, axes 'data' and 'tensor', the latter of the given size.

  Raises:
    ValueError: the number of devices is not a multiple of `tensor`.
  """
  count = jax.device_count()
  if tensor < 1 or count % tensor:
    raise ValueError(f"tensor = {tensor} does not divide the {count} devices; choose a divisor")
  automatic = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh((count // tensor, tensor), ("data", "tensor"), axis_types=automatic)


def shardings(
    model: Model, mesh: Mesh | None, rules: Rules = Rules()
) -> Mapping[str, Sharding | Mapping]:
  """A sharding for each parameter, as a tree like `model.params`, which may be abstract.

  Without a mesh everything is for the default device.

  Raises:
    ValueError: the mesh has Explicit axes; the model leaves its activations to the compiler, which
      needs Auto ones, as `make_mesh` gives.
  """
  if mesh is None:
    single = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda _: single, model.params)
  if jax.sharding.AxisType.Explicit in mesh.axis_types:
    raise ValueError(f"mesh axes {mesh.axis_names} are {mesh.axis_types}, expected none Explicit")
  axes = logical_axes(model)
  return unflatten({
      path: NamedSharding(mesh, partition_spec(axes[path], leaf.shape, mesh, rules))
      for path, leaf in flatten(model.params).items()
  })


def shard(model: Model, mesh: Mesh, rules: Rules = Rules()) -> Model:
  """The model with its parameters moved to their places on the mesh."""
  return dataclasses.replace(
      model, params=jax.device_put(model.params, shardings(model, mesh, rules)))
