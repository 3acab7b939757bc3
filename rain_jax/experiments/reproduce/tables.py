"""The paper's tables: their runs are made, and counted.

A table is made of *steps*, each an ordinary run of `rain_jax.runs.job`, `rain_jax.attacks.job` or
`rain_jax.benchmark` in a directory of its own, so that a killed reproduction goes on where it was.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rain_jax import judges
from rain_jax.attacks import job as attack_job
from rain_jax.experiments import benchmark
from rain_jax.experiments.reproduce import paper, pareto, render
from rain_jax.experiments.reproduce.count import WORK, agreement, joint, share, work
from rain_jax.experiments.reproduce.render import Bar, Table
from rain_jax.judges.share import Share
from rain_jax.runs import directory, from_config, job, judgements
from rain_jax.types import DataError, SearchConfig

Results = Mapping[str, list[dict[str, Any]]]
"""Lines of results by the step's name."""

NAMES = {
  "vanilla": "vanilla sampling",
  "rain": "RAIN",
  "best_of_n": "best of N, equal compute",
  "segments": "segment-level rejection",
  "adaptive": "adaptive RAIN",
  "smooth_llm": "SmoothLLM",
  "guard": "guard, its own verdict",
}


@dataclasses.dataclass(frozen=True)
class Step:
  """One run.

  Attributes:
    name: of its directory, and of its results.
    kind: "answer" (`rain_jax.runs.job`), "attack" (`rain_jax.attacks.job`) or "time"
      (`rain_jax.benchmark`).
    config: of that run, as nested plain values.
  """

  name: str
  kind: str
  config: Mapping[str, Any]


def run(
  name: str, steps: Sequence[Step], workdir: str, say: Callable[[str], None] = print
) -> Table:
  """Makes a table.

  Args:
    name: one of `TABLES`.
    steps: its runs, in order.
    workdir: gets a directory per step, `NAME.md` and `NAME.svg`.
    say: where the table goes when it is done.

  Raises:
    DataError: no such table, or a step without the judge that it needs; else as the runs do.
  """
  if name not in TABLES:
    raise DataError(f"table {name!r}: expected one of {', '.join(TABLES)}.")
  for step in steps:
    _check_judges(step)
  folder = pathlib.Path(workdir)
  results = {step.name: _results(step, folder / step.name) for step in steps}
  table = TABLES[name](results)
  page = render.markdown(table, _facts(steps, results, folder), f"{name}.svg")
  directory.replace_text(folder / f"{name}.md", page)
  directory.replace_text(folder / f"{name}.svg", render.svg(table))
  say(page)
  return table


def _check_judges(step: Step) -> None:
  """What a judge lacks is known before the first step begins, not when its own turn has come."""
  if step.kind == "time":
    return
  for name in step.config["tasks"]:
    judge = from_config.task_of(step.config, name).judge
    panel = judges.panel(judge, step.config)
    if step.kind == "answer" and not panel and not step.config["judge"]:
      raise DataError(
        f"step {step.name!r} has no judge: name one for it, or none to judge its run later"
        " with scripts/judge.py."
      )
    by_rule = step.kind == "attack" and step.config["attack"]["method"] == "best_of_n"
    if by_rule and not any(isinstance(one, judges.RuleJudge) for one in panel):
      raise DataError(
        f"step {step.name!r} asks a rule after every request, and judge={judge!r} has none: name"
        f" one for it, such as {step.name}=refusal_prefixes."
      )


def _results(step: Step, folder: pathlib.Path) -> list[dict[str, Any]]:
  quiet = lambda line: None
  if step.kind == "time":
    return _timed(step.config, folder)
  runner = attack_job.run if step.kind == "attack" else job.run
  runner(step.config, str(folder), quiet)
  results = directory.read_results(str(folder))
  return results if step.kind == "attack" else _judged(results, str(folder), step.config)


def _judged(
  results: list[dict[str, Any]], workdir: str, config: Mapping[str, Any]
) -> list[dict[str, Any]]:
  """The results with what the first judge to answer said of them, and the run's judges' names.

  A run that was made without a judge has those that came later.
  """
  own = from_config.judges_of(config)
  said = judgements.first_answers(workdir, own)
  later = list(judgements.summarise(workdir, own)["judges"])
  answers = lambda line: line.get("judged", {}) | said.get(judgements.key_of(line), {})
  judges_of = lambda line: own[line["task"]] or later
  return [{**line, "judged": answers(line), "judges": judges_of(line)} for line in results]


def _timed(config: Mapping[str, Any], folder: pathlib.Path) -> list[dict[str, Any]]:
  """Rows of the benchmark; measured once, then read."""
  file = folder / "benchmark.json"
  if not file.exists():
    search = SearchConfig(**config["search"])
    leaf_parallel = SearchConfig(**{**config["search"], **config["leaf_parallel"]})
    rows = []
    for name in config["models"]:
      workload = benchmark.Workload(**config["workload"])
      subject = benchmark.find_subject(name, config["dtype"], workload, search)
      for batch in config["batches"]:
        rows += benchmark.rows(
          subject,
          batch,
          config["methods"],
          config["verdicts"],
          search,
          leaf_parallel,
          config["repeats"],
          config["mixed_share"],
        )
    folder.mkdir(parents=True, exist_ok=True)
    directory.replace_text(file, json.dumps({**benchmark.hardware(), "rows": rows}) + "\n")
  return json.loads(file.read_text("utf-8"))["rows"]


def _facts(steps: Sequence[Step], results: Results, folder: pathlib.Path) -> dict[str, str]:
  """Hardware, model, versions, prompts, judges: what the figures depend on."""
  facts: dict[str, str] = {}
  configs = {}
  for step in steps:
    file = folder / step.name / ("benchmark.json" if step.kind == "time" else directory.MANIFEST)
    made = json.loads(file.read_text("utf-8"))
    versions = {**made["versions"], **made.get("hardware", {})}
    for name in ("cores", "processor"):  # earlier versions did not note them
      facts |= {name: versions.pop(name)} if name in versions else {}
    facts |= {
      "device": f"{versions.pop('device')} x {versions.pop('device_count')}",
      "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
    }
    if step.kind == "answer":
      configs[step.name] = made["config"]
      facts |= {
        "model": f"{made['model']['path']} ({made['model']['fingerprint'][:12]})",
        "dtype": made["config"]["model"]["dtype"],
        "seed": str(made["config"]["seed"]),
      }
  judged = lambda step, name: _judged_facts(name, configs[step], results[step], folder / step)
  every = [judged(step, "every run") for step in configs]
  if len(every) > 1 and all(one == every[0] for one in every):
    return facts | every[0]
  for name in configs:
    facts |= judged(name, name)
  return facts


def _judged_facts(
  name: str,
  config: Mapping[str, Any],
  results: Sequence[Mapping[str, Any]],
  folder: pathlib.Path,
) -> dict[str, str]:
  """How many prompts a run had, who judged it, what stayed unjudged, and who agreed with whom."""
  own = [from_config.task_of(config, task).judge for task in config["tasks"]]
  if own == ["none"]:
    own = list(dict.fromkeys(one for r in results for one in r["judges"])) or own
  facts = {
    f"prompts of {name}": str(len({(r["task"], r["id"]) for r in results})),
    f"judge of {name}": ", ".join(own),
  }
  unanswered = sum("error" in r for r in results)
  if unanswered:
    facts[f"unanswered of {name}"] = f"{unanswered} of {len(results)}"
  said = judgements.summarise(str(folder), from_config.judges_of(config))
  for judge, methods in said["judges"].items():
    left, judged = (sum(m[key] for m in methods.values()) for key in ("unjudged", "judged"))
    facts[f"unjudged of {name} by {judge}"] = f"{left} of {left + judged}"
  for one in said["agreement"]:
    kappa = "-" if one["kappa"] is None else f"{one['kappa']:.2f}"
    facts[f"agreement of {' and '.join(one['judges'])} on {one['measure']} in {name}"] = (
      f"{one['percent']:.1f}% of {one['n']}, Cohen's kappa {kappa}"
    )
  return facts


# -- the tables --------------------------------------------------------------------------


def _methods(results: Sequence[Mapping[str, Any]]) -> list[str]:
  order = list(NAMES)
  found = {r["method"] for r in results}
  return sorted(found, key=lambda m: (order.index(m) if m in order else len(order), m))


def _one_measure(
  title: str,
  measure: str,
  reported: Mapping[str, str],
  results: Sequence[Mapping[str, Any]],
  also: Sequence[tuple[str, str, Sequence[Mapping[str, Any]]]] = (),
) -> Table:
  """A row per method: the measure, the paper's figure, further measures, the work."""
  rows, bars = [], []
  for method in _methods(results):
    found = share(results, method, measure)
    bars.append(Bar.of(NAMES.get(method, method), found))
    rows.append(
      (
        NAMES.get(method, method),
        str(found),
        reported.get(method, ""),
        *(str(share(other, method, name)) for _, name, other in also),
        *work(results, method),
      )
    )
  columns = ("method", f"{measure} [95%]", "paper", *(head for head, _, _ in also), *WORK)
  return Table(title, columns, tuple(rows), tuple(bars))


def hh(results: Results) -> Table:
  """Harmlessness, and what it costs in helpfulness (the paper's HH experiment)."""
  return _one_measure(
    "HH: harmlessness and helpfulness",
    "harmless",
    paper.HARMLESS,
    results["harmless"],
    [("helpful [95%]", "helpful", results["helpful"])],
  )


def truthfulqa(results: Results) -> Table:
  """Truthful answers (TruthfulQA), and informative ones where a judge tells."""
  both = "truthful and informative"
  lines = joint(results["answers"], both, ("truthful", "informative"))
  told = any("informative" in line["judged"] for line in lines)
  also = [(f"{name} [95%]", name, lines) for name in ("informative", both)] if told else []
  return _one_measure("TruthfulQA: truthful answers", "truthful", paper.TRUTHFUL, lines, also)


def imdb(results: Results) -> Table:
  """Positive continuations (controlled sentiment), and negative ones where a judge tells."""
  lines = results["reviews"]
  told = any("negative" in line.get("judged", {}) for line in lines)
  also = [("negative [95%]", "negative", lines)] if told else []
  return _one_measure(
    "Controlled sentiment: positive continuations", "positive", paper.POSITIVE, lines, also
  )


def advbench(results: Results) -> Table:
  """Attack success on each method: harmful answers, or, by prefixes, answers that do not refuse."""
  heads = {
    "plain": "none",
    "begin": "the text that GCG begins with",
    "gcg": "GCG, one suffix each",
    "universal": "GCG, one suffix for all",
    "transfer": "GCG, one suffix for all, sought on other models",
    "adaptive": "GCG, against the verdict too",
    "best_of_n": "best-of-N jailbreaking",
  }
  judged = {", ".join(line["judges"]) for step in heads for line in results.get(step, ())} - {""}
  by = f" by {' or '.join(sorted(judged))}" if judged else ""
  rows, bars = [], []
  for step, head in heads.items():
    if step not in results:
      continue
    if step == "best_of_n":
      requests = _best_of_n(results["best_of_n_attack"])
      bars.append(Bar.of(f"{head}: sought on vanilla", requests))
      rows.append((head, "vanilla sampling, any request", str(requests), "", *[""] * len(WORK)))
      head += ", last request again"
    for method in _methods(results[step]):
      found = share(results[step], method, "harmless", wanted=False)
      if not found.total:
        found = share(results[step], method, "refused", wanted=False)
      name = NAMES.get(method, method)
      bars.append(Bar.of(f"{head}: {name}", found))
      reported = paper.ATTACK_SUCCESS.get(step, {}).get(method, "")
      rows.append((head, name, str(found), reported, *work(results[step], method)))
  notes = [
    "Suffixes and altered requests are sought against vanilla sampling, and put to RAIN as"
    " they are."
  ]
  if "gcg" not in results:
    gcg = paper.ATTACK_SUCCESS["gcg"]
    figures = "; ".join(f"{NAMES[name]} {said}" for name, said in gcg.items())
    notes.append(f"The paper's suffixes for one request each have no row here: {figures}.")
  return Table(
    "AdvBench: attack success rate",
    ("attack", "method", f"attack success{by} [95%]", "paper", *WORK),
    tuple(rows),
    tuple(bars),
    notes=tuple(notes),
  )


def _best_of_n(results: Sequence[Mapping[str, Any]]) -> Share:
  """Goals that some altered request got through for."""
  goals = {r["behaviour"] for r in results}
  return Share(len({r["behaviour"] for r in results if r["broken"]}), len(goals))


def self_evaluation(results: Results) -> Table:
  """How often the model's verdict on a whole response of its own is the judge's."""
  rows, bars = [], []
  measures = {"harmless": "harmless", "answers": "truthful", "reviews": "positive"}
  for step, lines in results.items():
    found = agreement(lines, "vanilla", measures[step])
    bars.append(Bar.of(measures[step], found["all"]))
    rows.append(
      (
        measures[step],
        *map(str, (found["all"], found["good"], found["bad"])),
        paper.SELF_EVALUATION if step == "harmless" else "",
      )
    )
  return Table(
    "Self-evaluation: agreement with the judge",
    ("preference", "accuracy [95%]", "on good responses", "on bad responses", "paper"),
    tuple(rows),
    tuple(bars),
    notes=(
      "Whole responses of vanilla sampling. A verdict whose two readings disagree counts as wrong.",
    ),
  )


def time(results: Results) -> Table:
  """Time beside vanilla decoding."""
  rows, bars = [], []
  for row in results["time"]:
    name = f"{row['method']}, {row['mode']}"
    verdicts = row["verdicts"] if row["method"] in ("rain", "segments") else ""
    ratio = row["ratio_to_vanilla"]
    low, high = row.get("ratio_to_vanilla_range", (ratio, ratio))
    label = f"{name}, verdicts {verdicts}" if verdicts else name
    bars.append(Bar(f"{label}, batch {row['batch']}", ratio, low, high))
    reported = paper.TIME.get(row["method"], "") if row["mode"] == "exact" else ""
    rows.append(
      (
        row["model"],
        name,
        verdicts,
        str(row["batch"]),
        _ranged(row, "seconds_per_token", 1000),
        _ranged(row, "ratio_to_vanilla"),
        reported,
        f"{row['model_calls_per_token']:.2f}",
        f"{row['tokens_forwarded_per_token']:.1f}",
      )
    )
  return Table(
    "Time efficiency: seconds beside vanilla decoding",
    (
      "model",
      "method",
      "verdicts",
      "batch",
      "ms per token",
      "times vanilla",
      "paper",
      "model calls per token",
      "tokens forwarded per token",
    ),
    tuple(rows),
    tuple(bars),
    unit=" x",
    notes=(
      "Medians of repeated calls, the smallest and the largest in brackets; compilation"
      " apart. A model that sits in the processor's caches pays for every forwarded token, a"
      " large one on an accelerator mostly for every call.",
      "Verdicts are the model's own, or forced: good for all texts, for a share of them"
      " (mixed, one half unless set), for none (bad). RAIN's work depends on them.",
    ),
  )


def _ranged(row: Mapping[str, Any], name: str, scale: float = 1.0) -> str:
  """A median of the benchmark with its range, which files of earlier versions do not have."""
  ends = row.get(f"{name}_range")
  shown = f" [{scale * ends[0]:.2f}, {scale * ends[1]:.2f}]" if ends else ""
  return f"{scale * row[name]:.2f}{shown}"


def _againstwork(title: str, first: str, results: Results) -> Table:
  """A row per step and method: harmlessness beside work."""
  rows, bars = [], []
  for step, lines in results.items():
    for method in _methods(lines):
      found = share(lines, method, "harmless")
      samples = {
        r["counters"].get("samples") for r in lines if r["method"] == method and "counters" in r
      } - {None}
      label = f"{step} of {samples.pop()}" if step == "best" and samples else step
      bars.append(Bar.of(label, found))
      rows.append((label, str(found), paper.NOT_CHECKED, *work(lines, method)))
  return Table(title, (first, "harmless [95%]", "paper", *WORK), tuple(rows), tuple(bars))


def ablation(results: Results) -> Table:
  """RAIN with one part changed at a time; the steps are named after what is changed."""
  return _againstwork("Ablation: harmlessness", "search", results)


def sample_efficiency(results: Results) -> Table:
  """Harmlessness by work: best of N and RAIN with fewer and more iterations."""
  return _againstwork("Sample efficiency: harmlessness by work", "method", results)


_BUDGETED = NAMES | {"best_of_n": "best of N"}
TABLES: Mapping[str, Callable[[Results], Table]] = {
  "hh": hh,
  "advbench": advbench,
  "truthfulqa": truthfulqa,
  "imdb": imdb,
  "time": time,
  "self_evaluation": self_evaluation,
  "ablation": ablation,
  "sample_efficiency": sample_efficiency,
  "pareto": functools.partial(pareto.table, "Quality against cost", _BUDGETED),
  "adaptive_ablation": functools.partial(pareto.table, "Adaptive RAIN: its settings", NAMES),
}
