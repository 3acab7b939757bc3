"""Makes a table of the paper anew, or of ours, on the demo world or on a model of yours.

  python scripts/reproduce.py --table=hh:demo --workdir=runs/hh
  python scripts/reproduce.py --table=hh --workdir=runs/hh --model=/models/llama-30b \
      --dtype=bfloat16 --judge=harmless=endpoint:harmless,helpful=endpoint:helpful \
      --set=endpoint.url=https://api.openai.com/v1 --set=endpoint.model=gpt-4 \
      --set=endpoint.key=OPENAI_API_KEY \
      --prompts=harmless=harmless-base/test.jsonl.gz,helpful=helpful-base/test.jsonl.gz

  python scripts/reproduce.py --table=pareto:smollm2 --workdir=runs/pareto-smollm2

Tables: hh, advbench, truthfulqa, imdb, time, self_evaluation, ablation, sample_efficiency, pareto,
adaptive_ablation; with :traps hh, ablation, pareto and adaptive_ablation, with :smollm2 imdb and
pareto. The same command goes on where it was stopped; docs/experiments.md has the figures and what
a run needs.
"""

import ast
import pathlib
import runpy
from collections.abc import Sequence
from typing import Any

import cli
import ml_collections
from absl import flags

from rain_jax import judges
from rain_jax.experiments import reproduce
from rain_jax.experiments.reproduce.tables import Step
from rain_jax.types import DataError

_TABLE = flags.DEFINE_string(
  "table", None, "NAME, or NAME:demo, NAME:traps, NAME:smollm2.", required=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where runs, table and picture go.", required=True)
_MODEL = flags.DEFINE_string("model", None, "Checkpoint folder or hub name.")
_DTYPE = flags.DEFINE_string("dtype", None, "float32, bfloat16, or int8 weights.")
_JUDGE = flags.DEFINE_list(
  "judge", [], "JUDGE for all steps, or STEP=JUDGE for one; see rain_jax.judges."
)
_PROMPTS = flags.DEFINE_list("prompts", [], "FILE for all steps, or STEP=FILE for one.")
_LIMIT = flags.DEFINE_integer("limit", None, "Prompts taken from each file; 0 takes all.")
_BATCH = flags.DEFINE_integer("batch_size", None, "Prompts searched for side by side.")
_SET = flags.DEFINE_multi_string(
  "set", [], "key=value of the configuration, for every run that has the key."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of everything.")


def _module(name: str) -> dict[str, Any]:
  """What a file of `configs/` defines; by its path, for some scripts have the same names."""
  return runpy.run_path(str(cli.REPOSITORY / "configs" / f"{name}.py"))


def _load(name: str, argument: str) -> ml_collections.ConfigDict:
  return cli.with_search(_module(name)["get_config"](argument))


def _given(flag: flags.FlagHolder, steps: Sequence[Step]) -> dict[str, str | None]:
  """What a flag's items say, by step: the step's own items, else those without a step.

  Raises:
    DataError: an item for a step that the table does not have.
  """
  found: dict[str, list[str]] = {step.name: [] for step in steps}
  for_all = []
  for item in flag.value:
    name, equals, value = item.partition("=")
    if equals and name in found:
      found[name].append(value)
    elif not equals or flag is _JUDGE and judges.takes_path(name):
      for_all.append(item)
    else:
      raise DataError(
        f"--{flag.name}={item}: this table has no step {name!r}; expected one of"
        f" {', '.join(found)}."
      )
  return {name: ",".join(own or for_all) or None for name, own in found.items()}


def _asked() -> dict[str, Any]:
  """What --set says, by key; a value that is no Python literal is a text."""
  asked = {}
  for one in _SET.value:
    key, equals, text = one.partition("=")
    if not equals:
      raise DataError(f"--set={one}: expected KEY=VALUE.")
    try:
      asked[key] = ast.literal_eval(text)
    except (SyntaxError, ValueError):
      asked[key] = text
  return asked


def _set(config: ml_collections.ConfigDict) -> None:
  """Gives a configuration those values of --set whose keys it has."""
  asked = {key: value for key, value in _asked().items() if key in _keys(config)}
  try:
    config.update_from_flattened_dict(asked)
  except TypeError as error:
    raise DataError(f"--set: {error}") from None


def _keys(config: ml_collections.ConfigDict, before: str = "") -> set[str]:
  """Dotted names of all values in a configuration."""
  names: set[str] = set()
  for name, value in config.items():
    inner = isinstance(value, ml_collections.ConfigDict)
    names |= _keys(value, f"{before}{name}.") if inner else {before + name}
  return names


def _made(name: str, on: str) -> list[Step]:
  """A table's steps, with what the flags say in place of their own.

  Raises:
    DataError: a flag that names a step or a key that the table does not have.
  """
  folder = pathlib.Path(_WORKDIR.value)
  ablations = tuple(_module("ablation")["ABLATIONS"])
  steps = reproduce.EXPERIMENTS[name](reproduce.Plan(on, folder, _load, ablations))
  unknown = _asked().keys() - {key for step in steps for key in _keys(step.config)}
  if unknown:
    raise DataError(f"--set={min(unknown)}: no run of this table has that key.")
  judge, prompts = _given(_JUDGE, steps), _given(_PROMPTS, steps)
  return [_overridden(step, judge[step.name], prompts[step.name]) for step in steps]


def _overridden(step: Step, judge: str | None, prompts: str | None) -> Step:
  """The step with the flags' model, judge, prompts and so on in place of its own."""
  config: Any = step.config  # as `_load` made it
  if step.kind == "time":
    if _MODEL.value is not None:
      config.models = (_MODEL.value,)
    if _DTYPE.value is not None:
      config.dtype = _DTYPE.value
    if _BATCH.value is not None:
      config.batches = (_BATCH.value,)
    _set(config)
    return Step(step.name, step.kind, config.to_dict())
  sought_on_others = step.kind == "attack" and config.attack.models
  changes = {
    "model.path": None if sought_on_others else _MODEL.value,
    "model.dtype": _DTYPE.value,
    "prompts.limit": _LIMIT.value,
    "batch_size": _BATCH.value,
    "judge": judge,
    "prompts.path": config.prompts.path or prompts,
    "seed": _SEED.value,
  }
  config.update_from_flattened_dict({k: v for k, v in changes.items() if v is not None})
  _set(config)
  return Step(step.name, step.kind, config.to_dict())


def main() -> None:
  """Makes the table that the flags name."""
  name, _, argument = _TABLE.value.partition(":")
  if name not in reproduce.EXPERIMENTS:
    tables = ", ".join(reproduce.EXPERIMENTS)
    raise DataError(
      f"--table={_TABLE.value}: expected one of {tables}, with :demo after it or not."
    )
  if argument not in ("", *reproduce.worlds(name)):
    known = ", ".join(f"{name}:{world}" for world in reproduce.worlds(name))
    raise DataError(f"--table={_TABLE.value}: expected {name}, {known}.")
  if not argument and _MODEL.value is None:
    raise DataError(f"--table={name}: needs --model; {name}:demo runs without.")
  reproduce.run(name, _made(name, argument), _WORKDIR.value)
  print(f"table and picture in {_WORKDIR.value}")


if __name__ == "__main__":
  cli.run(main, resumes=True)
