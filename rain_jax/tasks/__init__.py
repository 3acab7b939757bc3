"""Tasks: which prompts, in what format, aligned with what, judged by whom.

A task is data. `load_prompts` reads the formats that the field's data sets come in;
`TASKS` names what belongs together.
"""

import csv
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from rain_jax import demo

# Columns that hold the prompt in the field's data sets, in the order they are tried.
PROMPT_COLUMNS = ("prompt", "goal", "question", "Question")


class DataError(ValueError):
  """Prompts that cannot be read; the message is one line and says what to do."""


@dataclasses.dataclass(frozen=True)
class Record:
  """One prompt.

  Attributes:
    id: unique in its file.
    prompt: what the user says.
    fields: everything else the file says of it, for judges.
  """

  id: str
  prompt: str
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Format:
  """How a prompt is put to the model.

  Attributes:
    prefix: fixed text before every prompt, read by the model once per run.
    template: the turn, with {prompt}; the response follows directly.
    stop: strings that end a response.
  """

  prefix: str = ""
  template: str = "Human: {prompt}\n\nAssistant:"
  stop: tuple[str, ...] = ("\n\nHuman:",)

  def render(self, prompt: str) -> str:
    """The prompt's turn; braces in the user's text mean nothing."""
    return self.template.replace("{prompt}", prompt)


DIALOGUE = Format()
VICUNA = Format(template="USER: {prompt} ASSISTANT:", stop=("USER:",))
QUESTION = Format(template="Q: {prompt}\nA:", stop=("\nQ:",))
REVIEW = Format(template="Review: {prompt}", stop=("\nReview:",))


@dataclasses.dataclass(frozen=True)
class Task:
  """What belongs together in a run.

  Attributes:
    prompts: files with the task's own prompts; empty if the user has to name one.
    format: how prompts are put to the model.
    preference: name of a preference template.
    variant: which of the method's search variants, see `types`.
    judge: name of a judge in `rain_jax.judges`, or "none".
  """

  prompts: tuple[str, ...]
  format: Format
  preference: str
  variant: str = "harmless"
  judge: str = "none"


def _demo_file(kind: str) -> str:
  return str(demo.PROMPTS_DIR / f"{kind}.jsonl")


TASKS: Mapping[str, Task] = {
    "dialogue": Task((), DIALOGUE, "harmless"),
    "adversarial": Task((), VICUNA, "adversarial_harmless", "adversarial"),
    "questions": Task((), QUESTION, "truthful", "truthful"),
    "reviews": Task((), REVIEW, "positive"),
    "demo_requests": Task(
        (_demo_file("harmful"), _demo_file("benign")), DIALOGUE, "harmless", judge="demo_rules"
    ),
    "demo_questions": Task(
        (_demo_file("question"),), QUESTION, "truthful", "truthful", judge="demo_rules"
    ),
    "demo_reviews": Task((_demo_file("review"),), REVIEW, "positive", judge="demo_rules"),
}


def find_task(name: str) -> Task:
  """The task of that name; `DataError` lists the known ones."""
  if name not in TASKS:
    raise DataError(f"Unknown task {name!r}: expected one of {', '.join(TASKS)}.")
  return TASKS[name]


def load_prompts(path: str, column: str = "") -> list[Record]:
  """Reads prompts from a .jsonl, .csv or plain text file (one prompt per line).

  Args:
    path: the file.
    column: field that holds the prompt; by default the first of `PROMPT_COLUMNS` that is
      there. Plain text has none.

  Returns:
    Records in the file's order. Ids are the file's own `id` field, or line numbers.

  Raises:
    DataError: missing file, malformed line, no prompt column, an id that stands twice,
      no prompt at all.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise DataError(f"{path}: no such file; give the path of a .jsonl, .csv or .txt file.")
  try:
    text = file.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise DataError(f"{path}: not UTF-8 text ({error.reason}); convert the file.") from None
  readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
  rows = readers.get(file.suffix.lower(), _read_text)(path, text)
  records, seen = [], set()
  for place, row in rows:
    record = _record(path, place, row, column)
    if record.id in seen:
      raise DataError(f"{path}: id {record.id!r} stands twice; make ids unique.")
    seen.add(record.id)
    records.append(record)
  if not records:
    raise DataError(f"{path}: no prompt in the file.")
  return records


def _record(path: str, place: int, row: dict, column: str) -> Record:
  names = (column,) if column else PROMPT_COLUMNS
  name = next((n for n in names if n in row), None)
  if name is None:
    raise DataError(
        f"{path}, line {place}: no field {' or '.join(map(repr, names))};"
        " name the prompt's field in config.prompts.column."
    )
  prompt = row[name]
  if not isinstance(prompt, str):
    raise DataError(f"{path}, line {place}: {name!r} is {prompt!r}, expected text.")
  fields = {key: value for key, value in row.items() if key not in (name, "id")}
  return Record(str(row.get("id", place)), prompt, fields)


def _read_jsonl(path: str, text: str):
  for place, line in enumerate(text.splitlines(), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except json.JSONDecodeError as error:
      raise DataError(f"{path}, line {place}: not JSON ({error.msg}); mend or remove it.") from None
    if not isinstance(row, dict):
      raise DataError(f"{path}, line {place}: expected a JSON object, found {line[:40]!r}.")
    yield place, row


def _read_csv(path: str, text: str):
  reader = csv.DictReader(text.splitlines(keepends=True))
  for row in reader:
    if None in row:
      raise DataError(f"{path}, line {reader.line_num}: more fields than the header has.")
    yield reader.line_num, row


def _read_text(path: str, text: str):
  for place, line in enumerate(text.splitlines(), 1):
    if line.strip():
      yield place, {PROMPT_COLUMNS[0]: line.strip()}
