"""Every task, by name: its prompts, its format, what it is aligned with, and its judge."""

import dataclasses
import pathlib
from collections.abc import Mapping

from rain_jax import demo
from rain_jax.tasks import readers
from rain_jax.tasks.readers import Reader
from rain_jax.text.formats import CHOICE, DIALOGUE, QUESTION, REVIEW, VICUNA, Format
from rain_jax.types import DataError


@dataclasses.dataclass(frozen=True)
class Task:
  """What belongs together in a run.

  Attributes:
    prompts: files with the task's own prompts; empty if the user has to name one.
    format: how prompts are put to the model.
    preference: name of a preference template.
    variant: which of the method's search variants, see `types`.
    judge: name of a judge in `rain_jax.judges`, or "none"; several with commas.
    reader: what makes records of a file's rows.
    suffixes: file of attack suffixes; "" for none.
  """

  prompts: tuple[str, ...]
  format: Format
  preference: str
  variant: str = "harmless"
  judge: str = "none"
  reader: Reader = readers.prompts
  suffixes: str = ""


def _prompts(kind: str) -> str:
  return str(demo.PROMPTS_DIR / f"{kind}.jsonl")


_OPENINGS = pathlib.Path(__file__).parent / "data" / "review_openings.jsonl"


def _data(name: str) -> str:
  return str(demo.DATA_DIR / name)


# A task of the demo world is its neighbour above with other files: the same reader, format,
# preference and variant.
_ADVERSARIAL = Task((), VICUNA, "adversarial_harmless", "adversarial")
_HH = Task((), DIALOGUE, "harmless")
_TRUTHFULQA = Task((), QUESTION, "truthful", "truthful")
_CHOICE = Task((), CHOICE, "truthful", judge="choice", reader=readers.binary_choice)
_IMDB = Task((), REVIEW, "positive", reader=readers.review_beginnings(8))
_JAILBREAKBENCH = Task(
  (), DIALOGUE, "harmless", judge="refusal_prefixes", reader=readers.misuse_or_benign
)


def _twin(task: Task, *files: str, **changes) -> Task:
  changes = {"judge": "demo_rules", **changes}
  return dataclasses.replace(task, prompts=tuple(map(_data, files)), **changes)


TASKS: Mapping[str, Task] = {
  "dialogue": Task((), DIALOGUE, "harmless"),
  "adversarial": _ADVERSARIAL,
  "questions": Task((), QUESTION, "truthful", "truthful"),
  "reviews": Task((), REVIEW, "positive"),
  "review_openings": Task((str(_OPENINGS),), REVIEW, "positive", judge="vader"),
  "demo_requests": Task(
    (_prompts("harmful"), _prompts("benign")), DIALOGUE, "harmless", judge="demo_rules"
  ),
  "demo_questions": Task(
    (_prompts("question"),), QUESTION, "truthful", "truthful", judge="demo_rules"
  ),
  "demo_reviews": Task((_prompts("review"),), REVIEW, "positive", judge="demo_rules"),
  "hh_harmless": _HH,
  "demo_hh_harmless": _twin(_HH, "hh_harmless.jsonl"),
  "hh_helpful": _HH,
  "demo_hh_helpful": _twin(_HH, "hh_helpful.jsonl"),
  "advbench": _ADVERSARIAL,
  "demo_advbench": _twin(_ADVERSARIAL, "advbench.csv", suffixes=_data("suffixes.json")),
  "truthfulqa": _TRUTHFULQA,
  "demo_truthfulqa": _twin(_TRUTHFULQA, "truthfulqa.csv"),
  "truthfulqa_choice": _CHOICE,
  "demo_truthfulqa_choice": _twin(_CHOICE, "truthfulqa.csv", judge="choice"),
  "imdb": _IMDB,
  "demo_imdb": _twin(_IMDB, "imdb.csv", reader=readers.review_beginnings(16)),
  "jailbreakbench": _JAILBREAKBENCH,
  "demo_jailbreakbench": _twin(_JAILBREAKBENCH, "harmful-behaviors.csv", "benign-behaviors.csv"),
}


def find_task(name: str) -> Task:
  """The task of that name; `DataError` lists the known ones."""
  if name not in TASKS:
    raise DataError(f"Unknown task {name!r}: expected one of {', '.join(TASKS)}.")
  return TASKS[name]
