"""The main job: methods over prompts, judged, into a working directory.

`run` takes a configuration as nested plain values; `scripts/generate.py` is its command.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rain_jax import judges
from rain_jax.methods import METHODS, SearchStep, defences
from rain_jax.methods.session import Session, SessionConfig
from rain_jax.models import arrays
from rain_jax.models.loading import LoadedModel
from rain_jax.parallel.hosts import Hosts
from rain_jax.policy import memory_plan
from rain_jax.policy.embedders import find_embedder
from rain_jax.runs import config_check, directory, from_config, judgements
from rain_jax.runs.metrics import PROFILE, Metrics
from rain_jax.runs.summary import summarise, table
from rain_jax.runs.task import TaskRun
from rain_jax.runs.versions import versions
from rain_jax.tasks import Record, Task
from rain_jax.types import DataError

_LOG = logging.getLogger(__name__)

# The rest needs more than a prompt: options to choose from, a judge.
ALL_METHODS = (*METHODS, "choose", "smooth_llm", "guard")


def plans(config: Mapping[str, Any]) -> dict[str, memory_plan.Plan]:
  """The memory that each task's search will need, by the task's name.

  Raises:
    As `run`.
  """
  _check(config, Hosts(), followed=False)
  tasks = {name: from_config.task_of(config, name) for name in config["tasks"]}
  loaded = from_config.load_model(config, Hosts())
  settings = _settings(config, tasks, loaded)
  return {
    name: Session(loaded, settings[name], from_config.records_of(config, task)).plan()
    for name, task in tasks.items()
  }


def run(
  config: Mapping[str, Any],
  workdir: str,
  say: Callable[[str], None] = print,
  on_step: Callable[[SearchStep], None] | None = None,
  stopping: Callable[[], bool] = lambda: False,
  hosts: Hosts = Hosts(),
  profile: bool = False,
) -> dict[str, Any] | None:
  """Runs the chosen methods over the tasks' prompts and judges the responses.

  Args:
    config: see `configs/common.py` for every key.
    workdir: gets `manifest.json`, `results.jsonl`, `metrics.jsonl` and `summary.json`;
      results that are there already are not made again. Recordings of searches go to `recordings/`.
    say: where the table goes.
    on_step: called with every step of RAIN's searches; slower.
    stopping: asked between steps and verdicts; True ends the run with `directory.Stopped`.
    hosts: which process of the run this is.
    profile: trace a few steps of each method into the working directory.

  Returns:
    The summary; None in a process that ends while results of others are missing.

  Raises:
    directory.Stopped: as asked; what is answered is written.
    DataError, directory.RunError, models.hf.CheckpointError, preferences.PreferenceError,
    ValueError: one line each, saying what to do.
  """
  _check(config, hosts, followed=on_step is not None)
  names = tuple(config["methods"])
  tasks = {name: from_config.task_of(config, name) for name in config["tasks"]}
  left_out: dict[str, list[str]] = {name: [] for name in tasks}
  records = {
    name: from_config.records_of(config, task, left_out[name]) for name, task in tasks.items()
  }
  panels = {name: judges.panel(task.judge, config, stopping) for name, task in tasks.items()}
  for name in tasks:
    _check_rules(name, judges.rule_of(panels[name]), records[name], chosen=bool(config["judge"]))
  loaded = from_config.load_model(config, hosts)
  settings = _settings(config, tasks, loaded)
  manifest = _manifest(config, loaded, settings, records)
  if any(left_out.values()):
    manifest["left_out"] = left_out
  out = directory.Run.open(workdir, manifest, hosts.process, hosts.count)
  metrics = Metrics(workdir, hosts.process, hosts.count)
  traces = str(out.path / PROFILE) if profile else None
  try:
    hosts.wait("opened")  # what is done by now is the same for all
    for name in tasks:
      rule = judges.rule_of(panels[name])
      part = TaskRun(name, out, rule, config, hosts, metrics, traces, on_step, stopping)
      session = Session(loaded, settings[name], records[name])
      if "rain" in names:
        memory_plan.check(session.plan(), arrays.bytes_available())
      part.run(session, names)
    hosts.wait("answered")
  finally:
    metrics.close()
    out.close()
  loaded = session = part = None  # judge models need the memory
  results = directory.read_results(workdir) if hosts.count > 1 else out.results
  wanted = {(name, r.id, m) for name in tasks for r in records[name] for m in names}
  keys = lambda lines: {(r["task"], r["id"], r["method"]) for r in lines}
  missing = wanted - keys(results)
  summary = None
  try:
    # Processes that know each other have all answered by now.
    if hosts.count > 1 and missing and (hosts.connected or missing & keys(out.results)):
      raise directory.RunError(
        f"{workdir}: {len(missing)} results are not there; it is not one directory for all"
        " processes, or was taken away: start again with a --workdir that all of them see."
      )
    if hosts.count > 1 and missing:
      say(
        f"process {hosts.process} of {hosts.count} is done; others have {len(missing)} results to make"
      )
    else:
      with out.alone() as alone:
        if alone:
          summary = _sum_up(workdir, out, results, records, panels, names, say, stopping)
  finally:
    hosts.wait("summed up")  # the others are there, whatever became of this one
  return summary


def _check(config: Mapping[str, Any], hosts: Hosts, followed: bool) -> None:
  """Methods and options that cannot be used are known before anything is made."""
  config_check.check(config)
  names = tuple(config["methods"])
  for name in names:
    if name not in ALL_METHODS:
      known = ", ".join(ALL_METHODS)
      raise DataError(f"methods: unknown method {name!r}; expected some of {known}.")
  defences.methods_of(config, names)
  if hosts.count > 1 and (config["record"] or followed):
    raise DataError("Searches are recorded or followed by one process: record=0, and no --live.")
  if hosts.count > 1 and "best_of_n" in names and not config["best_of_n"]["samples"]:
    raise DataError("best_of_n.samples=0 takes RAIN's compute, which no one process knows: set N.")


def _check_rules(task: str, rule: judges.Rule, records: Sequence[Record], chosen: bool) -> None:
  """Tells which prompts the rules are not for; it is an error if the user `chose` the rules."""
  reasons = []
  for record in records:
    try:
      rule(record, "")
    except judges.CannotJudge as why:
      if chosen:
        raise
      reasons.append(why)
  if reasons:
    _LOG.warning(
      "%s: %d of %d prompts are answered and not judged. %s",
      *(task, len(reasons), len(records), reasons[0]),
    )


def _settings(
  config: Mapping[str, Any], tasks: Mapping[str, Task], loaded: LoadedModel
) -> dict[str, SessionConfig]:
  """Each task's setting.

  A chat template that is not there, labels of several tokens and a calibration for something else
  are found here, before anything is answered.
  """
  embedder = find_embedder(**config["embedder"], tokenizer=loaded.tokenizer)
  settings = {
    name: from_config.make_session_config(config, task, embedder, loaded.tokenizer)
    for name, task in tasks.items()
  }
  for session_config in settings.values():
    session_config.format.end_ids(loaded.tokenizer)
    session_config.compiled(loaded)
  return settings


def _manifest(
  config: Mapping[str, Any],
  loaded: LoadedModel,
  settings: Mapping[str, SessionConfig],
  records: Mapping[str, Sequence[Record]],
) -> dict[str, Any]:
  each = lambda part: {name: dataclasses.asdict(part(s)) for name, s in settings.items()}
  calibrations = {
    name: dataclasses.asdict(one.calibration) for name, one in settings.items() if one.calibration
  }
  return {
    "config": config,
    "model": {"path": loaded.name, "fingerprint": loaded.fingerprint},
    "versions": versions(),
    "templates": each(lambda session_config: session_config.preference),
    "formats": each(lambda session_config: session_config.format),
    "search": each(lambda session_config: session_config.search),
    "prompts": {name: _digest(some) for name, some in records.items()},
    **({"calibration": calibrations} if calibrations else {}),
  }


def _digest(records: Sequence[Record]) -> dict[str, Any]:
  """What tells prompts from others that lie in the same files."""
  text = json.dumps([dataclasses.asdict(record) for record in records], sort_keys=True, default=str)
  return {"count": len(records), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _sum_up(workdir, out, results, records, panels, methods, say, stopping) -> dict[str, Any]:
  """Judges what rules could not, and writes and shows the summary."""
  summary = _summary(workdir, results, methods)
  if any(_needs_a_file(panel) for panel in panels.values()):
    judgements.judge_results(workdir, results, records, panels, stopping)
    own = {name: [judge.name for judge in panel] for name, panel in panels.items()}
    summary = judgements.add_to(summary, workdir, own)
  out.finish(summary)
  say(table(summary))
  judgements.table(summary, say)
  return summary


def _summary(workdir: str, results: Sequence[Mapping], names: Sequence[str]) -> dict[str, Any]:
  """What the results and the manifest say; `left_out` is the number of rows by task."""
  summary: dict[str, Any] = {"methods": {name: summarise(results, name) for name in names}}
  left_out = directory.read_manifest(workdir).get("left_out", {})
  if left_out:
    summary["left_out"] = {task: len(rows) for task, rows in left_out.items()}
  return summary


def _needs_a_file(panel: Sequence[judges.Judge]) -> bool:
  """Whether there is more to a panel than one rule, whose answers stand in the results."""
  return len(panel) > 1 or not all(isinstance(judge, judges.RuleJudge) for judge in panel)


def judge_again(
  workdir: str,
  config: Mapping[str, Any],
  settings: Mapping[str, Any],
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Judges a run's responses and writes its summary anew.

  Args:
    workdir: of the run.
    config: the run's, from its manifest.
    settings: `judge`, `judging` and `endpoint` as in `configs/judge.py`; without a judge the
      run's own are asked.
    say: where the judges' table goes.

  Returns:
    The summary.

  Raises:
    As `run`.
  """
  config_check.check(settings)
  tasks = {name: from_config.task_of(config, name) for name in config["tasks"]}
  records = {name: from_config.records_of(config, task) for name, task in tasks.items()}
  panels = {
    name: judges.panel(settings["judge"] or task.judge, settings) for name, task in tasks.items()
  }
  judgements.judge_results(workdir, directory.read_results(workdir), records, panels)
  return summarise_again(workdir, config, say)


def summarise_again(
  workdir: str, config: Mapping[str, Any], say: Callable[[str], None] = print
) -> dict[str, Any]:
  """Writes a run's summary anew, from its results and what its judges said of them."""
  results = directory.read_results(workdir)
  summary = _summary(workdir, results, config["methods"])
  summary = judgements.add_to(summary, workdir, from_config.judges_of(config))
  directory.write_summary(workdir, summary)
  judgements.table(summary, say)
  return summary
