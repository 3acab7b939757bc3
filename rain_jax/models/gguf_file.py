"""The GGUF container: metadata and table of tensors, every claim checked against the file's size.

The format is that of ggml, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2
and 3. Nothing is allocated, and no loop is entered, for a count that the rest of the file could not
hold. Values of tensors are dequantised by the `gguf` package, a slice at a time.
"""

import dataclasses
import functools
import math
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from rain_jax.models.hf import CheckpointError

MAGIC = b"GGUF"
TYPES = (
  "F32",
  "F16",
  "BF16",
  "Q8_0",
  "Q4_0",
  "Q4_1",
  "Q5_0",
  "Q5_1",
  "Q2_K",
  "Q3_K",
  "Q4_K",
  "Q5_K",
  "Q6_K",
)
"""Tensor types that are read."""

_VERSIONS = (2, 3)
_SCALARS = ("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?", None, None, "<Q", "<q", "<d")  # by id
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32
_PIECE = 1 << 17  # values that are dequantised at a time
_MOST_DIMENSIONS = 4
_MOST_ELEMENTS = 1 << 24  # of one array in the metadata: vocabularies are far smaller
_LEAST_ENTRY = 13  # bytes of a metadata entry: length of its key, type, one byte
_LEAST_TENSOR = 32  # bytes of a tensor's entry: length of its name, dimensions, type, offset


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where the values of one tensor lie.

  Attributes:
    shape: the axis that is contiguous in the file last.
    kind: its type, one of `TYPES` if it can be read.
    block: values of one block, the unit of quantisation along the last axis.
    block_bytes: bytes of one block.
    start: offset of its first byte in the file.
  """

  shape: tuple[int, ...]
  kind: str
  block: int
  block_bytes: int
  start: int

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) // self.block * self.block_bytes


@dataclasses.dataclass(frozen=True)
class GGUFFile:
  """Metadata and tensors of a GGUF file, no values read yet.

  Attributes:
    path: the file.
    metadata: numbers, booleans, strings, lists of strings, and arrays of numbers, by key.
    tensors: by name.
  """

  path: pathlib.Path
  metadata: Mapping[str, Any]
  tensors: Mapping[str, Tensor]

  def text(self, key: str, default: str | None = None) -> str | None:
    """A string of the metadata, or `default`; CheckpointError if it is something else."""
    return self._get(key, str, "a string", default)

  def flag(self, key: str, default: bool) -> bool:
    """A boolean of the metadata."""
    return self._get(key, bool, "a boolean", default)

  def count(self, key: str, default: int | None = None, least: int = 1) -> int:
    """A whole number from `least` to 2^31 - 1; without a default it must be there."""
    found = self._get(key, int, "a whole number", default)
    if found is None:
      raise CheckpointError(f"{self.path}: the metadata lacks {key}")
    if found != default and not least <= found < 1 << 31:
      raise CheckpointError(f"{self.path}: {key} = {found}, expected {least} to {(1 << 31) - 1}")
    return found

  def token_id(self, key: str, tokens: int) -> int | None:
    """The id of one of so many tokens, None if the metadata has no such key."""
    found = self._get(key, int, "a token id", None)
    if found is not None and not 0 <= found < tokens:
      raise CheckpointError(f"{self.path}: {key} = {found}, expected one of {tokens} token ids")
    return found

  def number(self, key: str, default: float | None = None) -> float:
    """A finite number above zero; without a default it must be there."""
    found = self._get(key, (int, float), "a number", default)
    if found is None:
      raise CheckpointError(f"{self.path}: the metadata lacks {key}")
    if not 0 < found < math.inf:
      raise CheckpointError(f"{self.path}: {key} = {found}, expected a number above zero")
    return float(found)

  def texts(self, key: str) -> list[str] | None:
    """A list of strings, None if the metadata has no such key."""
    return self._get(key, list, "a list of strings", None)

  def numbers(self, key: str) -> np.ndarray | None:
    """An array of numbers, None if the metadata has no such key."""
    return self._get(key, np.ndarray, "a list of numbers", None)

  def _get(self, key: str, types: Any, what: str, default: Any) -> Any:
    found = self.metadata.get(key)
    if found is None:
      return default
    if not isinstance(found, types) or (isinstance(found, bool) and types is not bool):
      shown = type(found).__name__ if isinstance(found, (list, np.ndarray)) else repr(found)[:80]
      raise CheckpointError(f"{self.path}: {key} is {shown}, expected {what}")
    return found

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """A slice of a tensor of one or two axes, as float32; only its rows are read.

    Raises:
      CheckpointError: the file has changed since its table was read.
    """
    tensor = self.tensors[name]
    rows = range(*index[0].indices(tensor.shape[0])) if len(index) == 2 else range(1)
    first, last, _ = index[-1].indices(tensor.shape[-1])
    begin, end = first // tensor.block, -(-last // tensor.block)  # blocks that hold these columns
    row_bytes = tensor.shape[-1] // tensor.block * tensor.block_bytes
    values = np.empty((len(rows), last - first), np.float32)
    # In pieces, which stay in the processor's caches, and of which no second copy is made.
    step = max(1, _PIECE // tensor.shape[-1])
    with self.path.open("rb") as file:
      file.seek(tensor.start + rows.start * row_bytes)
      for row in range(0, len(rows), step):
        count = min(step, len(rows) - row)
        stored = np.fromfile(file, np.uint8, count * row_bytes)
        if stored.size != count * row_bytes:
          raise CheckpointError(f"{self.path}: became shorter while it was read")
        blocks = stored.reshape(count, -1, tensor.block_bytes)[:, begin:end]
        found = self._dequantized(tensor.kind, blocks).reshape(count, -1)
        values[row : row + count] = found[:, first - begin * tensor.block :][:, : last - first]
    return values if len(index) == 2 else values[0]

  def _dequantized(self, kind: str, blocks: np.ndarray) -> np.ndarray:
    library = _library(self.path)
    # As one row: the package would take many small steps over the rows.
    return library.quants.dequantize(blocks.reshape(1, -1), library.GGMLQuantizationType[kind])


def read_header(path: pathlib.Path) -> GGUFFile:
  """The metadata and the table of tensors of a GGUF file.

  Raises:
    CheckpointError: no GGUF file, or one that is truncated or damaged, in one line; or the `gguf`
      package is not installed.
  """
  try:
    found = path.stat()
    return _read_once(path, found.st_mtime_ns, found.st_size)
  except OSError as error:
    raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


@functools.lru_cache(maxsize=1)
def _read_once(path: pathlib.Path, changed: int, size: int) -> "GGUFFile":
  """The header of a file, which config, tokenizer and weights read in turn."""
  library = _library(path)
  with path.open("rb") as file:
    return _read_header(path, _Cursor(path, file), library)


def _library(path: pathlib.Path) -> Any:
  try:
    import gguf  # pylint: disable=g-import-not-at-top  (an extra)
  except ImportError as error:
    raise CheckpointError(
      f"{path}: GGUF files are read with the package gguf; pip install 'rain_jax[gguf]'"
    ) from error
  return gguf


class _Cursor:
  """Reads a file front to back, and never more than it has."""

  def __init__(self, path: pathlib.Path, file: BinaryIO):
    self.path = path
    self._file = file
    self.size = path.stat().st_size
    self.at = 0

  def damaged(self, what: str) -> CheckpointError:
    return CheckpointError(f"{self.path}: truncated or damaged GGUF file ({what})")

  def need(self, count: int, what: str) -> None:
    """Raises CheckpointError unless so many bytes are left."""
    if count > (left := self.size - self.at):
      raise self.damaged(f"{what} at byte {self.at} needs {count} bytes, {left} are left")

  def take(self, count: int, what: str) -> bytes:
    self.need(count, what)
    found = self._file.read(count)
    if len(found) != count:
      raise self.damaged(f"{what} at byte {self.at} cannot be read")
    self.at += count
    return found

  def number(self, form: str, what: str) -> Any:
    return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

  def text(self, what: str) -> str:
    start = self.at
    try:
      return self.take(self.number("<Q", what), what).decode("utf-8")
    except UnicodeDecodeError as error:
      raise self.damaged(f"{what} at byte {start} is not UTF-8") from error

  def value(self, key: str) -> Any:
    """One typed value of the metadata."""
    kind = self.number("<I", key)
    if kind == _STRING:
      return self.text(key)
    if kind == _ARRAY:
      return self._array(key)
    return self.number(self._scalar(kind, key), key)

  def _array(self, key: str) -> list[str] | np.ndarray:
    kind, count = self.number("<I", key), self.number("<Q", key)
    if count > _MOST_ELEMENTS:
      raise self.damaged(f"{key} claims {count} elements")
    if kind == _STRING:
      self.need(8 * count, key)  # their lengths alone
      return [self.text(key) for _ in range(count)]
    dtype = np.dtype(self._scalar(kind, key))
    return np.frombuffer(self.take(count * dtype.itemsize, key), dtype)

  def _scalar(self, kind: int, key: str) -> str:
    form = _SCALARS[kind] if kind < len(_SCALARS) else None
    if form is None:
      raise self.damaged(f"{key} has a value of unknown type {kind}")
    return form


def _read_header(path: pathlib.Path, cursor: _Cursor, library: Any) -> GGUFFile:
  if (found := cursor.take(min(4, cursor.size), "the magic")) != MAGIC:
    raise CheckpointError(
      f"{path}: not a GGUF file (it starts with {found!r}); expected a checkpoint folder, a GGUF"
      " file or a name on the hub"
    )
  version = cursor.number("<I", "the version")
  if version not in _VERSIONS:
    what = "big-endian" if version & 0xFFFF == 0 else f"of version {version}"
    raise CheckpointError(f"{path}: a GGUF file {what}; expected little-endian, version 2 or 3")
  tensors = cursor.number("<Q", "the number of tensors")
  entries = cursor.number("<Q", "the number of metadata entries")
  cursor.need(
    entries * _LEAST_ENTRY + tensors * _LEAST_TENSOR,
    f"a header of {entries} metadata entries and {tensors} tensors",
  )
  metadata: dict[str, Any] = {}
  for _ in range(entries):
    key = cursor.text("a metadata key")
    if key in metadata:
      raise cursor.damaged(f"two metadata entries {key[:80]!r}")
    metadata[key] = cursor.value(repr(key[:80]))
  alignment = metadata.get("general.alignment", _ALIGNMENT)
  if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
    raise cursor.damaged(f"general.alignment = {alignment!r:.80}, expected a power of two")
  listed = [_tensor_entry(cursor, library) for _ in range(tensors)]
  data = -(-cursor.at // alignment) * alignment
  table: dict[str, Tensor] = {}
  for name, tensor in listed:
    if name in table:
      raise cursor.damaged(f"two tensors {name!r}")
    tensor = dataclasses.replace(tensor, start=data + tensor.start)
    if tensor.start % alignment or tensor.start + tensor.nbytes > cursor.size:
      raise cursor.damaged(
        f"tensor {name!r} of {tensor.nbytes} bytes at byte {tensor.start}, the file has"
        f" {cursor.size}"
      )
    table[name] = tensor
  # Apart from each other, all tensors together are not larger than the file.
  placed = sorted(table.items(), key=lambda item: item[1].start)
  for (one, before), (other, after) in zip(placed, placed[1:]):
    if before.start + before.nbytes > after.start:
      raise cursor.damaged(f"tensors {one!r} and {other!r} overlap")
  return GGUFFile(path, metadata, table)


def _tensor_entry(cursor: _Cursor, library: Any) -> tuple[str, Tensor]:
  """Name and place of a tensor, which starts at an offset from the data's beginning yet."""
  name = cursor.text("the name of a tensor")
  shown = f"tensor {name[:80]!r}"
  dimensions = cursor.number("<I", shown)
  if not 1 <= dimensions <= _MOST_DIMENSIONS:
    raise cursor.damaged(f"{shown} claims {dimensions} dimensions")
  shape = tuple(cursor.number("<Q", shown) for _ in range(dimensions))[::-1]
  if min(shape) < 1:
    raise cursor.damaged(f"{shown} has shape {list(shape)}")
  number, offset = cursor.number("<I", shown), cursor.number("<Q", shown)
  try:
    kind = library.GGMLQuantizationType(number)
  except ValueError as error:
    raise CheckpointError(
      f"{cursor.path}: {shown} has type {number}, expected one of {', '.join(TYPES)}"
    ) from error
  block, block_bytes = library.GGML_QUANT_SIZES[kind]
  if shape[-1] % block:
    raise cursor.damaged(f"{shown} has rows of {shape[-1]}, expected blocks of {block}")
  return name, Tensor(shape, kind.name, block, block_bytes, offset)
