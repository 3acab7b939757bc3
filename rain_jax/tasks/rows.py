"""From a file's text to rows: names and values, as they stand there.

Each parser yields rows, and in their place a `RowError` for what is no row; what makes the whole file
unreadable, or ambiguous, it raises as a `DataError`. Lines end at a line feed, and nowhere else:
prompts may hold any other separator.
"""

import csv
import dataclasses
import io
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from rain_jax.text.printable import printable
from rain_jax.types import DataError

# Columns that hold the prompt in the field's data sets, in the order they are tried.
PROMPT_COLUMNS = ("prompt", "goal", "Goal", "question", "Question")

TEST_CASES = "test_cases"  # how the names of HarmBench's files of prompts begin
LARGEST = 1 << 28  # bytes of a file, and of one once it is decompressed
_SHOWN = 10  # names that a message lists

csv.field_size_limit(LARGEST)  # of the whole process; the default refuses long contexts


class RowError(DataError):
  """A row that cannot be used; the others can."""


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


Rows = Iterator[Row | RowError]


def listed(names: Iterable[Any]) -> str:
  """Names of fields, for messages."""
  shown = [f"{name!r:.40}" for name in names]
  more = [f"and {len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
  return ", ".join([*shown[:_SHOWN], *more]) or "none"


def load_json(text: str) -> Any:
  """A JSON value.

  Raises:
    ValueError: the text is none, an object has a name twice, or it is nested too deeply.
  """
  try:
    return json.loads(text, object_pairs_hook=_object)
  except RecursionError:
    raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  made = dict(pairs)
  if len(made) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"field {twice!r:.40} appears twice")
  return made


def json_lines(path: str, text: str) -> Rows:
  """An object on each line."""
  for place, line in enumerate(text.split("\n"), 1):
    if not line.strip():
      continue
    where = f"{path}, line {place}"
    try:
      row = load_json(line)
    except ValueError as error:
      yield RowError(f"{where}: not JSON ({error}); fix or remove it.")
      continue
    if isinstance(row, dict):
      yield Row(path, place, row)
    else:
      yield RowError(f"{where}: expected a JSON object, found {line[:40]!r}.")


def json_values(path: str, text: str) -> Rows:
  """A list of objects, an object of lists of equal length, as columns, or one with such a list.

  The last is how JailbreakBench keeps its artifacts: `jailbreaks` beside `parameters`. A file whose
  name begins with `test_cases` is one of HarmBench's, see `_test_cases`.
  """
  try:
    value = load_json(text)
  except ValueError as error:
    if getattr(error, "msg", "") == "Extra data":  # lines under a short name
      yield from json_lines(path, text)
      return
    raise DataError(f"{path}: not JSON ({error}).") from None
  if isinstance(value, dict) and pathlib.PurePath(path).name.startswith(TEST_CASES):
    yield from _test_cases(path, value)
    return
  if isinstance(value, dict):
    value = _rows_of(path, value)
  if not isinstance(value, list):
    raise DataError(f"{path}: expected a list of objects, found {type(value).__name__}.")
  for place, row in enumerate(value, 1):
    if isinstance(row, dict):
      yield Row(path, place, row)
    else:
      yield RowError(f"{path}, row {place}: expected a JSON object, found {str(row)[:40]!r}.")


def _test_cases(path: str, value: Mapping[str, Any]) -> Rows:
  """HarmBench's test cases, an object of lists of prompts by the behaviour's id, in order.

  The id of a row is that of its behaviour, with a number after it where that has several.
  """
  place = 0
  for name, cases in value.items():
    given = cases if isinstance(cases, list) else [cases]
    if not given:
      place += 1
      yield RowError(f"{path}, row {place}: no test case of {name!r:.40}.")
    for number, case in enumerate(given):
      place += 1
      if isinstance(case, str):
        own = name if len(given) == 1 else f"{name}.{number}"
        yield Row(path, place, {"id": own, "prompt": case, "BehaviorID": name})
      else:
        yield RowError(
          f"{path}, row {place}: a test case of {name!r:.40} is {case!r:.40}, expected text; those"
          " with images are not read."
        )


def _rows_of(path: str, value: Mapping[str, Any]) -> list[Any]:
  columns = {name: column for name, column in value.items() if isinstance(column, list)}
  lists = list(columns.values())
  if len(lists) == 1 and lists[0] and all(isinstance(row, dict) for row in lists[0]):
    return lists[0]
  if len({len(column) for column in lists}) != 1:
    sizes = ", ".join(f"{name!r:.40} of {len(column)}" for name, column in columns.items())
    raise DataError(
      f"{path}: expected rows, or lists of one length as columns; found {sizes or 'no list'} among"
      f" the fields {listed(value)}."
    )
  return [dict(zip(columns, row)) for row in zip(*lists)]


def comma_separated(path: str, text: str) -> Rows:
  """Columns between commas; between semicolons or tabs if the header has these and no comma."""
  # Excel's own first line, which says the sign; the lines after it keep their numbers.
  if named := re.match("(?i)sep=([,;\t|])\r?(?=\n)", text):
    return _table(path, text[named.end() :], named[1])
  first = next((line for line in text.split("\n") if line.strip()), "")
  others = [sign for sign in ";\t" if sign in first]
  sign = "," if "," in first or len(others) != 1 else others[0]
  return _table(path, text, sign)


def tab_separated(path: str, text: str) -> Rows:
  """Columns between tabs."""
  return _table(path, text, "\t")


def _table(path: str, text: str, sign: str) -> Rows:
  # Strict, or a quote that is never closed would swallow all rows after it. A carriage return ends a
  # line only where nothing else does.
  lines = io.StringIO(text, newline="\n" if "\n" in text else "")
  reader = csv.reader(lines, delimiter=sign, strict=True)
  header: list[str] = []
  begin = 1
  try:
    for cells in reader:
      place, begin = begin, reader.line_num + 1
      blank = len(cells) < max(2, len(header)) and not "".join(cells).strip()
      if not cells or (blank and len(header) != 1):
        continue
      if not header:
        header = [name.strip() for name in cells]
        twice = [name for name in header if name and header.count(name) > 1]
        if twice:
          raise DataError(f"{path}: column {twice[0]!r:.40} appears twice; rename or remove one.")
      elif len(cells) == len(header):
        yield Row(path, reader.line_num, {k: v for k, v in zip(header, cells) if k})
      else:
        much = "more" if len(cells) > len(header) else "fewer"
        yield RowError(
          f"{path}, line {place}: {much} fields than the header has ({len(cells)}, not"
          f" {len(header)}, between {sign!r}); put fields with {sign!r} in quotes."
        )
  except csv.Error as error:
    raise DataError(
      f"{path}, line {begin}: not CSV ({printable(str(error))}); close the quotes of each field, and double those"
      " inside it."
    ) from None


_TABLE_SIGNS = re.compile(r"[,;\t|]")
_NAMES = "|".join(PROMPT_COLUMNS)
_YAML_ROW = re.compile(rf"---|- ({_NAMES})\s*:.*|({_NAMES})s?\s*:")
# An object or a list of texts that is no JSON by itself: with a comma after it, in Python's quotes.
_NEARLY_JSON = re.compile(r"""\{\s*(["'])\w+\1\s*:.*\},?|\[\s*(["']).*\2\s*\],?""")


def plain_lines(path: str, text: str) -> Rows:
  """A prompt on each line; JSON under the name of a text is read as JSON."""
  lines = [(place, line.strip()) for place, line in enumerate(text.split("\n"), 1) if line.strip()]
  objects = [place for place, line in lines if _is_json(line, "{")]
  if objects and len(objects) == len(lines):
    return json_lines(path, text)
  if _is_json(text.strip(), "[{"):
    return json_values(path, text)
  if objects:
    raise DataError(
      f"{path}: some lines are JSON objects, such as line {objects[0]}, and others are not: fix it"
      " and name the file .jsonl, or take the objects out."
    )
  _check_plain(path, text, lines[0][1] if lines else "")
  return (Row(path, place, {"prompt": line}) for place, line in lines)


def _is_json(text: str, begins: str) -> bool:
  if not text or text[0] not in begins:
    return False
  try:
    load_json(text)
  except ValueError:
    return False
  return True


def _check_plain(path: str, text: str, first: str) -> None:
  """Refuses what only looks like a prompt on each line."""
  names = [cell.strip().strip("\"'").lower() for cell in _TABLE_SIGNS.split(first)]
  known = {name.lower() for name in PROMPT_COLUMNS}
  if len(names) > 1:
    known |= {"behavior", "chosen", "messages"}
  looks = None
  if "\n" not in text and "\r" in text.strip():
    raise DataError(f"{path}: its lines end in carriage returns alone; convert them to line feeds.")
  if known & set(names) and all(len(name.split()) <= 3 for name in names):
    looks = "the header of a table: name the file .csv or .tsv"
  elif _YAML_ROW.fullmatch(first):
    looks = "YAML, which is not read: save the rows as .jsonl"
  elif first in ("[", "{", "[{") or _NEARLY_JSON.fullmatch(first):
    looks = "JSON, and the file is none: fix it, and name it .json or .jsonl"
  if looks:
    raise DataError(f"{path}: its first line, {first[:40]!r}, looks like {looks}.")


# What makes rows of a file's text, by the ending of its name.
PARSERS: Mapping[str, Callable[[str, str], Rows]] = {
  "jsonl": json_lines,
  "ndjson": json_lines,
  "json": json_values,
  "csv": comma_separated,
  "tsv": tab_separated,
  "txt": plain_lines,
  "text": plain_lines,
  "": plain_lines,
}
