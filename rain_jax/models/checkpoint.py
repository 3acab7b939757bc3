"""Converted checkpoints: Orbax parameters beside a JSON config and the tokenizer's files.

A converted folder restores straight into any sharding, needs no other weights beside it, and is the
only format that keeps int8 weights. `load_model` reads it, Hugging Face's format, and GGUF files.
"""

import hashlib
import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from rain_jax.models import adapter as adapters
from rain_jax.models import gguf, gguf_tokenizer, hf
from rain_jax.models.config import ModelConfig
from rain_jax.models.hf import CheckpointError
from rain_jax.models.llama import Model, abstract_model
from rain_jax.models.sharding import Rules, flatten, shardings
from rain_jax.text.printable import one_line

_MARKER = "rain_model.json"
_PARAMS = "params"
_DTYPES = ("float32", "bfloat16", "int8")
_COPIED = ("config.json", "generation_config.json", *hf.TOKENIZER_FILES)
_CHUNK_BYTES = 1 << 24


def save_model(
  folder: str | pathlib.Path, model: Model, source: str | pathlib.Path | None = None
) -> None:
  """Writes a model as a converted checkpoint.

  Args:
    folder: where to write; made if need be, and must not hold a checkpoint yet.
    model: what to write, in the dtypes it has.
    source: what it came from, if known: a Hugging Face folder, whose tokenizer and config files are
      copied along, or a GGUF file, whose tokenizer is.

  Raises:
    CheckpointError: the folder holds a checkpoint already.
  """
  folder = pathlib.Path(folder).expanduser().resolve()
  if (folder / _PARAMS).exists() or (folder / _MARKER).exists():
    raise CheckpointError(f"{folder}: holds a checkpoint already; remove it or name another folder")
  folder.mkdir(parents=True, exist_ok=True)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder / _PARAMS, model.params)
  if source is not None:
    source = pathlib.Path(source).expanduser()
    if source.is_file():
      gguf_tokenizer.load_tokenizer(source).save_pretrained(folder)
    else:
      for path in (path for pattern in _COPIED for path in sorted(source.glob(pattern))):
        shutil.copyfile(path, folder / path.name)
  weight = model.params["embedding"]["weight"]
  marker = {"param_dtype": jnp.dtype(weight.dtype).name, "config": model.config.to_json()}
  # Last, so that a folder whose writing was cut short is not taken for a checkpoint.
  (folder / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def restore(
  folder: str | pathlib.Path,
  *,
  param_dtype: Any = None,
  compute_dtype: Any = jnp.bfloat16,
  mesh: jax.sharding.Mesh | None = None,
  rules: Rules = Rules(),
) -> Model:
  """Reads a converted checkpoint, each shard straight to its device; see `load_model`."""
  folder = pathlib.Path(folder).expanduser().resolve()
  stored, config = _read_marker(folder)
  wanted = stored if param_dtype is None else jnp.dtype(param_dtype)
  if wanted != stored and jnp.int8 in (wanted, stored):
    raise CheckpointError(
      f"{folder}: holds {stored} weights, asked for {wanted}; convert the original anew"
    )
  model = abstract_model(config, param_dtype=wanted, compute_dtype=compute_dtype)
  target = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    model.params,
    shardings(model, mesh, rules),
  )
  if not (folder / _PARAMS).is_dir():
    raise CheckpointError(f"{folder}: has {_MARKER} but no {_PARAMS} beside it; convert it anew")
  try:
    # Reads at a time, in GB: the least in which Orbax finds room for any one stored parameter.
    largest = max(
      leaf.size * max(leaf.dtype.itemsize, stored.itemsize) for leaf in jax.tree.leaves(target)
    )
    with ocp.StandardCheckpointer(restore_concurrent_gb=largest // 10**9 + 1) as checkpointer:
      params = checkpointer.restore(folder / _PARAMS, target)
  except Exception as error:  # Orbax lets whatever happens below it through
    raise CheckpointError(
      f"{folder / _PARAMS}: incomplete or damaged ({one_line(error, 200)})"
    ) from error
  for name, leaf in flatten(params).items():
    if not jnp.isfinite(leaf).all():
      raise CheckpointError(
        f"{folder / _PARAMS}: {name} holds values that are no finite numbers; convert it anew"
      )
  return Model(config, model.graphdef, params)


def check_scores(folder: pathlib.Path) -> None:
  """Raises CheckpointError where a reward model cannot be read from."""
  if folder.is_file() or (folder / _MARKER).is_file():
    raise CheckpointError(
      f"{folder}: reward models are read in the Hugging Face format only: name such a folder"
    )


def read_config(source: str | pathlib.Path, scores: bool = False) -> ModelConfig:
  """The model config of a checkpoint in any format; raises CheckpointError.

  With `scores` it has to be a reward model's.
  """
  folder = hf.resolve(source)
  if scores:
    check_scores(folder)
    return hf.read_config(folder, scores)
  if folder.is_file():
    return gguf.read_config(folder)
  return _read_marker(folder)[1] if (folder / _MARKER).is_file() else hf.read_config(folder)


def _read_marker(folder: pathlib.Path) -> tuple[jnp.dtype, ModelConfig]:
  """The dtype and the config of a converted checkpoint."""
  marker = hf.read_json(folder / _MARKER)
  try:
    if marker["param_dtype"] not in _DTYPES:
      raise ValueError(f"param_dtype = {marker['param_dtype']!r:.60}")
    return jnp.dtype(marker["param_dtype"]), ModelConfig.from_json(marker["config"])
  except (KeyError, TypeError, ValueError) as error:
    raise CheckpointError(f"{folder / _MARKER}: not a model description ({error!r})") from error


def load_model(
  source: str | pathlib.Path,
  *,
  param_dtype: Any = None,
  compute_dtype: Any = jnp.bfloat16,
  mesh: jax.sharding.Mesh | None = None,
  rules: Rules = Rules(),
  revision: str | None = None,
  adapter: str | pathlib.Path | None = None,
  scores: bool = False,
) -> Model:
  """Loads a model from a converted folder, a Hugging Face folder, a GGUF file, or the hub.

  Args:
    source: what `hf.resolve` finds: a folder of either format, a GGUF file, `package:NAME` for that
      in an installed package, or a hub name `owner/name` of something that is not here.
    param_dtype: float32, bfloat16 or int8, in which the parameters are kept; None for what a
      converted checkpoint holds, and for `compute_dtype` otherwise.
    compute_dtype: float32 or bfloat16, in which they are used.
    mesh: where to put the parameters; None for the default device.
    rules: how they are split over the mesh.
    revision: branch, tag or commit of a hub repository.
    adapter, scores: see `hf.load`; of the Hugging Face format only.

  Raises:
    CheckpointError: in one line, what is wrong with the checkpoint or its adapter.
  """
  folder = hf.resolve(source, revision)
  if adapter is not None and (folder.is_file() or (folder / _MARKER).is_file()):
    raise CheckpointError(
      f"{folder}: adapters are merged into safetensors of the Hugging Face format: name such a"
      " folder, or convert with scripts/convert_checkpoint.py --adapter"
    )
  if scores:
    check_scores(folder)
  if (folder / _MARKER).is_file():
    return restore(
      folder, param_dtype=param_dtype, compute_dtype=compute_dtype, mesh=mesh, rules=rules
    )
  if param_dtype is None:
    param_dtype = compute_dtype
  options = dict(param_dtype=param_dtype, compute_dtype=compute_dtype, mesh=mesh, rules=rules)
  return (
    gguf.load(folder, **options)
    if folder.is_file()
    else hf.load(folder, adapter=adapter, scores=scores, **options)
  )


def fingerprint(folder: str | pathlib.Path, adapter: str | pathlib.Path | None = None) -> str:
  """The sha256, in hex, of the names and contents of a checkpoint's weight files, for manifests.

  It identifies the files: a conversion of the same weights has another one. Of a GGUF file the
  contents count, not what it is called. An adapter's two files count with it.

  Raises:
    CheckpointError: the folder is no checkpoint.
  """
  folder = hf.resolve(folder)
  if folder.is_file():
    files = [folder]
  elif (folder / _MARKER).is_file():
    files = sorted(path for path in (folder / _PARAMS).rglob("*") if path.is_file())
  else:
    files = list(hf.weight_files(folder))
  if adapter is not None:
    files += [hf.resolve(adapter) / name for name in (adapters.CONFIG, adapters.WEIGHTS)]
  digest = hashlib.sha256()
  for path in files:
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
    digest.update(f"{name}\0{path.stat().st_size}\0".encode())
    with path.open("rb") as file:
      while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
  return digest.hexdigest()
