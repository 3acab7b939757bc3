"""Parameters from the tensors of a checkpoint, in whatever format, straight into their shards.

A format brings a table of its names, `Layout`, and a way to read slices, `Tensors`. The host never
holds more than one parameter's shards.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

from rain_jax.models.config import ModelConfig
from rain_jax.models.llama import Model, abstract_model
from rain_jax.models.sharding import Rules, flatten, logical_axes, shardings, unflatten
from rain_jax.text.printable import one_line

Layout = Mapping[str, tuple[str, str]]
"""For each of our parameters a file's name and axes of its tensor, `a*b` being two axes as one."""


class CheckpointError(ValueError):
  """A checkpoint that is missing, incomplete or not what its config says.

  What its files hold may stand in the message, which is one printable line whatever that is.
  """

  def __init__(self, message: str):
    super().__init__(one_line(message, 1000))


class Tensors(Protocol):
  """The tensors of a checkpoint by their names there."""

  def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError unless the tensors are those expected, in name, shape and dtype."""

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """A slice of a tensor, in some float dtype."""


def assemble(
  config: ModelConfig,
  tensors: Tensors,
  layouts: Layout,
  *,
  param_dtype: Any,
  compute_dtype: Any,
  mesh: jax.sharding.Mesh | None,
  rules: Rules,
) -> Model:
  """A model from the tensors of its checkpoint, each shard read straight into place.

  Args:
    config: the model's.
    tensors: what the checkpoint has.
    layouts: how it names and lays out our parameters.
    param_dtype, compute_dtype, mesh, rules: see `hf.load`.

  Raises:
    CheckpointError: the tensors are not those of the config.
  """
  model = abstract_model(config, param_dtype=param_dtype, compute_dtype=compute_dtype)
  places = flatten(shardings(model, mesh, rules))
  tensors.check(_expected_shapes(model, layouts))
  reader = _Reader(model, tensors, layouts)
  loaded = {
    path: jax.make_array_from_callback(
      leaf.shape, places[path], functools.partial(reader.read, path)
    )
    for path, leaf in flatten(model.params).items()
  }
  return Model(config, model.graphdef, unflatten(loaded))


def dims_of(layout: str) -> list[list[str]]:
  """The axes of a tensor, each as the axes of ours that it merges."""
  return [dim.split("*") for dim in layout.split()]


def _merged_slice(sizes: list[int], slices: list[slice]) -> slice:
  """The slice of axes merged into one; only the first of them may be cut."""
  inner = math.prod(sizes[1:])
  if any(s.indices(n) != (0, n, 1) for n, s in zip(sizes[1:], slices[1:], strict=True)):
    raise ValueError(f"slices {slices} of merged axes {sizes}: only the first axis can be sharded")
  start, stop, _ = slices[0].indices(sizes[0])
  return slice(start * inner, stop * inner)


def _expected_shapes(model: Model, layouts: Layout) -> dict[str, tuple[int, ...]]:
  """Name and shape of every tensor that the checkpoint must have."""
  axes, expected = logical_axes(model), {}
  for path, leaf in flatten(model.params).items():
    if path not in layouts:
      continue  # The scales of int8 matrices are ours.
    name, layout = layouts[path]
    size = dict(zip(axes[path], leaf.shape, strict=True))
    shape = tuple(math.prod(size[axis] for axis in dim) for dim in dims_of(layout))
    for layer in range(size.get("layers", 1)):
      expected[name.format(layer=layer)] = shape
  return expected


def _read_layer(
  tensors: Tensors,
  place: tuple[str, str],
  layer: int,
  axes: tuple[str, ...],
  size: Mapping[str, int],
  cut: Mapping[str, slice],
) -> np.ndarray:
  """The part `cut` of one layer of a parameter at `place` of a `Layout`, axes ordered as `axes`."""
  name, layout = place
  dims = dims_of(layout)
  theirs = tuple(_merged_slice([size[a] for a in dim], [cut[a] for a in dim]) for dim in dims)
  split = [axis for dim in dims for axis in dim]
  shape = [len(range(*cut[axis].indices(size[axis]))) for axis in split]
  block = tensors.read(name.format(layer=layer), theirs).reshape(shape)
  # Not left for the first response to find: in 8 bits a NaN would become an innocent 0.
  _check_finite(block, name.format(layer=layer))
  return block.transpose([split.index(axis) for axis in axes])


def _check_finite(block: np.ndarray, name: str) -> None:
  if not np.isfinite(block.astype(np.float32, copy=False)).all():
    raise CheckpointError(
      f"tensor {name} holds values that are no finite numbers, or none in {block.dtype}; the"
      " checkpoint is damaged: download or convert it again"
    )


def quantize(weight: np.ndarray, inputs: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  """Symmetric int8 values of a matrix and the float32 scale of each output channel.

  Args:
    weight: float, any shape.
    inputs: its axes that are summed over; the others index the output channels.

  Returns:
    int8 values like `weight`, and scales with the axes `inputs` of size 1; their product is within
    half a scale of the weight.
  """
  weight = weight.astype(np.float32)
  highest = np.max(np.abs(weight), axis=inputs, keepdims=True)
  scale = np.where(highest > 0, highest / 127, 1).astype(np.float32)
  return np.rint(weight / scale).astype(np.int8), scale


class _Reader:
  """Reads any part of any parameter of a model from the tensors of its checkpoint."""

  def __init__(self, model: Model, tensors: Tensors, layouts: Layout):
    self._tensors = tensors
    self._layouts = layouts
    self._leaves = flatten(model.params)
    self._axes = logical_axes(model)

  def read(self, path: str, index: tuple[slice, ...]) -> np.ndarray:
    """The part `index` of the parameter `path`, in our layout and dtype."""
    leaf, axes = self._leaves[path], self._axes[path]
    cut = dict(zip(axes, index, strict=True))
    if "layers" not in axes:
      return self._read_layer(path, 0, cut)
    layers = range(*cut["layers"].indices(leaf.shape[0]))
    shape = [len(range(*part.indices(n))) for part, n in zip(index, leaf.shape, strict=True)]
    out = np.empty(shape, leaf.dtype)
    for i, layer in enumerate(layers):
      out[i] = self._read_layer(path, layer, cut)
    return out

  def _read_layer(self, path: str, layer: int, cut: Mapping[str, slice]) -> np.ndarray:
    place, _, kind = path.rpartition("/")
    source = f"{place}/weight" if kind == "channel_scale" else path
    size = dict(zip(self._axes[source], self._leaves[source].shape, strict=True))
    axes = tuple(axis for axis in self._axes[source] if axis != "layers")
    channels = self._axes.get(f"{place}/channel_scale")
    if kind == "bias" or channels is None:
      block = _read_layer(self._tensors, self._layouts[source], layer, axes, size, cut)
      small = block.astype(self._leaves[path].dtype, copy=False)
      if small is not block:  # it may hold less
        _check_finite(small, self._layouts[source][0].format(layer=layer))
      return small
    # A channel's scale needs all of its inputs, also where a shard keeps only some of them.
    whole = {axis: cut[axis] if axis in channels else slice(None) for axis in axes}
    block = _read_layer(self._tensors, self._layouts[source], layer, axes, size, whole)
    inputs = tuple(i for i, axis in enumerate(axes) if axis not in channels)
    values, scale = quantize(block, inputs)
    if path != source:
      return scale.squeeze(inputs)
    return values[tuple(slice(None) if axis in channels else cut[axis] for axis in axes)]
