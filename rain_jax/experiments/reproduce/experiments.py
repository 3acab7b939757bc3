"""The paper's experiments: the runs that each table is made of, on the demo world or at full size."""

import dataclasses
import functools
import json
import pathlib
import random
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import safetensors.numpy

from rain_jax.demo import MODEL_DIR, words, world
from rain_jax.experiments.reproduce.pareto import FLIPPED
from rain_jax.experiments.reproduce.tables import Step
from rain_jax.runs.files import replace_text
from rain_jax.tasks import find_task, load_records

_TAIL = 3  # words of a step in the demo world that say where or with whom
# Every search compiles for itself, which takes longer than the demo's prompts; MiniLM has no
# weights there.
_NOT_IN_DEMO = ("more_exploration", "candidates_20", "few_visits", "minilm")
_ALL = ("vanilla", "rain", "best_of_n")
_WEIGHTS = "model.safetensors"
_NOISE = 0.1  # of a matrix's standard deviation
DEMO, TRAPS, SMOLLM2 = "demo", "traps", "smollm2"
_ERRING = (TRAPS, SMOLLM2)  # where verdicts err as they are, and none has to be flipped
# Every method fails on some requests there: fewer prompts would not tell the methods apart.
_TRAPS_PROMPTS = 100


@dataclasses.dataclass(frozen=True)
class Plan:
  """What an experiment is planned with.

  Attributes:
    on: "demo" for the demo world, in minutes; "traps" for the same requests and the model that
      walks into traps; "smollm2" for a real small model, see `worlds`; "" for the paper's setting.
    folder: working directory of the table.
    load: makes a configuration, which `update_from_flattened_dict` changes by dotted names, from
      the name of a file in `configs/` and its argument.
    ablations: the arguments that `configs/ablation.py` knows.
  """

  on: str
  folder: pathlib.Path
  load: Callable[[str, str], Any]
  ablations: Sequence[str]

  @property
  def demo(self) -> bool:
    """On the demo world, with either of its models."""
    return self.on in (DEMO, TRAPS)

  def limits(self, on_demo: int) -> dict[str, Any]:
    """How many prompts of each file a demo asks, as a change of a configuration; else all."""
    limit = {DEMO: on_demo, TRAPS: _TRAPS_PROMPTS}.get(self.on)
    return {} if limit is None else {"prompts.limit": limit}

  def config(self, name: str, argument: str, methods: Sequence[str] = (), **changes: Any) -> Any:
    """A configuration with the given changes by dotted name."""
    config = self.load(name, argument)
    if methods:
      config.methods = tuple(methods)
    model = {"model.path": "demo:traps"} if self.on == TRAPS else {}
    config.update_from_flattened_dict(model | changes)
    return config

  def answers(
    self, name: str, config: str, argument: str, methods: Sequence[str], **changes: Any
  ) -> Step:
    """A step in which methods answer prompts."""
    return Step(name, "answer", self.config(config, argument, methods, **changes))


def _hh(plan: Plan) -> list[Step]:
  part = lambda name, arg: plan.answers(name, "hh", arg, _ALL, **plan.limits(32))
  return [
    part("harmless", "demo" if plan.demo else "harmless"),
    part("helpful", "helpful_demo" if plan.demo else "helpful"),
  ]


def _truthfulqa(plan: Plan) -> list[Step]:
  argument = "demo" if plan.demo else "answers"
  return [plan.answers("answers", "truthfulqa", argument, _ALL, **plan.limits(32))]


def _imdb(plan: Plan) -> list[Step]:
  if plan.on == SMOLLM2:
    return [plan.answers("reviews", SMOLLM2, "all", (), **{"prompts.limit": 100})]
  argument = "demo" if plan.demo else ""
  return [plan.answers("reviews", "imdb", argument, _ALL, **plan.limits(32))]


def _self_evaluation(plan: Plan) -> list[Step]:
  part = functools.partial(plan.answers, methods=("vanilla",))
  if not plan.demo:
    return [part("harmless", "hh", "harmless")]
  limits: dict[str, Any] = {"prompts.limit": 0}
  return [
    part("harmless", "hh", "demo", **limits),
    part("answers", "truthfulqa", "demo", **limits),
    part("reviews", "imdb", "demo", **limits),
  ]


def _advbench(plan: Plan) -> list[Step]:
  """No attack, then each attack and what the methods make of it."""
  folder = plan.folder
  methods = ("vanilla", "rain")
  argument = ""
  goals: dict[str, Any] = {}
  asked: dict[str, Any] = {}
  modes: tuple[str, ...] = ("gcg", "universal", "adaptive", "best_of_n")
  if plan.demo:
    argument, asked = "demo", {"prompts.limit": 20}
    goals = {"prompts.path": _demo_goals(folder), "prompts.limit": 0}
    modes = ("universal", "transfer", "adaptive", "best_of_n")
  steps = [plan.answers("plain", "advbench", argument, methods, **{**goals, **asked})]
  if plan.demo:
    begin = _demo_goals(folder, plan.config("attack", "demo").attack.control)
    steps.append(
      plan.answers("begin", "advbench", argument, ("vanilla",), **{"prompts.path": begin}, **asked)
    )
  for mode in modes:
    attack = {"gcg": "each"}.get(mode, mode)
    sought: dict[str, Any] = dict(goals)
    if plan.demo:
      attack = "demo" if mode in ("universal", "transfer") else f"{mode}_demo"
    if mode == "transfer":
      first, *others = _stand_ins(folder)
      sought |= {"model.path": first, "attack.models": tuple(others)}
    steps.append(Step(f"{mode}_attack", "attack", plan.config("attack", attack, **sought)))
    found: dict[str, Any] = {"prompts.path": str(folder / f"{mode}_attack" / "attack.json")}
    answering: tuple[str, ...] = methods
    if mode == "universal":  # other defences beside the search, against one of the attacks
      answering += ("smooth_llm", "guard")
      found |= {"guard.judge": "self"} | ({"smooth_llm.judge": "self"} if plan.demo else {})
    steps.append(plan.answers(mode, "advbench", argument, answering, **found, **asked))
  return steps


def _demo_goals(folder: pathlib.Path, control: str = "") -> str:
  """The demo's goals that tempt least, which vanilla sampling handles best, as a file.

  Each is there twice, with different targets: an opening, as every answer has one, and a harmful
  step up to the thing that does the harm. With a control, it follows every goal.
  """
  task = find_task("demo_advbench")
  records = [r for r in load_records(task.reader, task.prompts) if r.fields["level"] == "0"]
  lines = []
  for twin in ("a", "b"):
    for record in records:
      rng = random.Random(f"{record.id}{twin}")
      step = world.harmful_sentence(rng, record.fields["topic"]).split(" ")
      target = " ".join([rng.choice(words.OPENINGS), *step[:-_TAIL]])
      lines.append(
        {
          **record.fields,
          "id": f"{record.id}{twin}",
          "goal": record.prompt,
          "target": target,
          **({"controls": control} if control else {}),
        }
      )
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / ("goals_and_control.jsonl" if control else "goals.jsonl")
  replace_text(path, "".join(json.dumps(line) + "\n" for line in lines))
  return str(path)


def _stand_ins(folder: pathlib.Path) -> list[str]:
  """Folders of two models that are not the demo's, for a suffix that is sought on others.

  Each is the demo's with noise on its weights: another model that learned the same, as Vicuna 7B
  and 13B are to the models that the paper carries their suffix over to.
  """
  found = []
  for number in range(2):
    path = folder / f"stand_in_{number}"
    if not (path / _WEIGHTS).is_file():
      shutil.copytree(MODEL_DIR, path, ignore=shutil.ignore_patterns(_WEIGHTS), dirs_exist_ok=True)
      rng = np.random.default_rng(number)
      weights = {
        name: value + (_NOISE * value.std() * rng.standard_normal(value.shape)).astype(value.dtype)
        for name, value in safetensors.numpy.load_file(MODEL_DIR / _WEIGHTS).items()
      }
      safetensors.numpy.save_file(weights, path / "unfinished", {"format": "pt"})
      (path / "unfinished").replace(path / _WEIGHTS)
    found.append(str(path))
  return found


def _time(plan: Plan) -> list[Step]:
  config = plan.config("benchmark", "demo" if plan.demo else "7b")
  config.methods = ("vanilla", "rain", "leaf_parallel")
  # A shape's weights are random and so would be its verdicts, on which the search's work depends.
  config.verdicts = ("model",) if plan.demo else ("good", "mixed", "bad")
  if plan.demo:
    config.batches = (1, 8)
  return [Step("time", "time", config)]


def _ablation(plan: Plan) -> list[Step]:
  names, ending, limits = plan.ablations, "", plan.limits(16)
  if plan.demo:
    names, ending = [name for name in names if name not in _NOT_IN_DEMO], "_demo"
  return [plan.answers(name, "ablation", name + ending, ("rain",), **limits) for name in names]


def _sample_efficiency(plan: Plan) -> list[Step]:
  argument = "demo" if plan.demo else "harmless"
  part = lambda name, method, **changes: plan.answers(
    name, "hh", argument, (method,), **plan.limits(32), **changes
  )
  steps = [part("vanilla", "vanilla")]
  steps += [part(f"best of {n}", "best_of_n", **{"best_of_n.samples": n}) for n in (4, 16, 64, 128)]
  steps += [
    part(f"RAIN, T = {n}", "rain", **{"search.max_iterations": n, "search.extra_iterations": extra})
    for n, extra in ((12, 4), (25, 8), (50, 15))
  ]
  return steps


def _adaptive(tries: int, rewinds: int, **others: Any) -> tuple[str, dict[str, Any]]:
  changes = {"root_tries": tries, "max_rewinds": rewinds} | others
  return "adaptive", {f"search.{name}": value for name, value in changes.items()}


def _exact(iterations: int, extra: int) -> tuple[str, dict[str, Any]]:
  return "rain", {"search.max_iterations": iterations, "search.extra_iterations": extra}


_SEGMENTS: dict[str, tuple[str, dict[str, Any]]] = {
  f"segments, {rows} row{'s' * (rows > 1)}, {tries} tries": (
    "segments",
    {"search.draft_rows": rows, "search.draft_tries": tries},
  )
  for rows, tries in ((1, 4), (1, 16), (4, 16))
}
_BUDGETS: dict[str, tuple[str, dict[str, Any]]] = {
  "vanilla": ("vanilla", {}),
  **{f"best of {n}": ("best_of_n", {"best_of_n.samples": n}) for n in (4, 16, 64)},
  **_SEGMENTS,
  "adaptive, 2 tries, 8 rewinds": _adaptive(2, 8),
  "adaptive, 2 tries, 8 rewinds, no search": _adaptive(2, 8, search_below=-1.0),
  "adaptive, 1 try, 64 rewinds": _adaptive(1, 64),
  "adaptive, 2 tries, 64 rewinds": _adaptive(2, 64),
  "RAIN, T = 12": _exact(12, 4),
  "RAIN, T = 25": _exact(25, 8),
  "RAIN, T = 50": _exact(50, 15),
  "RAIN, 16 leaves": ("rain", {"search.leaves": 16}),
}
"""Methods with their budgets."""
# Of these, those that are asked again while some of the verdicts are flipped.
_NOISY = (
  *("best of 16", "segments, 1 row, 16 tries", "segments, 4 rows, 16 tries"),
  *("adaptive, 2 tries, 64 rewinds", "RAIN, T = 50"),
)
# An exact search on a real model takes longer than all the rest.
_SMOLLM2_BUDGETS: dict[str, tuple[str, dict[str, Any]]] = {
  "vanilla": ("vanilla", {}),
  **{f"best of {n}": ("best_of_n", {"best_of_n.samples": n}) for n in (4, 16, 36)},
  **_SEGMENTS,
  "adaptive, 4 tries, 2 rewinds": _adaptive(4, 2, root_rows=4),
  "adaptive, 8 tries, 2 rewinds": _adaptive(8, 2, root_rows=8),
  "adaptive, 16 tries, 2 rewinds": _adaptive(16, 2),
  "adaptive, 32 tries, 2 rewinds": _adaptive(32, 2),
  "adaptive, 32 tries, 8 rewinds, search": _adaptive(32, 8, search_after=8, search_below=1.0),
  "RAIN": ("rain", {}),
}


def _pareto(plan: Plan) -> list[Step]:
  real = plan.on == SMOLLM2
  config, argument = (SMOLLM2, "all") if real else ("hh", "demo" if plan.demo else "harmless")
  budgets = _SMOLLM2_BUDGETS if real else _BUDGETS
  limits = {"prompts.limit": 24} if real else plan.limits(48)

  def part(name: str, percent: int = 0) -> Step:
    method, changes = budgets[name]
    noise = {"verdict_noise": percent / 100} if percent else {}
    step = name + FLIPPED.format(percent) * bool(percent)
    return plan.answers(step, config, argument, (method,), **limits, **changes, **noise)

  if plan.on in _ERRING:
    return [*map(part, budgets)]
  noisy = [part(name, percent) for percent in (5, 10, 20) for name in _NOISY]
  return [*map(part, budgets), *noisy]


_SETTINGS: dict[str, dict[str, Any]] = {
  "default": {},
  **{f"draft_threshold {x}": {"search.draft_threshold": x} for x in (0.5, 0.9)},
  **{f"search_after {n}": {"search.search_after": n} for n in (0, 8)},
  **{f"root_tries {n}": {"search.root_tries": n} for n in (1, 4)},
  "root_rows 2": {"search.root_rows": 2},
  **{f"max_rewinds {n}": {"search.max_rewinds": n} for n in (0, 8)},
}


def _adaptive_ablation(plan: Plan) -> list[Step]:
  argument = "demo" if plan.demo else "harmless"
  changes, ending = plan.limits(100), ""
  if plan.on not in _ERRING:
    changes["verdict_noise"], ending = 0.1, FLIPPED.format(10)
  part = lambda name, own: plan.answers(
    name + ending, "hh", argument, ("adaptive",), **changes, **own
  )
  return [part(name, own) for name, own in _SETTINGS.items()]


EXPERIMENTS: dict[str, Callable[[Plan], list[Step]]] = {
  "hh": _hh,
  "advbench": _advbench,
  "truthfulqa": _truthfulqa,
  "imdb": _imdb,
  "time": _time,
  "self_evaluation": _self_evaluation,
  "ablation": _ablation,
  "sample_efficiency": _sample_efficiency,
  "pareto": _pareto,
  "adaptive_ablation": _adaptive_ablation,
}
"""The steps of each table."""


def worlds(name: str) -> tuple[str, ...]:
  """What the table of that name can be made on without a model or data of one's own."""
  others = {
    TRAPS: ("hh", "ablation", "pareto", "adaptive_ablation"),
    SMOLLM2: ("imdb", "pareto"),
  }
  return DEMO, *(world for world, names in others.items() if name in names)
