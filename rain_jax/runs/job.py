"""The main job: methods over prompts, judged, into a working directory.

`run` takes a configuration as nested plain values; `scripts/generate.py` is its command.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rain_jax import judges
from rain_jax.methods import METHODS, SearchStep, find_method, largest_plan
from rain_jax.methods.ahead import Ahead
from rain_jax.methods.session import Session, SessionConfig
from rain_jax.models import arrays, backend
from rain_jax.models.loading import LoadedModel
from rain_jax.parallel.hosts import Hosts
from rain_jax.policy import memory_plan
from rain_jax.policy.embedders import find_embedder
from rain_jax.runs import config_check, directory, from_config, judgements, locks, manifest
from rain_jax.runs.metrics import PROFILE, Metrics
from rain_jax.runs.summary import summarise, table
from rain_jax.runs.task import TaskRun
from rain_jax.tasks import Record, Task
from rain_jax.types import DataError

_LOG = logging.getLogger(__name__)


def plans(config: Mapping[str, Any]) -> dict[str, memory_plan.Plan]:
  """The memory that the largest of the methods will need for each task, by the task's name.

  Raises:
    As `run`.
  """
  _check(config, Hosts(), followed=False)
  sessions = _sessions(config, from_config.begin_model(config, Hosts())[0])
  return {name: _largest(session, config["methods"]) for name, session in sessions}


def plans_for_chips(
  config: Mapping[str, Any], kind: str, chips: int, memory: int
) -> dict[str, memory_plan.Plan]:
  """As `plans`, on accelerators that are not at hand: `chips` with `memory` bytes each.

  Of the model only configuration and tokenizer are read; `kind` is tpu or gpu.
  """
  with backend.target(kind):
    sessions = abstract_sessions(config, chips, memory)
    return {name: _largest(session, config["methods"]) for name, session in sessions.items()}


def abstract_sessions(config: Mapping[str, Any], chips: int, memory: int) -> dict[str, Session]:
  """Each task's session on chips not at hand, with shapes in place of weights; see `plans_for_chips`.

  To be made and used inside `backend.target` of these chips.
  """
  _check(config, Hosts(), followed=False)
  config = {**config, "calibration": ""}  # which is of weights, and takes no room
  return dict(_sessions(config, from_config.shapes_on(config, chips, memory)))


def _sessions(config: Mapping[str, Any], loaded: LoadedModel) -> Iterator[tuple[str, Session]]:
  tasks = {name: from_config.task_of(config, name) for name in config["tasks"]}
  settings = _settings(config, tasks, loaded)
  for name, task in tasks.items():
    yield name, Session(loaded, settings[name], from_config.records_of(config, task))


def _largest(session: Session, methods: Sequence[str]) -> memory_plan.Plan:
  return largest_plan(session, methods) or session.plan()


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
  model, read_weights = from_config.begin_model(config, hosts)
  settings = _settings(config, tasks, model)
  made = manifest.make(config, model, settings, records)
  if any(left_out.values()):
    made["left_out"] = left_out
  out = directory.Run.open(workdir, made, hosts.process, hosts.count)
  begun = len(out.results)
  with contextlib.closing(out):  # nobody else comes in before all is judged
    settings = manifest.dated(settings, out.manifest)
    with contextlib.closing(Metrics(workdir, hosts.process, hosts.count)) as metrics:
      traces = str(out.path / PROFILE) if profile else None
      hosts.wait("opened")  # what is done by now is the same for all
      parts = []
      for name in tasks:
        rule = judges.rule_of(panels[name])
        part = TaskRun(name, out, rule, config, hosts, metrics, traces, on_step, stopping)
        parts.append((part, _session(model, settings[name], records[name], names)))
      _answer(parts, names, read_weights)
      hosts.wait("answered")
    late = len(out.results) == begun
    return _close(workdir, out, records, panels, names, say, stopping, hosts, late)


def _close(
  workdir, out, records, panels, names, say, stopping, hosts, late
) -> dict[str, Any] | None:
  """Judges and sums up, if all is answered and no other process is at it.

  A process that came `late`, when its share was answered, sees to it that the run has an end.
  """
  results = directory.read_results(workdir) if hosts.count > 1 else out.results
  wanted = {(name, r.id, m) for name, some in records.items() for r in some for m in names}
  keys = lambda lines: {judgements.key_of(line) for line in lines}
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
      if late and hosts.count > 1 and not hosts.connected:
        _LOG.info("all is answered; waiting for whoever judges %s, if anybody does", workdir)
        locks.wait_for_judge(workdir, stopping)
      with locks.judging(workdir) as alone:
        if alone:
          summary = _sum_up(workdir, out, results, records, panels, names, say, stopping)
        elif hosts.count == 1:
          raise directory.RunError(
            f"{workdir}: all is answered, and another process judges it; start again when that"
            " has ended."
          )
        else:
          say(f"process {hosts.process} of {hosts.count} is done; another one judges the responses")
  finally:
    hosts.wait("summed up")  # the others are there, whatever became of this one
  return summary


def _session(
  model: LoadedModel, settings: SessionConfig, records: Sequence[Record], names: Sequence[str]
) -> Session:
  """A task's session of an abstract model; ValueError if what its methods need does not fit."""
  session = Session(model, settings, records)
  needed = largest_plan(session, names)
  if needed is not None:
    memory_plan.check(needed, arrays.bytes_available())
  return session


def _answer(
  parts: Sequence[tuple[TaskRun, Session]],
  names: Sequence[str],
  read_weights: Callable[[], LoadedModel],
) -> None:
  """The responses of each task, by every method; programs are compiled while weights are read.

  Nothing of the model is left in memory, which judge models need.
  """
  with contextlib.ExitStack() as compiling:
    ahead: Ahead | None = None
    for part, session in parts:
      ahead = session.ahead = part.compiling(session, names, ahead)
      compiling.enter_context(contextlib.closing(ahead))
    loaded = read_weights()
    for part, session in parts:
      part.run(session.with_weights(loaded), names)


def _check(config: Mapping[str, Any], hosts: Hosts, followed: bool) -> None:
  """Methods and options that cannot be used are known before anything is made."""
  config_check.check(config)
  names = tuple(config["methods"])
  for name in names:
    find_method(name)
  options = {name: METHODS[name].options(config) for name in names}
  if hosts.count > 1 and (config["record"] or followed):
    raise DataError("Searches are recorded or followed by one process: record=0, and no --live.")
  for name in names:
    if hosts.count > 1 and METHODS[name].incomplete(options[name]):
      raise DataError(
        f"config.{name} as it is takes RAIN's compute, which no one process knows: set a number."
      )


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
  """Each task's session configuration.

  A chat template that is not there, labels of several tokens and a calibration for something else
  are found here, before anything is answered.
  """
  embedder = find_embedder(**config["embedder"], tokenizer=loaded.tokenizer)
  settings = {
    name: from_config.make_session_config(config, task, embedder, loaded.judging.tokenizer)
    for name, task in tasks.items()
  }
  for session_config in settings.values():
    session_config.format.end_ids(loaded.tokenizer)
    session_config.compiled(loaded)
  return settings


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
  """What the results and the manifest say.

  `left_out` is the number of rows by task, `verdicts_by` the model that was asked in place of its own.
  """
  summary: dict[str, Any] = {"methods": {name: summarise(results, name) for name in names}}
  kept = directory.read_manifest(workdir)
  if judge := manifest.verdicts_by(kept):
    summary["verdicts_by"] = judge
  left_out = kept.get("left_out", {})
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
  with locks.judging_alone(workdir):
    judgements.judge_results(workdir, directory.read_results(workdir), records, panels)
    return _summarise_again(workdir, config, say)


def add_ratings(
  workdir: str,
  config: Mapping[str, Any],
  lines: Sequence[Mapping[str, Any]],
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Adds what people said of a run's responses, and writes its summary anew.

  Args, returns, raises: see `judge_again`; `lines` are those of `judgements.append`.
  """
  with locks.judging_alone(workdir):
    judgements.append(workdir, lines)
    return _summarise_again(workdir, config, say)


def _summarise_again(
  workdir: str, config: Mapping[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
  """Writes the summary anew, from the results and what judges said of them."""
  results = directory.read_results(workdir)
  summary = _summary(workdir, results, config["methods"])
  summary = judgements.add_to(summary, workdir, from_config.judges_of(config))
  if directory.has_summary(workdir):
    directory.write_summary(workdir, summary)
  else:  # which would say that the run has ended
    _LOG.warning("%s: the run has not ended yet; it writes its summary when it does", workdir)
  judgements.table(summary, say)
  return summary
