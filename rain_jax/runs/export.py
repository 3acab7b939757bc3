"""Data for those who fine-tune afterwards: preference pairs and committed responses."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rain_jax.methods.recording import Recording
from rain_jax.runs import directory
from rain_jax.text.formats import Format
from rain_jax.types import DataError

TEXT, MESSAGES = "text", "messages"
SHAPES = (MESSAGES, TEXT)


def write_pairs(workdir: str, path: str, shape: str) -> tuple[int, int]:
  """Writes preference pairs: of each prompt the best and the worst finished response.

  The responses are those that a recorded search met (a rollout or a path that came to an
  end) and those in the results, of any method; their values are the model's own verdicts.
  Prompts whose responses all have the same value make no pair.

  A line has `prompt`, `chosen`, `rejected`, their values and where they come from
  ("committed", "searched" or a method), `id` and `task`.

  Args:
    workdir: of the run.
    path: the file, one JSON object a line.
    shape: MESSAGES (lists of role and content) or TEXT (prompt and response in the run's
      own format, as the model read them).

  Returns:
    How many pairs were written, and from how many prompts.

  Raises:
    RunError: no run, or no responses. DataError: TEXT of a chat template.
  """
  shaped = _Shaper(workdir, shape)
  searches: dict[tuple[str, str], list[Recording]] = {}
  for kept in directory.recorded(workdir):
    searches.setdefault((kept.task, kept.id), []).append(kept.recording)
  responses: dict[tuple[str, str], list[Finished]] = {}
  for result in directory.read_results(workdir):
    key = result["task"], result["id"]
    source = "committed" if result["method"] == "rain" else result["method"]
    if result["response"] and result.get("verdict") is not None and source != "choose":
      one = Finished(result["response"], result["verdict"], source)
      responses.setdefault(key, []).append(one)
  lines = []
  for (task, name), found in responses.items():
    met = [one for search in searches.get((task, name), []) for one in finished_paths(search)]
    ranked = rank(found + met)
    best, worst = ranked[0], ranked[-1]
    if best.value > worst.value:
      turn = {"id": name, "task": task, "prompt": shaped.prompt(task, name)}
      for side, one in (("chosen", best), ("rejected", worst)):
        turn[side] = shaped.response(task, name, one.text)
        turn |= {f"{side}_value": one.value, f"{side}_from": one.source}
      lines.append(turn)
  if not responses:
    raise directory.RunError(f"{workdir}: no responses with a verdict there; finish the run first.")
  _write(path, lines)
  return len(lines), len(responses)


def write_sft(workdir: str, path: str, shape: str) -> int:
  """Writes RAIN's responses, with the model's verdict on each, for supervised fine-tuning.

  MESSAGES become `messages`, TEXT becomes `prompt` and `completion`.

  Args, raises: see `write_pairs`.

  Returns:
    How many were written; rejected prompts and empty responses are left out.
  """
  shaped = _Shaper(workdir, shape)
  lines = []
  for result in directory.read_results(workdir):
    if result["method"] != "rain" or not result["response"]:
      continue
    prompt = shaped.prompt(result["task"], result["id"])
    said = shaped.response(result["task"], result["id"], result["response"])
    turn = (
      {"messages": prompt + said} if shape == MESSAGES else {"prompt": prompt, "completion": said}
    )
    about = {"id": result["id"], "task": result["task"], "verdict": result.get("verdict")}
    lines.append(about | turn)
  if not lines:
    raise directory.RunError(f"{workdir}: no response of RAIN there; add rain to methods.")
  _write(path, lines)
  return len(lines)


@dataclasses.dataclass(frozen=True)
class Finished:
  """A whole response, the model's verdict on it, and where it comes from."""

  text: str
  value: float
  source: str


def finished_paths(search: Recording) -> list[Finished]:
  """Whole responses that a search met on its way, in that order."""
  return [
    Finished(visit.response, visit.verdict, "searched")
    for frame in search.frames
    for visit in frame.visits
    if visit.response
  ]


def rank(found: Iterable[Finished]) -> list[Finished]:
  """The best first; each text once, committed ones before others of the same value."""
  first = sorted(found, key=lambda one: one.source != "committed")
  distinct = {one.text: one for one in reversed(first)}.values()
  return sorted(distinct, key=lambda one: (-one.value, one.source != "committed"))


class _Shaper:
  """Prompts and responses of a run in one of the `SHAPES`."""

  def __init__(self, workdir: str, shape: str):
    formats = directory.read_manifest(workdir)["formats"]
    self._formats: dict[str, Format] = {
      name: Format(**{**value, "stop": tuple(value["stop"])}) for name, value in formats.items()
    }
    for name, form in self._formats.items():
      if shape == TEXT and form.chat:
        raise DataError(
          f"{name}: a chat template is the tokenizer's own; write --shape={MESSAGES}."
        )
    self._said = {(r["task"], r["id"]): r for r in directory.read_results(workdir)}
    self._shape = shape

  def prompt(self, task: str, prompt_id: str) -> Any:
    line = self._said.get((task, prompt_id))
    if line is None:
      raise directory.RunError(
        f"{directory.RECORDINGS}/ holds {prompt_id!r} of {task}, {directory.RESULTS} does not; run again."
      )
    history, system = line.get("history", ()), line.get("system", "")
    if self._shape == MESSAGES:
      roles = ("user", "assistant")
      turns = enumerate((*history, line["prompt"]))
      first = [{"role": "system", "content": system}] if system else []
      return first + [{"role": roles[i % 2], "content": text} for i, text in turns]
    form = self._formats[task]
    before = f"{form.prefix}\n\n" if form.prefix else ""
    return before + form.render(line["prompt"], history, system)

  def response(self, task: str, prompt_id: str, text: str) -> Any:
    """The whole answer, a prefill included."""
    text = self._said[task, prompt_id].get("prefill", "") + text
    if self._shape == MESSAGES:
      return [{"role": "assistant", "content": text}]
    return text if self._formats[task].template[-1:].isspace() else f" {text}"


def _write(path: str, lines: Sequence[Mapping[str, Any]]) -> None:
  text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
  try:
    directory.replace_text(pathlib.Path(path), text)
  except OSError as error:
    raise DataError(f"{path}: {error.strerror}; choose another file.") from None
