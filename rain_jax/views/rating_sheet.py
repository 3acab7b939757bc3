"""Human raters: a blind sheet of a run's answers, and the score of a sheet that came back.

The sheet is a csv with one answer per row: nothing in it, nor the order of its rows, says
which method an answer is from. The key that does is a file of its own, to be kept apart from
the sheet. What raters say becomes one more judge of the run, `human:NAME`.
"""

import csv
import io
import json
import pathlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rain_jax.runs import judgements
from rain_jax.runs.directory import RunError
from rain_jax.runs.results import answer_of
from rain_jax.tasks.files import read_rows
from rain_jax.text.formats import with_system
from rain_jax.text.printable import printable
from rain_jax.types import DataError

COLUMNS = ("item", "conversation", "answer", "rating")
_YES, _NO = ("yes", "y", "1", "true"), ("no", "n", "0", "false")
# Spreadsheets take a cell for a formula by its first sign; full-width forms count as well.
_FORMULA = tuple("=+-@\t\r\n|%\uff1d\uff0b\uff0d\uff20")


def make(
  results: Sequence[Mapping[str, Any]], limit: int = 0, seed: int = 0
) -> tuple[str, dict[str, Any]]:
  """A sheet of a run's answers, and its key.

  Args:
    results: lines of a run's results; rejected prompts are left out.
    limit: prompts on the sheet, drawn at random; 0 takes all.
    seed: of the order of prompts, of the answers to each, and of their numbers.

  Returns:
    The sheet as csv text, and for each item's number the response it is, see
    `judgements.key_of`.
  """
  rng = random.Random(seed)
  by_prompt: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
  for line in results:
    if "error" not in line:
      by_prompt.setdefault((line["task"], line["id"]), []).append(line)
  if not by_prompt:
    raise RunError("the run has no answers to rate.")
  chosen = rng.sample(sorted(by_prompt), min(limit, len(by_prompt)) if limit else len(by_prompt))
  lines = [
    line for prompt in chosen for line in rng.sample(by_prompt[prompt], len(by_prompt[prompt]))
  ]
  out, key = io.StringIO(), {}
  writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
  writer.writerow(COLUMNS)
  for number, line in enumerate(lines, 1):
    turns = (*line.get("history", ()), line.get("goal", line["prompt"]))
    said = "\n\n".join(with_system(line.get("system", ""), turns))
    writer.writerow([number, cell(said), cell(answer_of(line)), ""])
    key[str(number)] = list(judgements.key_of(line))
  return out.getvalue(), key


def cell(text: str) -> str:
  """Text as it may stand in a spreadsheet: no formula, no control characters."""
  text = printable(text)
  return f"'{text}" if text.lstrip(" \u00a0").startswith(_FORMULA) else text


def write(path: str, key_path: str, sheet: str, key: Mapping[str, Any]) -> None:
  """Writes both; what is there already is not overwritten.

  Raises:
    RunError: a file is there, or cannot be written.
  """
  if pathlib.Path(path).resolve() == pathlib.Path(key_path).resolve():
    raise RunError(f"{path}: sheet and key need two files.")
  for name, text in ((path, sheet), (key_path, json.dumps(key, indent=1) + "\n")):
    try:
      with open(name, "x", encoding="utf-8", newline="") as file:
        file.write(text)
    except FileExistsError:
      raise RunError(
        f"{name}: is there already; it may hold ratings, choose another name."
      ) from None
    except OSError as error:
      raise RunError(f"{name}: {error.strerror}.") from None


def score(
  results: Sequence[Mapping[str, Any]], path: str, key_path: str, measure: str, name: str
) -> Iterator[dict[str, Any]]:
  """Lines for `judgements.append` from a sheet that came back.

  Args:
    results: of the run that the sheet was made of.
    path: the sheet, with yes or no (y, n, 1, 0, true, false) under `rating`, or nothing.
    key_path: its key.
    measure: what the ratings say, such as harmless.
    name: of the rater; the judge is `human:<name>`.

  Raises:
    DataError: a rating that is neither yes nor no, an item that the key does not know, that
      appears twice, or whose answer is not this run's.
  """
  key = _read_key(key_path)
  said_by = {judgements.key_of(line): answer_of(line) for line in results if "error" not in line}
  seen = set()
  for row in read_rows(path):
    item, rating = (str(row.values.get(field) or "").strip() for field in ("item", "rating"))
    if item not in key or item in seen:
      why = "appears twice" if item in seen else "is not in the key"
      raise DataError(f"{row.where}: item {item!r} {why}; sheet and key belong together.")
    seen.add(item)
    task, record, method = key[item]
    given, shown = said_by.get((task, record, method)), row.values.get("answer")
    # Raters may leave the column away; spreadsheets change white space and signs.
    if given is None or (shown is not None and _words(str(shown)) != _words(cell(given))):
      raise DataError(f"{row.where}: item {item!r} is not of this run; give the run's own sheet.")
    answer = rating.lower()
    if answer and answer not in _YES + _NO:
      raise DataError(f"{row.where}: rating {rating!r}, expected yes, no or nothing.")
    said = {"answers": {measure: answer in _YES}} if answer else {"unjudged": "not rated"}
    yield {
      "id": record,
      "task": task,
      "method": method,
      "judge": f"human:{name}",
      "by": measure,
      "measure": measure,
      **said,
    }


def _read_key(path: str) -> dict[str, tuple[str, str, str]]:
  try:
    key = json.loads(pathlib.Path(path).read_text("utf-8-sig"))
  except (OSError, ValueError, RecursionError) as error:
    raise DataError(f"{path}: no key of a sheet ({error}).") from None
  if not isinstance(key, dict) or not all(
    isinstance(of, list) and len(of) == 3 and all(isinstance(part, str) for part in of)
    for of in key.values()
  ):
    raise DataError(f"{path}: no key of a sheet; give the file that was written with it.")
  return {item: tuple(of) for item, of in key.items()}


def _words(text: str) -> str:
  return re.sub(r"\W+", "", text)
