"""What a configuration names: tasks, prompts, settings, the model.

A configuration is nested plain values, what `ConfigDict.to_dict()` gives; `configs/common.py` has
every key. Here they become frozen dataclasses.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from rain_jax import preferences
from rain_jax.methods.session import SessionConfig, search_config
from rain_jax.methods.verdict_model import GUARD, REWARD
from rain_jax.models import ModelConfig
from rain_jax.models.loading import LoadedModel, begin
from rain_jax.models.sharding import make_mesh, mesh_shape
from rain_jax.parallel.hosts import Hosts
from rain_jax.preferences.calibration import load_calibration
from rain_jax.runs.config_check import SKIP
from rain_jax.tasks import Record, Task, find_task, load_behaviors, load_records, load_suffixes
from rain_jax.tasks.rows import RowError
from rain_jax.text.formats import find_format
from rain_jax.types import DataError

_LOG = logging.getLogger(__name__)


def task_of(config: Mapping[str, Any], name: str) -> Task:
  """A task with what the configuration says otherwise."""
  task = find_task(name)
  given = {k: v for k, v in config["format"].items() if v is not None and k != "name"}
  form = find_format(config["format"]["name"]) if config["format"]["name"] else task.format
  unheard = [name for name in ("template", "prefix") if form.chat and name in given]
  if unheard:
    raise DataError(
      f"format.{unheard[0]} has no effect on the format chat, which is the tokenizer's own: leave it"
      " away, or name another format."
    )
  # A prompt from the command line is not among those whose answers the task's judge knows.
  own_judge = "none" if config["prompts"]["text"] else task.judge
  return dataclasses.replace(
    task,
    format=dataclasses.replace(form, **given),
    preference=config["preference"] or task.preference,
    variant=config["search"]["variant"] or task.variant,
    judge=config["judge"] or own_judge,
  )


def judges_of(config: Mapping[str, Any]) -> dict[str, list[str]]:
  """Names of each task's judges, without the checkpoints after them; nobody is no name."""
  found = {}
  for task in config["tasks"]:
    names = [part.strip().partition("=")[0] for part in task_of(config, task).judge.split(",")]
    found[task] = [name for name in names if name not in ("", "none")]
  return found


def records_of(
  config: Mapping[str, Any], task: Task, left_out: list[str] | None = None
) -> list[Record]:
  """The prompts of a task, or those that the configuration names instead.

  A limit takes as many from each file.

  Args:
    config: of the run.
    task: of the configuration, see `task_of`.
    left_out: gets a line about each row that config.prompts.bad_rows=skip leaves out.
  """
  prompts = config["prompts"]
  if prompts["text"]:
    return [Record("prompt", prompts["text"])]
  named = tuple(path.strip() for path in prompts["path"].split(",") if path.strip())
  files = named or task.prompts
  if not files:
    raise DataError("This task has no prompts of its own: set config.prompts.path or --prompt.")
  # Manifests of earlier versions have no such key.
  skipped: list[str] | None = [] if prompts.get("bad_rows") == SKIP else None
  try:
    records = load_records(task.reader, files, prompts["column"], prompts["limit"], skipped)
  except RowError as error:
    line = f"{error} config.prompts.bad_rows={SKIP} leaves such rows out."
    raise DataError(line) from None
  if skipped:
    _LOG.warning("%d rows left out: %s", len(skipped), " ".join(skipped))
    if left_out is not None:
      left_out += skipped
  if prompts.get("behaviors"):
    records = list(map(load_behaviors(prompts["behaviors"]), records))
  suffixes = prompts["suffixes"] or ("" if named else task.suffixes)
  if suffixes:
    attack = load_suffixes(suffixes)
    records = [attacked for record in records for attacked in attack(record)]
  return records


def make_session_config(
  config: Mapping[str, Any], task: Task, embedder: Any, tokenizer: Any
) -> SessionConfig:
  """What a session of this task is compiled for; the tokenizer may decide how it is asked."""
  calibration = config["calibration"]
  overrides = {k: v for k, v in config["search"].items() if k != "variant"}
  return SessionConfig(
    format=task.format,
    preference=preferences.load_preference(task.preference, tokenizer),
    search=search_config(task.variant, overrides, embedder),
    max_prompt=config["limits"]["max_prompt"],
    max_response=config["limits"]["max_response"],
    # Configurations of earlier versions have no such key.
    max_thought=config["limits"].get("max_thought", SessionConfig.max_thought),
    batch_size=config["batch_size"],
    embedder=embedder,
    verdict_noise=config["verdict_noise"],
    soft_verdicts=config["soft_verdicts"],
    calibration=load_calibration(calibration) if calibration else None,
  )


def load_model(config: Mapping[str, Any], hosts: Hosts) -> LoadedModel:
  """The model, spread over the mesh that the configuration names."""
  return begin_model(config, hosts)[1]()


def begin_model(
  config: Mapping[str, Any], hosts: Hosts
) -> tuple[LoadedModel, Callable[[], LoadedModel]]:
  """The abstract model over the same mesh, and what reads its weights; see `loading.begin`."""

  def mesh_of(model: ModelConfig) -> jax.sharding.Mesh | None:
    mesh = make_mesh(
      config["mesh"]["tensor"], config["mesh"]["data"], model.num_kv_heads, hosts.devices
    )
    return mesh if mesh.size > 1 else None

  return _begin_on(config, mesh_of)


def shapes_on(config: Mapping[str, Any], chips: int, memory: int) -> LoadedModel:
  """The abstract model over accelerators that are not at hand, as `load_model` would spread it.

  Args:
    config: of the run.
    chips: how many.
    memory: bytes of each.
  """

  def mesh_of(model: ModelConfig) -> Any:
    sizes = config["mesh"]["tensor"], config["mesh"]["data"]
    shape = mesh_shape(chips, *sizes, kv_heads=model.num_kv_heads)
    axes = (AxisType.Auto,) * len(shape)
    return AbstractMesh(tuple(shape.values()), tuple(shape), axes) if chips > 1 else None

  return _begin_on(config, mesh_of, memory)[0]


def load_on(config: Mapping[str, Any]) -> LoadedModel:
  """The model, and that of its verdicts if it is another, on one device."""
  return _begin_on(config, lambda model: None)[1]()


def _begin_on(
  config: Mapping[str, Any],
  mesh_of: Callable[[ModelConfig], Any],
  planned_for: int | None = None,
) -> tuple[LoadedModel, Callable[[], LoadedModel]]:
  """`loading.begin` of the model, with that of its verdicts if it is another, over a mesh."""
  section = config["model"]
  # Configurations of earlier versions have no such keys.
  options = {key: section.get(key, "") for key in ("revision", "adapter")}
  own, read = begin(section["path"], section["dtype"], mesh_of, **options, planned_for=planned_for)
  verdict = config.get("verdict", {})
  if not verdict.get("model", ""):
    return own, read
  kind = verdict.get("kind")
  judge, read_judge = begin(
    verdict["model"],
    section["dtype"],
    lambda _: own.mesh,
    scores=kind == REWARD,
    planned_for=planned_for,
  )
  guard = kind == GUARD
  return own.judged_by(judge, guard), lambda: read().judged_by(read_judge(), guard)
