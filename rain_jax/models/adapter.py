"""LoRA adapters in PEFT's format, merged into the weights while these are read.

An adapter adds to a matrix W the product scale * B A of two small ones (arXiv 2106.09685). Keys of
`adapter_config.json` are those of https://huggingface.co/docs/peft/main/en/package_reference/lora;
what they ask for beyond that product is refused.
"""

import contextlib
import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors

from rain_jax.models import json_values as values
from rain_jax.models.assembly import CheckpointError, Tensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# Keys that say nothing about the product, or only where it is, which the names of tensors say, too.
_NO_MATTER = frozenset(
  """alpha_pattern auto_mapping base_model_name_or_path exclude_modules inference_mode layers_pattern
  layers_to_transform lora_alpha lora_dropout megatron_core peft_type peft_version qalora_group_size r
  rank_pattern revision target_modules task_type use_rslora""".split()
)
# Ways to begin that leave the base weights as they are; others train beside changed ones.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclasses.dataclass(frozen=True)
class Adapter:
  """An adapter that has been found and read in part.

  Attributes:
    folder: where it is.
    scale: what the product of its matrices is multiplied by.
    targets: ends of the modules' names that it changes in every layer; () where not all of them.
  """

  folder: pathlib.Path
  scale: float
  targets: tuple[str, ...]


def read(folder: pathlib.Path, config: Mapping[str, Any]) -> Adapter:
  """An adapter from its folder and the contents of its `adapter_config.json`.

  Raises:
    CheckpointError: in one line, what is not supported or missing.
  """
  try:
    return _read(folder, config)
  except ValueError as error:
    raise CheckpointError(f"{folder / CONFIG}: {error}") from error


def _read(folder: pathlib.Path, config: Mapping[str, Any]) -> Adapter:
  if (kind := config.get("peft_type")) != "LORA":
    raise ValueError(f"peft_type = {kind!r:.60}, expected LORA")
  if config.get("bias") not in (None, "none"):
    raise ValueError(f"bias = {config['bias']!r:.60}: biases are not merged, expected none")
  if (begun := config.get("init_lora_weights")) not in _BEGINNINGS:
    raise ValueError(
      f"init_lora_weights = {begun!r:.60} trains beside changed weights: save it as a plain LoRA"
      " adapter, or merge it with PEFT"
    )
  apart = _NO_MATTER | {"bias", "init_lora_weights"}
  if others := sorted(key for key, value in config.items() if value and key not in apart):
    raise ValueError(
      f"{others[0]} = {config[others[0]]!r:.60} is not supported, expected plain LoRA: merge it"
      " with PEFT's merge_and_unload"
    )
  for key in ("rank_pattern", "alpha_pattern"):
    if config.get(key):
      raise ValueError(f"{key} = {config[key]!r:.60} is not supported, expected one for all")
  rank = values.size(config, "r", where="it")
  root = math.sqrt(rank) if values.flag(config, "use_rslora", "it") else rank
  targets = config.get("target_modules")
  listed = isinstance(targets, list) and all(isinstance(one, str) for one in targets)
  some = any(config.get(key) for key in ("layers_to_transform", "exclude_modules"))
  return Adapter(
    folder,
    values.number(config, "lora_alpha", where="it") / root,
    tuple(targets) if listed and not some else (),  # type: ignore[arg-type]
  )


class Merged:
  """Tensors of a checkpoint with an adapter's product added; see `assembly.Tensors`."""

  def __init__(self, tensors: Tensors, adapter: Adapter, stack: contextlib.ExitStack):
    self._tensors = tensors
    self._adapter = adapter
    self._path = adapter.folder / WEIGHTS
    try:
      self._file = stack.enter_context(safetensors.safe_open(self._path, framework="numpy"))
      self._names = frozenset(self._file.keys())
    except FileNotFoundError:
      raise CheckpointError(
        f"{adapter.folder}: no {WEIGHTS}; pickled adapters are converted as pickled weights are"
      ) from None
    except (safetensors.SafetensorError, OSError) as error:
      raise CheckpointError(f"{self._path}: truncated or damaged ({error})") from error
    self._changed: dict[str, tuple[str, str]] = {}

  def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError unless base and adapter fit the model and each other."""
    self._tensors.check(expected)
    sides: dict[str, dict[str, str]] = {}
    for name in sorted(self._names):
      match = _NAME.fullmatch(name)
      weight = f"{match['module']}.weight" if match else ""
      if match is None or len(expected.get(weight, ())) != 2 or "embed_tokens" in weight:
        raise CheckpointError(f"{self._path}: tensor {name!r:.120} has no place in this model")
      sides.setdefault(weight, {})[match["side"]] = name
    for weight, pair in sides.items():
      if len(pair) != 2:
        raise CheckpointError(f"{self._path}: of {weight} there is lora_{[*pair][0]} alone")
      self._check_pair(weight, pair["A"], pair["B"], expected[weight])
      self._changed[weight] = (pair["A"], pair["B"])
    ends = tuple(f".{target}.weight" for target in self._adapter.targets)
    missing = sorted(n for n in expected if f".{n}".endswith(ends) and n not in self._changed)
    if missing or not self._changed:
      raise CheckpointError(
        f"{self._path}: nothing for {missing[0] if missing else 'any matrix'}, which the adapter's"
        " target_modules name; is it another model's, or cut short?"
      )

  def _check_pair(self, weight: str, a: str, b: str, shape: tuple[int, ...]) -> None:
    slices = [self._file.get_slice(name) for name in (a, b)]
    if others := {s.get_dtype() for s in slices} - {"F32", "F16", "BF16"}:
      raise CheckpointError(f"{self._path}: {a} or lora_B has dtype {others.pop()}, expected F32")
    shapes = [tuple(s.get_shape()) for s in slices]
    rank = shapes[0][0] if shapes[0] else 0
    if shapes != [(rank, shape[1]), (shape[0], rank)] or not rank:
      raise CheckpointError(
        f"{self._path}: {a} and lora_B have shapes {[list(s) for s in shapes]}, which make no"
        f" {list(shape)} as {weight} is; is it another model's?"
      )

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """A slice of a tensor, as float32 where the adapter changes it."""
    block = self._tensors.read(name, index)
    if name not in self._changed:
      return block
    a, b = self._changed[name]
    rows, columns = index
    part = lambda name, index: self._file.get_slice(name)[index].astype(np.float32)
    product = part(b, (rows, slice(None))) @ part(a, (slice(None), columns))
    return block.astype(np.float32) + self._adapter.scale * product
