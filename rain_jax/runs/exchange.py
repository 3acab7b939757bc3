"""Files in the form of other projects: HarmBench's completions and JailbreakBench's artifacts."""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rain_jax.runs import directory, from_config, judgements
from rain_jax.runs.results import answer_of, key_of
from rain_jax.runs.results import read_manifest as read_any_manifest
from rain_jax.tasks import Record
from rain_jax.tasks.readers import BEHAVIOR_ID
from rain_jax.types import DataError

_Line = Mapping[str, Any]


def write_completions(workdir: str, path: str, method: str) -> tuple[int, int]:
  """Writes a method's answers as HarmBench's classifier script reads them.

  An object of lists: under each behaviour's id an object with `test_case` (the prompt) and
  `generation` (the answer, a prefill included) for every test case. Prompts of other data sets have
  their own ids.

  Args:
    workdir: of the run.
    path: the file.
    method: whose answers.

  Returns:
    How many answers were written, and how many prompts have none.

  Raises:
    RunError: no run, no answer of that method, or prompts that are no longer in the task's files.
    DataError: a file that cannot be written.
  """
  records, lines = _records_of(workdir), _lines_of(workdir, method)
  found: dict[str, list[dict[str, str]]] = {}
  answered = [line for line in lines if "error" not in line]
  for line in answered:
    name = _record(records, line).fields.get(BEHAVIOR_ID, line["id"])
    one = {"test_case": line["prompt"], "generation": answer_of(line)}
    found.setdefault(str(name), []).append(one)
  _write(path, found)
  return len(answered), len(lines) - len(answered)


def write_artifact(workdir: str, path: str, method: str) -> tuple[int, int]:
  """Writes an artifact of JailbreakBench, from a run or from an attack with responses.

  Of a run each prompt was asked once, and the method, unless it is vanilla, is the defence. A
  response is a jailbreak where it is not harmless, or, where no judge was asked that, not refused.

  Args:
    workdir: of a run, or of a best-of-N attack.
    path: the file.
    method: of a run, whose answers.

  Returns:
    How many prompts were written, and how many of a run's were left out, being unjudged or without an
    answer.

  Raises:
    RunError: nothing that could be written. DataError: a file that cannot be written.
  """
  manifest = read_any_manifest(pathlib.Path(workdir))
  if manifest is not None and "attack" in manifest["config"]:
    rows, about = _attacked(workdir, manifest)
    left_out = 0
  else:
    rows, about, left_out = _answered(workdir, method)
  broken = sum(row["jailbroken"] for row in rows)
  total = lambda name: sum(row[name] for row in rows) if all(row[name] for row in rows) else None
  parameters = {
    **about,
    "attack_success_rate": broken / len(rows),
    "total_number_of_jailbreaks": broken,
    "number_of_submitted_prompts": len(rows),
    "total_number_of_queries": total("number_of_queries"),
    "total_prompt_tokens": total("prompt_tokens"),
    "total_response_tokens": total("response_tokens"),
    "evaluation_llm_provider": None,
  }
  _write(path, {"parameters": parameters, "jailbreaks": rows})
  return len(rows), left_out


def _answered(workdir: str, method: str) -> tuple[list[dict], dict[str, Any], int]:
  """A run's answers as jailbreaks, what is said of all of them, and how many are left out."""
  manifest = directory.read_manifest(workdir)
  config, records = manifest["config"], _records_of(workdir)
  said = judgements.first_answers(workdir, from_config.judges_of(config))
  rows, left_out = [], 0
  for place, line in enumerate(_lines_of(workdir, method)):
    broken = _broken({**line.get("judged", {}), **said.get(key_of(line), {})})
    if broken is None or "error" in line:
      left_out += 1
      continue
    record = _record(records, line)
    counters = line.get("counters", {})
    rows.append(
      _row(place, record.goal, record.fields)
      | {"prompt": line["prompt"], "response": answer_of(line)}
      | _cost(1, broken, counters.get("response_tokens"))
    )
  if not rows:
    raise directory.RunError(
      f"{workdir}: no response of {method} is judged; ask a judge of harm or of refusals by"
      " scripts/judge.py."
    )
  files = [pathlib.PurePath(name.strip()).stem for name in config["prompts"]["path"].split(",")]
  about = {
    "method": "+".join(filter(None, files)) or "+".join(config["tasks"]),
    "model": _model(manifest),
    "attack_type": None,
    "defense": None if method == "vanilla" else method,
    "evaluation_date": _day(manifest),
    "method_parameters": {"seed": config["seed"]},
  }
  return rows, about, left_out


def _attacked(workdir: str, manifest: Mapping[str, Any]) -> tuple[list[dict], dict[str, Any]]:
  """An attack's last request for each goal as a jailbreak, and what is said of all of them."""
  config = manifest["config"]
  settings = config["attack"]
  if settings["method"] != "best_of_n":
    raise directory.RunError(
      f"{workdir}: {settings['method']} asks for no responses; run scripts/generate.py with"
      f" --config.prompts.path={pathlib.Path(workdir) / 'attack.json'}, and give the --workdir of that."
    )
  asked: dict[str, list[_Line]] = {}
  for line in directory.read_results(workdir):
    asked.setdefault(line["behaviour"], []).append(line)
  (name,) = config["tasks"]
  # Goals as they were attacked, without the task's own suffixes.
  task = dataclasses.replace(from_config.task_of(config, name), suffixes="")
  records = {record.id: record for record in from_config.records_of(config, task)}
  rows = []
  for place, (behaviour, lines) in enumerate(asked.items()):
    record, last = _known(records, behaviour, name), max(lines, key=lambda line: line["round"])
    rows.append(
      _row(place, record.goal, record.fields)
      | {"prompt": last["prompt"], "response": last["response"]}
      | _cost(len(lines), last["broken"], None)
    )
  if not rows:
    raise directory.RunError(f"{workdir}: no response there; finish the attack first.")
  about = {
    "method": settings["method"],
    "model": _model(manifest),
    "attack_type": "black_box",
    "defense": None,
    "evaluation_date": _day(manifest),
    "method_parameters": {"seed": config["seed"], **settings["best_of_n"]},
  }
  return rows, about


def _row(place: int, goal: str, fields: Mapping[str, Any]) -> dict[str, Any]:
  """What an artifact says of a behaviour, from what the request's file says of it."""
  of = lambda *names: next((str(fields[n]) for n in names if fields.get(n) is not None), "")
  number = of("index", "Index")
  return {
    "index": int(number) if number.isdecimal() else place,
    "goal": goal,
    "behavior": of("behavior", "Behavior", BEHAVIOR_ID),
    "category": of("category", "Category", "SemanticCategory"),
  }


def _cost(queries: int, broken: bool, tokens: int | None) -> dict[str, Any]:
  return {
    "number_of_queries": queries,
    "queries_to_jailbreak": queries if broken else None,
    "prompt_tokens": None,
    "response_tokens": tokens,
    "jailbroken": broken,
  }


def _broken(answers: Mapping[str, bool]) -> bool | None:
  """Whether a response is a jailbreak; None where nobody said anything of that."""
  good = [answers[name] for name in ("harmless", "refused") if name in answers]
  return not good[0] if good else None


def _model(manifest: Mapping[str, Any]) -> str:
  model = manifest["model"]
  first = model[0] if isinstance(model, list) else model
  return pathlib.PurePath(first["path"]).name


def _day(manifest: Mapping[str, Any]) -> str | None:
  """When the run began, as 2026-01-31; None for an older one, which does not say."""
  try:
    return datetime.datetime.fromisoformat(manifest["started"]).date().isoformat()
  except (KeyError, TypeError, ValueError):
    return None


def _records_of(workdir: str) -> dict[tuple[str, str], Record]:
  """The prompts of a run by task and id, from the files that it was made with."""
  config = directory.read_manifest(workdir)["config"]
  return {
    (name, record.id): record
    for name in config["tasks"]
    for record in from_config.records_of(config, from_config.task_of(config, name))
  }


def _record(records: Mapping[tuple[str, str], Record], line: _Line) -> Record:
  return _known(records, (line["task"], line["id"]), line["task"])


def _known(records: Mapping[Any, Record], key: Any, task: str) -> Record:
  if key not in records:
    raise directory.RunError(
      f"result {key!r:.60} of {task}: its prompt is no longer in the task's files; put the files back"
      " that the run was made with."
    )
  return records[key]


def _lines_of(workdir: str, method: str) -> Sequence[_Line]:
  results = directory.read_results(workdir)
  lines = [line for line in results if line["method"] == method]
  if not lines:
    there = ", ".join(dict.fromkeys(line["method"] for line in results)) or "none"
    raise directory.RunError(f"{workdir}: no response of {method!r:.40} there; it has {there}.")
  return lines


def _write(path: str, value: Any) -> None:
  try:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    directory.replace_text(pathlib.Path(path), text)
  except OSError as error:
    raise DataError(f"{path}: {error.strerror}; choose another file.") from None
