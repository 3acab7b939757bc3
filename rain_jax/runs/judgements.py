"""A run's responses before its judges: verdicts on disk, rates by judge, agreement.

`judged.jsonl` in the working directory gets one line per response and judge, `answers` or the
reason why it is `unjudged`. It only grows: a later line of the same response and judge
replaces an earlier one; a person's lines name a `measure` each, and replace those of the same
measure. Unjudged responses are tried again each time.
"""

import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tqdm

from rain_jax.judges import JUDGES, Judge, agreements, rate
from rain_jax.runs.directory import JUDGED, read_results
from rain_jax.runs.files import RunError, Stopped, end_last_line, read_lines
from rain_jax.runs.results import answer_of, key_of
from rain_jax.tasks import Record

_LOG = logging.getLogger(__name__)

Key = tuple[str, str, str]  # task, id, method


def read_judged(workdir: str) -> dict[tuple[Key, str, str], dict]:
  """The last line of each response, judge and measure ("" but for people's lines).

  A half-written last line is left out.
  """
  path = pathlib.Path(workdir) / JUDGED
  found = {}
  for line in read_lines(path, _check):
    found[key_of(line), line["judge"], line.get("measure", "")] = line
  return found


def _check(line: Mapping[str, Any]) -> str:
  """What is wrong with a line of verdicts; "" if nothing is."""
  for name in ("task", "id", "method", "judge", "by", "measure"):
    if not isinstance(line.get(name, "" if name == "measure" else None), str):
      return f"{name}={line.get(name)!r:.40}, expected text"
  answers = line.get("answers", {})
  if not isinstance(answers, dict) or not all(isinstance(v, bool) for v in answers.values()):
    return f"answers={answers!r:.40}, expected true or false by measure"
  if ("answers" in line) == ("unjudged" in line):
    return "expected either answers or unjudged"
  return ""


def _read_all(workdir: str, own: Mapping[str, Sequence[str]]) -> dict[tuple[Key, str, str], dict]:
  """As `read_judged`, with the answers of rules that stand in the results alone.

  A run with one rule for a judge has no file; of several, each has its lines there.
  """
  lines = read_judged(workdir)
  if not lines:
    return {}
  found = {}
  for result in read_results(workdir):
    judges = own.get(result["task"], ())
    if len(judges) == 1 and judges[0] in JUDGES and "error" not in result:
      said = {} if "unjudged" in result else {"answers": result.get("judged", {})}
      found[key_of(result), judges[0], ""] = said
  return found | lines


def append(workdir: str, lines: Iterable[Mapping[str, Any]]) -> None:
  """Adds lines to `judged.jsonl`, each on disk before the next is made.

  One process at a time may do so, see `locks.judging`.

  Raises:
    RunError: they cannot be written.
  """
  path = pathlib.Path(workdir) / JUDGED
  try:
    end_last_line(path)
    file = open(path, "ab", buffering=0)
  except OSError as error:
    raise _not_written(path, error) from None
  with file:
    for line in lines:  # what goes wrong in the making is not the file's
      data = (json.dumps(line) + "\n").encode()
      try:
        while data:  # a disk that is nearly full takes a part
          data = data[os.write(file.fileno(), data) :]
        os.fsync(file.fileno())
      except OSError as error:
        raise _not_written(path, error) from None


def _not_written(path: pathlib.Path, error: OSError) -> RunError:
  return RunError(f"{path}: {error.strerror}; what is judged so far is kept.")


def judge_results(
  workdir: str,
  results: Sequence[Mapping[str, Any]],
  records: Mapping[str, Sequence[Record]],
  judges: Mapping[str, Sequence[Judge]],
  stopping: Callable[[], bool] = lambda: False,
) -> None:
  """Judges every answered result that its judges have no answer to yet.

  Args:
    workdir: of the run.
    results: lines of its results.
    records: the prompts of each task.
    judges: the judges of each task; one that several tasks share is asked once.
    stopping: asked after each verdict that is written; True ends the judging.

  Raises:
    Stopped: as asked; verdicts so far are kept.
    RunError: a result of a prompt that is not there, or a file that cannot be written.
    DataError, models.hf.CheckpointError, ValueError: a judge that cannot be used.
  """
  prompts = {(task, record.id): record for task, some in records.items() for record in some}
  known = read_judged(workdir)
  everyone = {judge.name: judge for some in judges.values() for judge in some}
  for judge in everyone.values():
    tasks = [task for task, some in judges.items() if judge.name in [j.name for j in some]]
    waiting = []
    for line in results:
      old = known.get((key_of(line), judge.name, ""), {})
      done = "answers" in old and old["by"] == judge.by
      if line["task"] in tasks and "error" not in line and not done:
        waiting.append(line)
    if waiting:
      append(workdir, _lines(judge, waiting, prompts, stopping))


def _lines(
  judge: Judge, waiting: Sequence[Mapping[str, Any]], prompts, stopping: Callable[[], bool]
) -> Iterable[dict]:
  items = []
  for line in waiting:
    record = prompts.get((line["task"], line["id"]))
    if record is None or record.prompt != line["prompt"]:
      raise RunError(
        f"result {line['id']!r} of {line['task']}: its prompt is no longer in the task's files;"
        " put the files back that the run was made with."
      )
    items.append((record, answer_of(line)))
  told = False
  verdicts = judge.judge(items)
  for place, verdict in tqdm.tqdm(verdicts, desc=judge.name, total=len(items), unit="response"):
    said = (
      {"unjudged": verdict.unjudged} if verdict.unjudged else {"answers": dict(verdict.answers)}
    )
    task, name, method = key_of(waiting[place])
    if verdict.unjudged and not told:
      told = True
      _LOG.warning("%s: the first that stays unjudged, %s: %s", judge.name, name, verdict.unjudged)
    yield {"id": name, "task": task, "method": method, "judge": judge.name, "by": judge.by, **said}
    if stopping():
      raise Stopped


def _said(workdir: str, own: Mapping[str, Sequence[str]]) -> dict[str, dict[Key, dict | None]]:
  """By judge and response its answers, None where it left it unjudged; the run's own come first."""
  lines = _read_all(workdir, own)
  first = [judge for judges in own.values() for judge in judges]
  said: dict[str, dict[Key, dict | None]] = {
    judge: {} for judge in dict.fromkeys([*first, *(judge for _, judge, _ in lines)])
  }
  for (key, judge, _), line in lines.items():
    old = said[judge].get(key)
    said[judge][key] = (old or {}) | line["answers"] if "answers" in line else old
  return said


def first_answers(workdir: str, own: Mapping[str, Sequence[str]]) -> dict[Key, dict[str, bool]]:
  """Of each response and measure what the first judge says that answers it, see `summarise`."""
  found: dict[Key, dict[str, bool]] = {}
  for some in reversed(_said(workdir, own).values()):
    for key, answers in some.items():
      found[key] = found.get(key, {}) | (answers or {})
  return found


def counted(
  workdir: str, own: Mapping[str, Sequence[str]], results: Iterable[Mapping[str, Any]]
) -> dict[Key, dict[str, bool]]:
  """The answers that a run's rates count: of the first judge that answers a measure, see `summarise`.

  Args:
    workdir: of the run.
    own: names of the judges that each task was run with; they come first.
    results: lines of the run's results; what rules said of them counts where no judge says more.
  """
  lines = {key_of(line): line.get("judged") for line in results if "counters" in line}
  first: dict[tuple[str, str, str], int] = {}  # task, method, measure -> judge
  found: dict[Key, dict[str, bool]] = {}
  for judge, some in enumerate([*_said(workdir, own).values(), lines]):
    for key, answers in some.items():
      for measure, answer in (answers or {}).items():
        if first.setdefault((key[0], key[2], measure), judge) == judge:
          found.setdefault(key, {})[measure] = answer
  return found


def summarise(workdir: str, own: Mapping[str, Sequence[str]]) -> dict[str, Any]:
  """What all judges of a run say together; nothing if it has one rule only.

  Args:
    workdir: of the run.
    own: names of the judges that each task was run with; they come first.

  Returns:
    `rates`: by method, `<measure>_rate` by the first judge that answers the measure;
    `judges`: by judge and method, its rates, how many it `judged` and left `unjudged`;
    `agreement`: see `judges.agreements`.
  """
  said = _said(workdir, own)
  methods = dict.fromkeys(key[2] for some in said.values() for key in some)
  judges: dict[str, dict[str, dict[str, Any]]] = {}
  for judge, some in said.items():
    for method in methods:
      mine = [answers for key, answers in some.items() if key[2] == method]
      if mine:
        judged = [answers for answers in mine if answers is not None]
        numbers = {"judged": len(judged), "unjudged": len(mine) - len(judged)}
        judges.setdefault(judge, {})[method] = {**rate(judged), **numbers}
  rates: dict[str, dict[str, float]] = {method: {} for method in methods}
  for judge in reversed(list(said)):
    for method, numbers in judges.get(judge, {}).items():
      rates[method] |= {k: v for k, v in numbers.items() if k.endswith("_rate")}
  shared = {
    judge: {key: answers for key, answers in some.items() if answers is not None}
    for judge, some in said.items()
    if judge in judges
  }
  return {"rates": rates, "judges": judges, "agreement": agreements(shared)}


def add_to(
  summary: dict[str, Any], workdir: str, own: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
  """A run's summary with what its judges say, see `summarise`; as it was if there are none."""
  found = summarise(workdir, own)
  if not found["judges"]:
    return summary
  for method, rates in found.pop("rates").items():
    if method in summary["methods"]:
      summary["methods"][method] |= rates
  return summary | found


def table(summary: Mapping[str, Any], say: Callable[[str], None]) -> None:
  """Tells what each judge found, and how far two of them agree."""
  for judge, methods in summary.get("judges", {}).items():
    for method, numbers in methods.items():
      rates = [
        f"{k[:-5].replace('_', ' ')} {100 * v:.1f}%"
        for k, v in numbers.items()
        if k.endswith("_rate")
      ]
      open_ = f", {numbers['unjudged']} unjudged" if numbers["unjudged"] else ""
      say(f"{judge}: {method}: {', '.join(rates) or '-'} of {numbers['judged']}{open_}")
  for one in summary.get("agreement", []):
    kappa = "-" if one["kappa"] is None else f"{one['kappa']:.2f}"
    say(
      f"{' and '.join(one['judges'])} agree on {one['measure']}: {one['percent']:.1f}% of"
      f" {one['n']}, Cohen's kappa {kappa}"
    )
