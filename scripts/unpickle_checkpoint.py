"""Turns pickled weights (`pytorch_model*.bin`, `adapter_model.bin`) into safetensors.

    python scripts/unpickle_checkpoint.py --source=/models/pickled --target=/models/vicuna

A pickle can run code. PyTorch's reader of tensors alone refuses one that would, and it runs in this
process, which has nothing else to do; the library reads what is written here and never a pickle. It
needs PyTorch: pip install "rain_jax[unpickle]".
"""

import json
import os
import pathlib
import pickle
import shutil
import zipfile

import cli
from absl import flags

from rain_jax.models import hf

_SOURCE = flags.DEFINE_string("source", None, "Folder with pickled weights.", required=True)
_TARGET = flags.DEFINE_string("target", None, "Folder to write.", required=True)

_INDEX = "pytorch_model.bin.index.json"
_OLDEST = (2, 6)  # older readers of tensors alone could be made to run code (CVE-2025-32434)


def main() -> None:
  """Converts the folder that the flags name."""
  names = convert(pathlib.Path(_SOURCE.value), pathlib.Path(_TARGET.value))
  print(f"wrote {_TARGET.value}: {', '.join(names)}")


def convert(source: pathlib.Path, target: pathlib.Path) -> list[str]:
  """Writes a folder's weights as safetensors and copies its other files.

  Args:
    source: a folder with `pytorch_model.bin`, its shards and their index, or `adapter_model.bin`.
    target: made if need be; may be the source.

  Returns:
    The names of the files with weights that were written.

  Raises:
    CheckpointError, ValueError: one line each.
  """
  if not source.is_dir():
    raise hf.CheckpointError(f"{source}: no such folder; fetch one with `hf download`, perhaps")
  pickled = _pickled(source)
  if there := sorted(path.name for path in target.glob("*.safetensors")):
    raise hf.CheckpointError(
      f"{target}: holds {there[0]} already; remove it or name another folder"
    )
  target.mkdir(parents=True, exist_ok=True)
  places, size, written = {}, 0, []
  for path in pickled:
    tensors = _read(path)
    name = path.name.removeprefix("pytorch_").removesuffix(".bin") + ".safetensors"
    _write(target / name, tensors)
    places.update(dict.fromkeys(tensors, name))
    size += sum(tensor.nbytes for tensor in tensors.values())
    written.append(name)
  if len(pickled) > 1:
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (target / "model.safetensors.index.json").write_text(
      json.dumps(index, indent=2) + "\n", "utf-8"
    )
  if target.resolve() != source.resolve():
    for pattern in ("*.json", *hf.TOKENIZER_FILES):
      for path in source.glob(pattern):
        if path.name != _INDEX:
          shutil.copyfile(path, target / path.name)
  return written


def _pickled(source: pathlib.Path) -> list[pathlib.Path]:
  """The files to read, in order."""
  if (source / _INDEX).is_file():
    places = hf.read_json(source / _INDEX).get("weight_map")
    names = list(places.values()) if isinstance(places, dict) else []
    names = sorted(set(names)) if all(isinstance(name, str) for name in names) else []
    if not names or any(pathlib.PurePath(n).name != n or not n.endswith(".bin") for n in names):
      raise hf.CheckpointError(f"{source / _INDEX}: names no .bin files of this folder")
  else:
    names = [n for n in ("pytorch_model.bin", "adapter_model.bin") if (source / n).is_file()][:1]
  if not names:
    raise hf.CheckpointError(f"{source}: no pytorch_model.bin, {_INDEX} or adapter_model.bin")
  if missing := [name for name in names if not (source / name).is_file()]:
    raise hf.CheckpointError(f"{source}: {_INDEX} names {missing[0]}, which is not in the folder")
  return [source / name for name in names]


def _read(path: pathlib.Path):
  """The tensors of a pickled file by name, left on the disk until they are used."""
  try:
    import torch
  except ImportError:
    raise ValueError('pickled weights need PyTorch: pip install "rain_jax[unpickle]"') from None
  if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _OLDEST:
    raise ValueError(f"torch {torch.__version__}: its reader is not safe, expected 2.6 or newer")
  try:
    mapped = zipfile.is_zipfile(path)  # as all releases since 1.6 write
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
  except pickle.UnpicklingError:
    raise hf.CheckpointError(
      f"{path}: holds more than tensors, which may be code, or is damaged: refused"
    ) from None
  except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
    raise hf.CheckpointError(f"{path}: truncated or damaged ({error})") from error
  tensors = found if isinstance(found, dict) else {}
  if not tensors or not all(
    isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
    for name, tensor in tensors.items()
  ):
    raise hf.CheckpointError(f"{path}: expected tensors by name, found {type(found).__name__}")
  return tensors


def _write(path: pathlib.Path, tensors) -> None:
  """One file, whole or not at all."""
  import safetensors.torch

  seen, own = set(), {}
  for name, tensor in tensors.items():
    storage = tensor.untyped_storage()
    shared = storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes
    seen.add(storage.data_ptr())
    own[name] = tensor.clone().contiguous() if shared else tensor.contiguous()
  part = path.with_suffix(f".{os.getpid()}.part")
  try:
    safetensors.torch.save_file(own, part, metadata={"format": "pt"})
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


if __name__ == "__main__":
  cli.run(main)
