"""From the files that data sets come in to rows: names and values, as they stand there."""

import csv
import dataclasses
import gzip
import io
import json
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any

import huggingface_hub
import huggingface_hub.errors

from rain_jax.types import DataError

HUB = "hub:"
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/([\w./ -]+)")


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a file.

  Attributes:
    path: the file.
    place: number of its line, or of the row where a file has no lines, from 1.
    values: by name.
  """

  path: str
  place: int
  values: dict[str, Any]

  @property
  def where(self) -> str:
    """For messages."""
    return f"{self.path}, line {self.place}"


def read_rows(path: str) -> list[Row]:
  """Reads a file, a folder of texts, or a file of a hub data set.

  Args:
    path: a .jsonl, .json, .csv or text file, any of them gzipped (.gz), or a folder of .txt
      files with one text each; or `hub:OWNER/NAME/FILE`, the only case that uses the network.

  Raises:
    DataError: missing, not to be read as what its name says, or without rows.
  """
  file = _from_hub(path) if path.startswith(HUB) else pathlib.Path(path)
  if file.is_dir():
    rows = list(_read_folder(file))
  elif file.is_file():
    kind = file.name.lower().removesuffix(".gz").rpartition(".")[2]
    readers = {"jsonl": _read_jsonl, "json": _read_json, "csv": _read_csv}
    rows = list(readers.get(kind, _read_text)(path, _text(path, file)))
  else:
    raise DataError(f"{path}: no such file; give the path of a .jsonl, .json, .csv or .txt file.")
  if not rows:
    raise DataError(f"{path}: no prompt in the file.")
  return rows


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
  try:
    data = file.read_bytes()
    if file.suffix.lower() == ".gz":
      data = gzip.decompress(data)
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise DataError(f"{path}: not UTF-8 text ({error.reason}); convert the file.") from None
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise DataError(f"{path}: not a whole gzip file ({error}); fetch it again.") from None


# Lines end at a line feed, and nowhere else: prompts may hold any other separator.


def _read_jsonl(path: str, text: str) -> Iterator[Row]:
  for place, line in enumerate(text.split("\n"), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError as error:
      raise DataError(f"{path}, line {place}: not JSON ({error}); fix or remove it.") from None
    if not isinstance(row, dict):
      raise DataError(f"{path}, line {place}: expected a JSON object, found {line[:40]!r}.")
    yield Row(path, place, row)


def _read_json(path: str, text: str) -> Iterator[Row]:
  """A list of objects, or one object of lists of equal length, as columns."""
  try:
    value = json.loads(text)
  except ValueError as error:
    if text.lstrip().startswith("{") and "\n" in text.strip():  # lines under a short name
      yield from _read_jsonl(path, text)
      return
    raise DataError(f"{path}: not JSON ({error}).") from None
  if isinstance(value, dict):
    columns = {name: column for name, column in value.items() if isinstance(column, list)}
    if len({len(column) for column in columns.values()}) != 1:
      sizes = {name: len(column) for name, column in columns.items()}
      raise DataError(f"{path}: expected lists of one length, found {sizes or 'none'}.")
    value = [dict(zip(columns, row)) for row in zip(*columns.values())]
  if not isinstance(value, list):
    raise DataError(f"{path}: expected a list of objects, found {type(value).__name__}.")
  for place, row in enumerate(value, 1):
    if not isinstance(row, dict):
      raise DataError(f"{path}, row {place}: expected a JSON object, found {str(row)[:40]!r}.")
    yield Row(path, place, row)


def _read_csv(path: str, text: str) -> Iterator[Row]:
  reader = csv.DictReader(io.StringIO(text, newline=""))
  try:
    for row in reader:
      if None in row:
        raise DataError(f"{path}, line {reader.line_num}: more fields than the header has.")
      yield Row(path, reader.line_num, row)
  except csv.Error as error:
    raise DataError(f"{path}, line {reader.line_num}: not CSV ({error}).") from None


def _read_text(path: str, text: str) -> Iterator[Row]:
  for place, line in enumerate(text.split("\n"), 1):
    if line.strip():
      yield Row(path, place, {"prompt": line.strip()})


def _read_folder(folder: pathlib.Path) -> Iterator[Row]:
  """One text per file, in the order of names; the name, without ending, is the id."""
  for place, file in enumerate(sorted(folder.rglob("*.txt")), 1):
    name = file.relative_to(folder).with_suffix("").as_posix()
    yield Row(str(file), place, {"id": name, "text": _text(str(file), file)})
