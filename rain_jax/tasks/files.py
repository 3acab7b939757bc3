"""From the files that data sets come in to rows."""

import bz2
import codecs
import gzip
import logging
import lzma
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import huggingface_hub
import huggingface_hub.errors

from rain_jax.tasks.rows import LARGEST, PARSERS, Row, RowError, Rows
from rain_jax.types import DataError

HUB = "hub:"
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/([\w./ -]+)")
_OPENERS: Mapping[str, Callable[[Any], Any]] = {
  ".gz": gzip.open,
  ".bz2": bz2.open,
  ".xz": lzma.open,
}
_KINDS = ".jsonl, .ndjson, .json, .csv, .tsv or .txt, or one of them as .gz, .bz2 or .xz"
# First bytes of what is no text, whatever it is called.
_MAGIC = {
  b"\x1f\x8b": "a gzip file (name it .gz)",
  b"BZh": "a bzip2 file (name it .bz2)",
  b"\xfd7zXZ\0": "an xz file (name it .xz)",
  b"\x28\xb5\x2f\xfd": "a zstandard file (decompress it)",
  b"PK\x03\x04": "a zip file or a spreadsheet (unpack it, or save it as .csv)",
  b"PAR1": "a parquet file (convert it to .jsonl)",
  b"%PDF-": "a PDF file (convert it to text)",
}
_LOG = logging.getLogger(__name__)


def read_rows(path: str) -> list[Row]:
  """Reads a file, a folder of texts, or a file of a hub data set.

  Args:
    path: a .jsonl, .ndjson, .json, .csv, .tsv or .txt file, any of them compressed (.gz, .bz2, .xz),
      or a folder of .txt files with one text each; or `hub:OWNER/NAME/FILE`, the only case that uses
      the network.

  Raises:
    DataError: missing, not to be read as what its name says, or without rows.
  """
  rows = []
  for row in iterate_rows(path):
    if isinstance(row, RowError):
      raise row
    rows.append(row)
  return rows


def iterate_rows(path: str) -> Rows:
  """As `read_rows`, with a `RowError` in the place of each row that cannot be used.

  Raises:
    DataError: nothing of the file can be used.
  """
  file = _from_hub(path) if path.startswith(HUB) else pathlib.Path(path)
  if os.path.isdir(file):  # False, too, for what cannot be a path
    rows = _read_folder(file)
  elif os.path.isfile(file):
    rows = _parser(path, file)(path, _text(path, file))
  else:
    raise DataError(f"{path}: no such file; give the path of a file that is {_KINDS}.")
  found = False
  for row in rows:
    found = True
    yield row
  if not found:
    raise DataError(f"{path}: no prompt in the file.")


def _parser(path: str, file: pathlib.Path):
  name = file.name.lower()
  if file.suffix.lower() in _OPENERS:
    name = name.rpartition(".")[0]
  kind = pathlib.PurePath(name).suffix.removeprefix(".")
  if kind not in PARSERS:
    advice = {"zst": "decompress it first", "yaml": "save it as .jsonl", "yml": "save it as .jsonl"}
    raise DataError(
      f"{path}: .{kind} files are not read; expected {_KINDS}:"
      f" {advice.get(kind, 'convert it, for texts to .txt with a prompt on each line')}."
    )
  return PARSERS[kind]


def _from_hub(path: str) -> pathlib.Path:
  match = _HUB_FILE.fullmatch(path.removeprefix(HUB))
  if match is None:
    raise DataError(f"{path}: expected {HUB}OWNER/NAME/FILE, with the file's path in the data set.")
  try:
    return pathlib.Path(huggingface_hub.hf_hub_download(match[1], match[2], repo_type="dataset"))
  except huggingface_hub.errors.GatedRepoError:
    raise DataError(
      f"{path}: gated; accept the terms of data set {match[1]} on its page of the hub, then"
      " `hf auth login` or set HF_TOKEN to a token of yours."
    ) from None
  except huggingface_hub.errors.RepositoryNotFoundError:
    raise DataError(
      f"{path}: no data set {match[1]} on the hub, or a private one: check the name, or"
      " `hf auth login`."
    ) from None
  except huggingface_hub.errors.RemoteEntryNotFoundError:
    raise DataError(
      f"{path}: data set {match[1]} has no file {match[2]}; check its path there."
    ) from None
  except (
    huggingface_hub.errors.HfHubHTTPError,
    huggingface_hub.errors.HFValidationError,
    OSError,
  ) as error:
    reason = " ".join(str(error).split())[:200]
    raise DataError(f"{path}: not to be had from the hub ({reason}).") from None


def _text(path: str, file: pathlib.Path) -> str:
  kind = file.suffix.lower()
  with file.open("rb") as raw:
    try:
      stream = _OPENERS[kind](raw) if kind in _OPENERS else raw
      data = stream.read(LARGEST + 1)  # a small file may hold very much
    except (EOFError, OSError, zlib.error, lzma.LZMAError, MemoryError) as error:
      if kind not in _OPENERS:
        raise
      name = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz"}[kind]
      raise DataError(f"{path}: not a whole {name} file ({error}); fetch it again.") from None
  for begin, what in _MAGIC.items():
    if data.startswith(begin):
      raise DataError(f"{path}: {what}, by its first bytes, and not the text that its name says.")
  if len(data) > LARGEST:
    raise DataError(f"{path}: holds more than {LARGEST >> 20} MiB; split it into several files.")
  sample = data[:4096]
  if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or 4 * sample.count(0) > len(
    sample
  ):
    raise DataError(f"{path}: not UTF-8 text (UTF-16, or no text at all); convert it to UTF-8.")
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise DataError(f"{path}: not UTF-8 text ({error.reason}); convert the file.") from None


def _read_folder(folder: pathlib.Path) -> Iterator[Row]:
  """One text per file, in the order of names; the name, without ending, is the id."""
  files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
  texts = [file for file in files if file.suffix.lower() == ".txt"]
  if len(texts) < len(files):
    _LOG.warning(
      "%s: reads its %d .txt files, and none of the %d others",
      *(folder, len(texts), len(files) - len(texts)),
    )
  for place, file in enumerate(texts, 1):
    name = file.relative_to(folder).with_suffix("").as_posix()
    yield Row(str(file), place, {"id": name, "text": _text(str(file), file)})
