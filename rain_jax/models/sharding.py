"""Where parameters live on a mesh: logical axes of weights to mesh axes (docs/architecture.md, section 5)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx, traverse_util
from jax.sharding import (
  AbstractMesh,
  Mesh,
  NamedSharding,
  PartitionSpec,
  SingleDeviceSharding,
)

from rain_jax.models.llama import Model, Params, input_axes

AnyMesh = Mesh | AbstractMesh
Axes = str | tuple[str, ...] | None
"""Mesh axes over which one axis of an array is split, the major one first."""


@dataclasses.dataclass(frozen=True)
class Rules:
  """The mesh axes over which each logical axis is split; None keeps it whole.

  With fewer key-value heads than shards, the shards that share one stand side by side on the
  mesh axis 'queries': each holds that head, and query heads of its own.
  """

  layers: Axes = None
  vocab: Axes = ("tensor", "queries")
  embed: Axes = None
  heads: Axes = ("tensor", "queries")
  kv_heads: Axes = "tensor"
  head: Axes = None
  mlp: Axes = ("tensor", "queries")


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """A tree of parameters as one level, keyed by paths such as 'layers/q/weight'."""
  return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  return traverse_util.unflatten_dict(flat, sep="/")


def logical_axes(model: Model) -> dict[str, tuple[str, ...]]:
  """The logical axes of each parameter, by its path; the model may be abstract.

  Of a model whose layers are taken apart those of any one layer, its matrices as outputs x inputs.
  """
  apart = isinstance(model.params["layers"], tuple)
  _, state = nnx.split(nnx.merge(model.graphdef, _of_one_layer(model.params)))
  found = {}
  for keys, variable in nnx.to_flat_state(state):
    path, axes = tuple(map(str, keys)), variable.axes
    if apart and path[0] == "layers":
      axes = tuple(axis for axis in axes if axis != "layers")
      count = input_axes(path[1]) if path[-1] == "weight" else 0
      axes = axes[count:] + axes[:count]
    found["/".join(path)] = axes
  return found


def _of_one_layer(params: Params) -> Params:
  """The parameters with one layer's in place of a tuple of them, all of which are alike."""
  layers = params["layers"]
  return {**params, "layers": layers[0]} if isinstance(layers, tuple) else params


def partition_spec(
  axes: tuple[str, ...], shape: tuple[int, ...], mesh: AnyMesh, rules: Rules = Rules()
) -> PartitionSpec:
  """How one parameter is split: every axis by its rule, over what the mesh has and what divides it.

  An axis that the mesh axis does not divide stays whole: a mesh that was made without regard to
  a model's key-value heads may keep all of them on every shard.
  """
  return PartitionSpec(
    *(split(size, getattr(rules, axis), mesh) for axis, size in zip(axes, shape, strict=True))
  )


def shards(rule: Axes, mesh: AnyMesh) -> int:
  """Into how many parts a rule splits an axis."""
  return math.prod(mesh.shape[name] for name in ((rule,) if isinstance(rule, str) else rule or ()))


def split(size: int, rule: Axes, mesh: AnyMesh) -> Axes:
  """The leading mesh axes of a rule that divide an axis of the given size, None if none does."""
  names = [
    name for name in ((rule,) if isinstance(rule, str) else rule or ()) if name in mesh.shape
  ]
  while names and size % shards(tuple(names), mesh):
    names.pop()
  return (names[0] if len(names) == 1 else tuple(names)) if names else None


def make_mesh(
  tensor: int = 1,
  data: int = -1,
  kv_heads: int | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh of devices: 'data' for trees, 'tensor' for the parts of a model.

  Args:
    tensor: shards of the model; -1 for as many as `data` leaves devices for.
    data: shards of a batch of trees; -1 likewise.
    kv_heads: key-value heads of the model. If they are fewer than its shards, an axis 'queries'
      is split off 'tensor', over which they are not split; see `Rules`.
    devices: all devices by default.

  Raises:
    ValueError: the sizes do not make up the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  shape = mesh_shape(len(devices), tensor, data, kv_heads)
  automatic = (jax.sharding.AxisType.Auto,) * len(shape)
  return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=automatic, devices=devices)


def mesh_shape(
  count: int, tensor: int = 1, data: int = -1, kv_heads: int | None = None
) -> dict[str, int]:
  """Names and sizes of the axes of a mesh of `count` devices; see `make_mesh`."""
  fill = lambda size, other: count // other if size == -1 and other > 0 else size
  if data == tensor == -1 or fill(data, tensor) * fill(tensor, data) != count:
    raise ValueError(
      f"mesh of data = {data}, tensor = {tensor}: expected sizes whose product is the {count}"
      " devices, or -1 for one of them"
    )
  data, tensor = fill(data, tensor), fill(tensor, data)
  shared = math.gcd(tensor, kv_heads or tensor)
  shape = {"data": data, "tensor": shared, "queries": tensor // shared}
  return {name: size for name, size in shape.items() if name != "queries" or size > 1}


def shardings(model: Model, mesh: AnyMesh | None, rules: Rules = Rules()) -> Mapping[str, Any]:
  """A sharding for each parameter, as a tree like `model.params`, which may be abstract.

  Without a mesh everything is for the default device. On a mesh layers that are taken apart have
  their matrices as outputs x inputs (`models.unstack`).

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
  places = unflatten(
    {
      path: NamedSharding(mesh, partition_spec(axes[path], leaf.shape, mesh, rules))
      for path, leaf in flatten(_of_one_layer(model.params)).items()
    }
  )
  layers = model.params["layers"]
  if isinstance(layers, tuple):
    places["layers"] = (places["layers"],) * len(layers)
  return places


def shard(model: Model, mesh: Mesh, rules: Rules = Rules()) -> Model:
  """The model with its parameters moved to their places on the mesh."""
  return dataclasses.replace(
    model, params=jax.device_put(model.params, shardings(model, mesh, rules))
  )
