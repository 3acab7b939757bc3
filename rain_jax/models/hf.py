"""Weights and configs in the Hugging Face format: safetensors and JSON, nothing that runs code.

Names map to ours in the table `LAYOUT`. Tensors are read slice by slice, straight into the shards
of their stacked array, so that the host never holds more than one parameter's shards.
"""

import contextlib
import functools
import json
import logging
import math
import pathlib
import re
import textwrap
from collections.abc import Mapping
from typing import Any

import huggingface_hub
import huggingface_hub.errors
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from rain_jax.models.config import ModelConfig
from rain_jax.models.llama import Model, Params, abstract_model
from rain_jax.models.sharding import Rules, flatten, logical_axes, shardings, unflatten

_LOG = logging.getLogger(__name__)

_LAYER = "model.layers.{layer}."

LAYOUT: Mapping[str, tuple[str, str]] = {
  "embedding/weight": ("model.embed_tokens.weight", "vocab embed"),
  "layers/attention_norm/scale": (_LAYER + "input_layernorm.weight", "embed"),
  "layers/q/weight": (_LAYER + "self_attn.q_proj.weight", "heads*head embed"),
  "layers/q/bias": (_LAYER + "self_attn.q_proj.bias", "heads*head"),
  "layers/k/weight": (_LAYER + "self_attn.k_proj.weight", "kv_heads*head embed"),
  "layers/k/bias": (_LAYER + "self_attn.k_proj.bias", "kv_heads*head"),
  "layers/v/weight": (_LAYER + "self_attn.v_proj.weight", "kv_heads*head embed"),
  "layers/v/bias": (_LAYER + "self_attn.v_proj.bias", "kv_heads*head"),
  "layers/o/weight": (_LAYER + "self_attn.o_proj.weight", "embed heads*head"),
  "layers/o/bias": (_LAYER + "self_attn.o_proj.bias", "embed"),
  "layers/q_norm/scale": (_LAYER + "self_attn.q_norm.weight", "head"),
  "layers/k_norm/scale": (_LAYER + "self_attn.k_norm.weight", "head"),
  "layers/mlp_norm/scale": (_LAYER + "post_attention_layernorm.weight", "embed"),
  "layers/gate/weight": (_LAYER + "mlp.gate_proj.weight", "mlp embed"),
  "layers/gate/bias": (_LAYER + "mlp.gate_proj.bias", "mlp"),
  "layers/up/weight": (_LAYER + "mlp.up_proj.weight", "mlp embed"),
  "layers/up/bias": (_LAYER + "mlp.up_proj.bias", "mlp"),
  "layers/down/weight": (_LAYER + "mlp.down_proj.weight", "embed mlp"),
  "layers/down/bias": (_LAYER + "mlp.down_proj.bias", "embed"),
  "final_norm/scale": ("model.norm.weight", "embed"),
  "head/weight": ("lm_head.weight", "vocab embed"),
}
"""For each of our parameters the Hugging Face name and layout, `a*b` being axes merged into one."""

# Buffers that old files carry and that follow from the config.
_DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DTYPES = ("F32", "F16", "BF16")
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
TOKENIZER_FILES = (
  "tokenizer*",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "chat_template.jinja",
)
"""Patterns of the files from which a tokenizer is built."""


class CheckpointError(ValueError):
  """A checkpoint that is missing, incomplete or not what its config says."""


def resolve(source: str | pathlib.Path, revision: str | None = None) -> pathlib.Path:
  """The local folder of a checkpoint: `source` itself, or its download if it is a hub name.

  Only what exists nowhere on this machine and looks like `owner/name` is asked of the hub, and only
  safetensors, JSON and tokenizer files are fetched.

  Raises:
    CheckpointError: neither a folder nor a hub repository that can be reached.
  """
  folder = pathlib.Path(source).expanduser()
  if folder.is_dir():
    return folder
  if folder.exists() or not _HUB_NAME.fullmatch(str(source)):
    raise CheckpointError(
      f"{source}: expected a checkpoint folder, and there is none by this name; fix the path"
      " (of a run: --config.model.path)"
    )
  patterns = ["model*.safetensors", "*.json", *TOKENIZER_FILES]
  _LOG.info("%s: no such folder; asking the hub for it", source)
  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(str(source), revision=revision, allow_patterns=patterns)
    )
  except huggingface_hub.errors.GatedRepoError as error:
    raise CheckpointError(
      f"{source}: gated; accept its terms on its page of the hub, then `hf auth login` or set "
      "HF_TOKEN to a token of yours"
    ) from error
  except huggingface_hub.errors.RepositoryNotFoundError as error:
    raise CheckpointError(
      f"{source}: no such folder, and no such model on the hub, or a private one: check the path"
      " or the name, or `hf auth login`"
    ) from error
  except (
    huggingface_hub.errors.HfHubHTTPError,
    huggingface_hub.errors.HFValidationError,
    OSError,
  ) as error:
    raise CheckpointError(f"{source}: no such folder, and {_not_from_the_hub(error)}") from error


def _not_from_the_hub(error: Exception) -> str:
  """Why the hub did not give a model, and what to do.

  Whatever fails on the way there, the hub's library reports that nothing is on the disk either.
  """
  errors, way = huggingface_hub.errors, "give the path of a folder, or"
  cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
  if isinstance(cause, errors.OfflineModeIsEnabled):
    return f"HF_HUB_OFFLINE keeps it from being asked of the hub: {way} unset that."
  if cause is error or isinstance(cause, errors.HfHubHTTPError):
    reason = textwrap.shorten(str(cause), 200, placeholder=" ...")
    return f"the hub does not give it ({reason}): {way} check the name."
  return f"the hub cannot be reached: {way} check the network."


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The contents of a JSON file. Raises CheckpointError if it is no JSON object."""
  try:
    contents = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise CheckpointError(f"{path}: not valid JSON ({error})") from error
  if not isinstance(contents, dict):
    raise CheckpointError(f"{path}: expected a JSON object, found {type(contents).__name__}")
  return contents


def read_config(folder: pathlib.Path) -> ModelConfig:
  """The model config of a checkpoint folder. Raises CheckpointError if it cannot be used."""
  path = folder / "config.json"
  if not path.is_file():
    raise CheckpointError(f"{folder}: no config.json, so this is not a Hugging Face checkpoint")
  config, generation = read_json(path), folder / "generation_config.json"
  extra = read_json(generation) if generation.is_file() else None
  try:
    return ModelConfig.from_hf(config, extra)
  except ValueError as error:
    raise CheckpointError(f"{folder}: {error}") from error


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The safetensors files of a checkpoint folder, in order of name.

  Raises:
    CheckpointError: there are none, or some that the index names are missing.
  """
  if (index := folder / _INDEX).is_file():
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
  else:
    names = [_SINGLE]
  missing = [name for name in names if not (folder / name).is_file()]
  if missing == [_SINGLE]:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
      raise CheckpointError(
        f"{folder}: weights are only there as pickled .bin or .pth files, which can run code; "
        "convert them to safetensors"
      )
    raise CheckpointError(f"{folder}: no {_SINGLE} and no {_INDEX}, expected one of them")
  if missing or not names:
    raise CheckpointError(f"{folder}: {_INDEX} names {missing or 'no files'}, not in the folder")
  return [folder / name for name in names]


class _Tensors:
  """A folder's tensors by name; nothing is read before it is asked for."""

  def __init__(self, folder: pathlib.Path, stack: contextlib.ExitStack):
    self._folder = folder
    self._file: dict[str, tuple[pathlib.Path, Any]] = {}
    for path in weight_files(folder):
      try:
        handle = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
      except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or damaged safetensors file ({error})") from error
      self._file.update((name, (path, handle)) for name in handle.keys())

  def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError unless the tensors are those expected, in name, shape and dtype."""
    for name, shape in expected.items():
      if name not in self._file:
        raise CheckpointError(
          f"{self._folder}: tensor {name} is missing, expected with shape {list(shape)}"
        )
      path, handle = self._file[name]
      tensor = handle.get_slice(name)
      if tuple(tensor.get_shape()) != shape:
        raise CheckpointError(
          f"{path}: tensor {name} has shape {tensor.get_shape()}, expected {list(shape)} "
          "from config.json"
        )
      if (dtype := tensor.get_dtype()) not in _DTYPES:
        raise CheckpointError(
          f"{path}: tensor {name} has dtype {dtype}, expected {' or '.join(_DTYPES)}"
        )
    extra = [n for n in sorted(set(self._file) - set(expected)) if not _DERIVED.fullmatch(n)]
    # Tied models may store the shared table a second time.
    if extra and extra != [LAYOUT["head/weight"][0]]:
      raise CheckpointError(
        f"{self._folder}: {len(extra)} tensors have no place in this model, such as {extra[0]}; "
        "is config.json that of another model?"
      )

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """A slice of a tensor, as float32, float16 or bfloat16."""
    path, handle = self._file[name]
    try:
      return handle.get_slice(name)[index]
    except safetensors.SafetensorError as error:
      raise CheckpointError(f"{path}: tensor {name} cannot be read ({error})") from error


def _dims(layout: str) -> list[list[str]]:
  return [dim.split("*") for dim in layout.split()]


def _merged_slice(sizes: list[int], slices: list[slice]) -> slice:
  """The slice of axes merged into one; only the first of them may be cut."""
  inner = math.prod(sizes[1:])
  if any(s.indices(n) != (0, n, 1) for n, s in zip(sizes[1:], slices[1:], strict=True)):
    raise ValueError(f"slices {slices} of merged axes {sizes}: only the first axis can be sharded")
  start, stop, _ = slices[0].indices(sizes[0])
  return slice(start * inner, stop * inner)


def _expected_shapes(model: Model) -> dict[str, tuple[int, ...]]:
  """Name and shape of every tensor that the checkpoint must have."""
  axes, expected = logical_axes(model), {}
  for path, leaf in flatten(model.params).items():
    if path not in LAYOUT:
      continue  # The scales of int8 matrices are ours.
    name, layout = LAYOUT[path]
    size = dict(zip(axes[path], leaf.shape, strict=True))
    shape = tuple(math.prod(size[axis] for axis in dim) for dim in _dims(layout))
    for layer in range(size.get("layers", 1)):
      expected[name.format(layer=layer)] = shape
  return expected


def _read_layer(
  tensors: _Tensors,
  path: str,
  layer: int,
  axes: tuple[str, ...],
  size: Mapping[str, int],
  cut: Mapping[str, slice],
) -> np.ndarray:
  """The part `cut` of one layer of a parameter that the file has, its axes ordered as `axes`."""
  name, layout = LAYOUT[path]
  dims = _dims(layout)
  theirs = tuple(_merged_slice([size[a] for a in dim], [cut[a] for a in dim]) for dim in dims)
  split = [axis for dim in dims for axis in dim]
  shape = [len(range(*cut[axis].indices(size[axis]))) for axis in split]
  block = tensors.read(name.format(layer=layer), theirs).reshape(shape)
  return block.transpose([split.index(axis) for axis in axes])


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

  def __init__(self, model: Model, tensors: _Tensors):
    self._tensors = tensors
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
      block = _read_layer(self._tensors, source, layer, axes, size, cut)
      return block.astype(self._leaves[path].dtype)
    # A channel's scale needs all of its inputs, also where a shard keeps only some of them.
    whole = {axis: cut[axis] if axis in channels else slice(None) for axis in axes}
    block = _read_layer(self._tensors, source, layer, axes, size, whole)
    inputs = tuple(i for i, axis in enumerate(axes) if axis not in channels)
    values, scale = quantize(block, inputs)
    if path != source:
      return scale.squeeze(inputs)
    return values[tuple(slice(None) if axis in channels else cut[axis] for axis in axes)]


def load(
  source: str | pathlib.Path,
  *,
  param_dtype: Any = jnp.bfloat16,
  compute_dtype: Any = jnp.bfloat16,
  mesh: jax.sharding.Mesh | None = None,
  rules: Rules = Rules(),
  revision: str | None = None,
) -> Model:
  """Loads a checkpoint folder or hub repository in the Hugging Face format.

  Args:
    source: a folder, or a hub name `owner/name` of something that is no folder here.
    param_dtype: float32, bfloat16, or int8 (matrices only, with a float32 scale per output
      channel), in which the parameters are kept.
    compute_dtype: float32 or bfloat16, in which they are used.
    mesh: where to put the parameters; None for the default device.
    rules: how they are split over the mesh.
    revision: branch, tag or commit of a hub repository.

  Raises:
    CheckpointError: in one line, what is wrong with the checkpoint.
  """
  folder = resolve(source, revision)
  config = read_config(folder)
  model = abstract_model(config, param_dtype=param_dtype, compute_dtype=compute_dtype)
  places = flatten(shardings(model, mesh, rules))
  loaded = {}
  with contextlib.ExitStack() as stack:
    tensors = _Tensors(folder, stack)
    tensors.check(_expected_shapes(model))
    reader = _Reader(model, tensors)
    for path, leaf in flatten(model.params).items():
      loaded[path] = jax.make_array_from_callback(
        leaf.shape, places[path], functools.partial(reader.read, path)
      )
  return Model(config, model.graphdef, unflatten(loaded))


def save(folder: str | pathlib.Path, config: Mapping[str, Any], params: Params) -> None:
  """Writes parameters as a Hugging Face checkpoint: `config.json` and one safetensors file.

  Args:
    folder: where to write; made if need be.
    config: the contents of `config.json`, which must describe `params`.
    params: what `load` would return, in float32 or bfloat16.

  Raises:
    ValueError: the config is not supported, or describes other parameters.
  """
  folder = pathlib.Path(folder)
  model = abstract_model(ModelConfig.from_hf(config))
  expected = {path: leaf.shape for path, leaf in flatten(model.params).items()}
  found = {path: leaf.shape for path, leaf in flatten(params).items()}
  for path in sorted(expected.keys() | found.keys()):
    if expected.get(path) != found.get(path):
      raise ValueError(
        f"parameter {path} has shape {found.get(path)}, the config expects {expected.get(path)}"
      )
  axes, tensors = logical_axes(model), {}
  for path, leaf in flatten(params).items():
    name, layout = LAYOUT[path]
    inner = [axis for axis in axes[path] if axis != "layers"]
    dims = _dims(layout)
    order = [inner.index(axis) for dim in dims for axis in dim]
    stacked = np.asarray(leaf) if "layers" in axes[path] else np.asarray(leaf)[None]
    for layer, block in enumerate(stacked):
      size = dict(zip(inner, block.shape, strict=True))
      shape = [math.prod(size[axis] for axis in dim) for dim in dims]
      tensors[name.format(layer=layer)] = np.ascontiguousarray(
        block.transpose(order).reshape(shape)
      )
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
  safetensors.numpy.save_file(tensors, folder / _SINGLE, metadata={"format": "pt"})
