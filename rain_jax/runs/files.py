"""Files of a run: written whole or not at all, and lines of JSON that outlive a kill."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from rain_jax.text.atomic import PART as PART
from rain_jax.text.atomic import replace_text as replace_text
from rain_jax.text.atomic import sync_folder as sync_folder
from rain_jax.types import Stopped as Stopped


class RunError(ValueError):
  """A working directory that cannot be used; one line that says what to do."""


def replace_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  """Writes a JSON file, whole or not at all."""
  replace_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    RunError: it is not JSON, or no object.
  """
  try:
    value = json.loads(path.read_text(encoding="utf-8-sig"))  # editors leave a mark
  except (ValueError, RecursionError):
    raise RunError(f"{path}: not JSON; put a whole copy of it back.") from None
  if not isinstance(value, dict):
    raise RunError(f"{path}: expected a JSON object; put a whole copy of it back.")
  return value


def read_lines(path: pathlib.Path, check: Callable[[dict], str] = lambda line: "") -> list[dict]:
  """The whole lines of a file of JSON objects; none if there is no such file.

  A last line without its end counts if it is whole, and is left out if a kill may have cut it.
  Lines of white space do not count.

  Args:
    path: the file.
    check: what is wrong with a line; "" if nothing is.

  Raises:
    RunError: a line that is not a JSON object, or that `check` objects to.
  """
  try:
    rows = path.read_bytes().split(b"\n")
  except FileNotFoundError:
    return []
  lines = []
  for number, row in enumerate(rows, 1):
    if not row.strip() or (number == len(rows) and _cut_short(row)):
      continue
    try:
      line = _parse(row)
    except (ValueError, RecursionError):
      raise RunError(f"{path}, line {number}: not JSON; fix or remove the line.") from None
    wrong = check(line) if isinstance(line, dict) else f"{str(line)[:40]!r} is not a JSON object"
    if wrong:
      raise RunError(f"{path}, line {number}: {wrong}; fix or remove the line.")
    lines.append(line)
  return lines


def end_last_line(path: pathlib.Path) -> None:
  """Ends a whole last line that lacks its end, and cuts off one that a kill left half written."""
  if not path.exists():
    return
  data = path.read_bytes()
  size = data.rfind(b"\n") + 1
  if _cut_short(data[size:]):
    os.truncate(path, size)
  elif size < len(data):
    with open(path, "ab", buffering=0) as file:
      file.write(b"\n")
      os.fsync(file.fileno())


def _parse(row: bytes) -> Any:
  return json.loads(row.decode("utf-8-sig"), parse_constant=_refuse)


def _refuse(constant: str) -> None:
  raise ValueError(f"{constant} is not JSON")


def _cut_short(row: bytes) -> bool:
  """Whether a row may be the beginning of a line of ours; a crash may leave zeros in its place."""
  begin = row.lstrip(b"\0 \t\r\xef\xbb\xbf")[:1]
  if not row or begin not in (b"", b"{"):
    return False
  try:
    _parse(row)
  except (ValueError, RecursionError):
    return True
  return False
