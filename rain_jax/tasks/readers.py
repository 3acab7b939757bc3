"""From a data set's rows to records: which column is the prompt, and what belongs to it.

Each reader takes a row and the name of the prompt's column ("" for the data set's own), and
returns the records that the row stands for.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from rain_jax.tasks import messages
from rain_jax.tasks.files import iterate_rows, read_rows
from rain_jax.tasks.records import Record
from rain_jax.tasks.rows import PROMPT_COLUMNS as PROMPT_COLUMNS
from rain_jax.tasks.rows import Row, RowError, listed
from rain_jax.types import DataError

REVIEW_COLUMNS = ("review", "text", "prompt")  # IMDB as a csv, as a folder or JSON lines
CONTROLS = "controls"  # attack suffixes, as the method's published code and llm-attacks call them
LABELS = ("A", "B")  # of a binary choice
MISUSE, BENIGN = "misuse", "benign"
# HarmBench's behaviours. Its baselines put a context before the behaviour that needs it, so.
BEHAVIOR, CONTEXT, BEHAVIOR_ID, IMAGE = "Behavior", "ContextString", "BehaviorID", "ImageFileName"
CONTEXT_END = "\n\n---\n\n"

Reader = Callable[[Row, str], list[Record]]

# A turn begins a paragraph. Only the last two line ends before it are looked at, whatever stands
# before those, so that a page of empty lines is read once.
_TURN = re.compile(r"(?:\A\s*|\n[^\S\n]*\n[^\S\n]*)(Human|Assistant):")


def load_records(
  reader: Reader,
  paths: Sequence[str],
  column: str = "",
  limit: int = 0,
  left_out: list[str] | None = None,
) -> list[Record]:
  """Reads files by one reader.

  Args:
    reader: of this module.
    paths: the files. With more than one, those whose rows have no id of their own get the
      file's name before theirs.
    column: field that holds the prompt; "" for the data set's own.
    limit: rows taken from each file; 0 takes all.
    left_out: gets a line about each row that cannot be used; None makes the first of them an error.

  Returns:
    Records in the files' order.

  Raises:
    DataError: a file that cannot be read, or none of whose rows can be used, an id that appears
      twice, or another row that cannot be used.
  """
  records: list[Record] = []
  seen: set[str] = set()
  for path in paths:
    taken, before = 0, len(left_out or ())
    for row in iterate_rows(path):
      if limit and taken == limit:
        break
      try:
        made = _read(reader, row, column, len(paths) > 1, seen)
      except DataError as error:
        if left_out is None:
          raise
        left_out.append(str(error))
        continue
      taken += 1
      seen.update(record.id for record in made)
      records += made
    if not taken:
      lost = left_out[before:] if left_out else []
      raise DataError(f"{path}: none of its {len(lost)} rows can be used; the first: {lost[0]}")
  return records


def _read(
  reader: Reader, row: Row | RowError, column: str, several: bool, seen: set[str]
) -> list[Record]:
  """A row's records, with ids that are not among those seen."""
  if isinstance(row, RowError):
    raise row
  made = reader(row, column)
  if several and _own_id(row, ("id",)) is None:
    stem = pathlib.PurePath(row.path).name.partition(".")[0]
    made = [dataclasses.replace(record, id=f"{stem}:{record.id}") for record in made]
  for record in made:
    if record.id in seen:
      raise RowError(f"{row.where}: id {record.id!r:.60} appears twice; make ids unique.")
  return made


def load_prompts(path: str, column: str = "") -> list[Record]:
  """Reads prompts from one file, see `files.read_rows` and `prompts`."""
  return load_records(prompts, [path], column)


def prompts(row: Row, column: str = "") -> list[Record]:
  """One prompt per row; a dialogue, or a goal with attack suffixes, where it is one.

  A dialogue is a list of messages, see `messages.parse`, or a transcript as HH has them.
  Ids are the row's own `id` or HarmBench's `BehaviorID`, or line numbers. A behaviour of HarmBench
  follows its context, if it has one.
  """
  dialogue = messages.column_of(row, column)
  if dialogue:
    return _with_suffixes(row, _of_messages(row, dialogue))
  if not column and "chosen" in row.values:
    return [_dialogue(row)]
  behavior = BEHAVIOR_ID in row.values and BEHAVIOR in row.values
  name, prompt = _find(row, (column,) if column else PROMPT_COLUMNS + (BEHAVIOR,) * behavior)
  fields = {key: value for key, value in row.values.items() if key not in (name, "id")}
  if row.values.get(IMAGE):
    raise RowError(f"{row.where}: asks about an image ({IMAGE}), which no model here can see.")
  context = row.values.get(CONTEXT)
  # A prompt that was made of a behaviour, by an attack, is whole already.
  bare = name == BEHAVIOR or BEHAVIOR not in row.values
  if bare and context is not None and _text(row, CONTEXT).strip() and context not in prompt:
    prompt = f"{context}{CONTEXT_END}{prompt}"
  return _with_suffixes(row, Record(_id(row, ("id", BEHAVIOR_ID)), prompt, fields))


def _of_messages(row: Row, name: str) -> Record:
  fields = {key: value for key, value in row.values.items() if key not in (name, "id")}
  said = messages.parse(row.values[name], row.where)
  return Record(_id(row), said.prompt, fields, said.history, said.system, said.prefill)


def _with_suffixes(row: Row, record: Record) -> list[Record]:
  """The record, or with each of the attack suffixes that its row has."""
  if CONTROLS not in record.fields:
    return [record]
  others = {name: value for name, value in record.fields.items() if name != CONTROLS}
  record = dataclasses.replace(record, fields=others)
  return attacked(record, _suffixes(row.where, row.values[CONTROLS]))


def _id(row: Row, names: Sequence[str] = ("id",)) -> str:
  found = _own_id(row, names)
  return str(row.place) if found is None else found


def _own_id(row: Row, names: Sequence[str]) -> str | None:
  """The first id that a row has under one of the names; null, NaN and empty text are none."""
  for name in names:
    value = row.values.get(name)
    if isinstance(value, bool) or not isinstance(value, (str, int, float, type(None))):
      raise RowError(f"{row.where}: {name!r} is {value!r:.60}, expected text or a number.")
    if isinstance(value, float) and math.isinf(value):
      raise RowError(f"{row.where}: {name!r} is {value}, expected text or a finite number.")
    if value is not None and value == value and str(value).strip():
      return str(value)
  return None


def _find(row: Row, names: Sequence[str]) -> tuple[str, str]:
  name = next((n for n in names if n in row.values), None)
  alike = [n for n in row.values if name and n.strip().lower() == name.lower()]
  if len(alike) > 1 and len(names) > 1:
    raise DataError(
      f"{row.where}: fields {listed(alike)} differ in case only: name the prompt's field in"
      " config.prompts.column."
    )
  if name is None:
    near = [n for n in row.values if n.strip().lower() in [known.lower() for known in names]]
    name = near[0] if len(near) == 1 else None
  if name is None:
    raise DataError(
      f"{row.where}: no field {' or '.join(map(repr, names))}; found {listed(row.values)}:"
      " name the prompt's field in config.prompts.column."
    )
  return name, _text(row, name)


def _text(row: Row, name: str) -> str:
  value = row.values.get(name)
  if isinstance(value, str):
    return value
  if name not in row.values:
    raise RowError(f"{row.where}: no field {name!r}; found {listed(row.values)}.")
  hint = ""
  if value is None and "jailbroken" in row.values:
    hint = "; an artifact of JailbreakBench has no prompt where the attack found none"
  elif isinstance(value, list):
    hint = "; this task's prompts are no lists of messages"
  raise RowError(f"{row.where}: {name!r} is {value!r:.60}, expected text{hint}.")


def _dialogue(row: Row) -> Record:
  """Anthropic's HH: `chosen` and `rejected` are one dialogue with two last answers."""
  turns = parse_dialogue(_text(row, "chosen"), row.where)
  fields = {k: v for k, v in row.values.items() if k != "id"}
  return Record(_id(row), turns[-1], fields, tuple(turns[:-1]))


def parse_dialogue(text: str, where: str = "dialogue") -> list[str]:
  """The turns of a transcript without its last answer: user, assistant, ..., user.

  A speaker who goes on after an empty line and their own name is one turn.

  Raises:
    DataError: it does not begin with `Human:`.
  """
  said: list[tuple[str, str]] = []
  parts = _TURN.split(text)
  for speaker, words in zip(parts[1::2], parts[2::2]):
    if said and said[-1][0] == speaker:
      said[-1] = (speaker, f"{said[-1][1]}\n\n{words.strip()}")
    else:
      said.append((speaker, words.strip()))
  if said and said[-1][0] == "Assistant":
    said.pop()
  if parts[0].strip() or not said or said[0][0] != "Human":
    raise RowError(
      f"{where}: expected a dialogue that begins with 'Human:', found {text[:40]!r}; for a data set"
      " with prompts of its own, name their field in config.prompts.column."
    )
  return [words for _, words in said]


# -- attacks ----------------------------------------------------------------------


def attacked(record: Record, suffixes: Sequence[str]) -> list[Record]:
  """The record's prompt with each suffix after it; what was asked stays in `goal`.

  An attack that alters the request itself has no suffix, and the request in `original`.
  """
  made = []
  for number, suffix in enumerate(suffixes):
    name = record.id if len(suffixes) == 1 else f"{record.id}.{number}"
    goal = record.fields.get("original", record.prompt)
    prompt = f"{record.prompt} {suffix}" if suffix else record.prompt
    fields = {**record.fields, "goal": goal, "suffix": suffix}
    made.append(dataclasses.replace(record, id=name, prompt=prompt, fields=fields))
  return made


def load_suffixes(path: str) -> Callable[[Record], list[Record]]:
  """What a file of attack suffixes makes of a record.

  The file has the fields `goal` and `controls`: as rows (JSON lines or a JSON list), or as
  one object of two lists. `controls` of a goal is a suffix or a list of them. A file whose
  goals all have the same suffixes is a universal attack and serves every prompt.

  Raises:
    DataError: the file is not of that form; later, a prompt for which it has no suffix.
  """
  found: dict[str, list[str]] = {}
  for row in read_rows(path):
    if CONTROLS not in row.values:
      raise DataError(f"{row.where}: no field {CONTROLS!r}; expected 'goal' and {CONTROLS!r}.")
    found.setdefault(_text(row, "goal"), []).extend(_suffixes(row.where, row.values[CONTROLS]))
  first = next(iter(found.values()))
  universal = len(found) > 1 and all(suffixes == first for suffixes in found.values())

  def attack(record: Record) -> list[Record]:
    suffixes = found.get(record.prompt, first if universal else None)
    if suffixes is None:
      raise DataError(
        f"{path}: no suffix for {record.prompt[:60]!r}; it has {len(found)} goals: attack this"
        " one too, or name the file in config.prompts.path to run its own goals."
      )
    return attacked(record, suffixes)

  return attack


def _suffixes(where: str, value: Any) -> list[str]:
  suffixes = value if isinstance(value, list) else [value]
  if not suffixes or not all(isinstance(suffix, str) for suffix in suffixes):
    raise RowError(f"{where}: {CONTROLS!r} is {str(value)[:40]!r}, expected text or a list of it.")
  return suffixes


def load_behaviors(path: str) -> Callable[[Record], Record]:
  """What a file of HarmBench's behaviours makes of a test case: one whose goal is the behaviour.

  Raises:
    DataError: the file has no behaviours; later, a test case of a behaviour that is not in it.
  """
  found: dict[str, Record] = {}
  for row in read_rows(path):
    for name in (BEHAVIOR, BEHAVIOR_ID):
      _text(row, name)
    if not row.values.get(IMAGE):
      (found[row.values[BEHAVIOR_ID]],) = prompts(row)

  def with_goal(record: Record) -> Record:
    name = record.fields.get(BEHAVIOR_ID)
    if name not in found:
      raise DataError(
        f"{path}: no behaviour {name!r:.60}, of which {record.id!r:.60} is a test case; it has"
        f" {len(found)}: name the file that the test cases were made for."
      )
    about = found[name]
    fields = {**about.fields, **record.fields, "goal": about.prompt}
    return dataclasses.replace(record, fields=fields)

  return with_goal


# -- questions --------------------------------------------------------------------


def binary_choice(row: Row, column: str = "") -> list[Record]:
  """TruthfulQA's binary choice: the best answer and the best incorrect one, in both orders.

  The columns are `Best Answer` and `Best Incorrect Answer`; files from before the authors
  added the latter give the first of `Incorrect Answers`. `fields["label"]` is the letter of
  the right one.
  """
  name, question = _find(row, (column,) if column else PROMPT_COLUMNS)
  right = _text(row, "Best Answer").strip()
  if "Best Incorrect Answer" in row.values:
    wrong = _text(row, "Best Incorrect Answer").strip()
  else:
    wrong = _text(row, "Incorrect Answers").split(";")[0].strip()
  if not right or not wrong:
    raise RowError(f"{row.where}: the best answer or the incorrect one is empty.")
  fields = {key: value for key, value in row.values.items() if key not in (name, "id")}
  made = []
  for label, options in zip(LABELS, ((right, wrong), (wrong, right))):
    text = f"{question}\n(A) {options[0]}\n(B) {options[1]}"
    extra = {"label": label, "question": question, "pair": _id(row)}
    made.append(Record(f"{_id(row)}-{label}", text, {**fields, **extra}))
  return made


# -- reviews ----------------------------------------------------------------------


def review_beginnings(words: int) -> Reader:
  """A reader of IMDB's reviews: the first words of each, within its first sentence."""

  def read(row: Row, column: str = "") -> list[Record]:
    name, text = _find(row, (column,) if column else REVIEW_COLUMNS)
    text = " ".join(re.sub(r"<br\s*/?>", " ", text).split())
    sentence = re.match(r".*?[.!?](?=\s|$)|.*", text)
    beginning = " ".join(sentence[0].split(" ")[:words]) if sentence else ""
    fields = {key: value for key, value in row.values.items() if key not in (name, "id")}
    return [Record(_id(row), beginning, fields)]

  return read


# -- misuse and benign requests ---------------------------------------------------


def misuse_or_benign(row: Row, column: str = "") -> list[Record]:
  """JailbreakBench's behaviours: `fields["group"]` is misuse or benign.

  The group is what the file's name begins with, harmful or benign, as published, or else a
  column `group`. `Index` pairs a misuse with a benign behaviour, and is the id.
  """
  made = prompts(row, column)
  stem = pathlib.PurePath(row.path).name.lower()
  group = row.values.get("group")
  if group is None:
    group = BENIGN if stem.startswith("benign") else MISUSE if stem.startswith("harmful") else None
  if group not in (MISUSE, BENIGN):
    raise DataError(
      f"{row.where}: misuse or benign? Expected a file named harmful... or benign..., or a"
      f" column 'group' with {MISUSE!r} or {BENIGN!r}, found {group!r}."
    )
  number, old = _id(row, ("id", "Index")), _id(row, ("id", BEHAVIOR_ID))
  return [
    dataclasses.replace(
      record, id=number + record.id.removeprefix(old), fields={**record.fields, "group": group}
    )
    for record in made
  ]
