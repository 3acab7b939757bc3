"""The job of `scripts/check_preference.py`: checks one form of a preference, or compares all."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rain_jax.methods import preference_check, verdict_statistics
from rain_jax.methods.preference_check import Check, Example
from rain_jax.methods.session import SessionConfig
from rain_jax.models.loading import LoadedModel
from rain_jax.policy import embedders
from rain_jax.preferences import PreferenceError, load_forms
from rain_jax.preferences.calibration import Calibration
from rain_jax.runs import from_config


def session_config_of(config: Mapping[str, Any], loaded: LoadedModel) -> SessionConfig:
  """How the configuration's first task is asked."""
  task = from_config.task_of(config, config["tasks"][0])
  embedder = embedders.find_embedder(**config["embedder"], tokenizer=loaded.tokenizer)
  return from_config.make_session_config(config, task, embedder, loaded.judging.tokenizer)


def fit(config: Mapping[str, Any], loaded: LoadedModel) -> Calibration:
  """Fits a calibration on responses of the model's own to the configuration's prompts."""
  records = from_config.records_of(config, from_config.task_of(config, config["tasks"][0]))
  session_config = session_config_of(config, loaded)
  return preference_check.fit_prompts(loaded, session_config, records, config["seed"])


def compare(
  config: Mapping[str, Any], loaded: LoadedModel, examples: Sequence[Example]
) -> dict[str, Check | str]:
  """A check of each form of the configuration's preference, or why the model cannot be asked in it.

  Raises:
    DataError: an example that the model cannot read.
    PreferenceError: the preference is named with one form.
  """
  task = from_config.task_of(config, config["tasks"][0])
  session_config = session_config_of({**config, "calibration": ""}, loaded)
  checks: dict[str, Check | str] = {}
  for name, preference in load_forms(task.preference).items():
    asked = dataclasses.replace(session_config, preference=preference)
    try:
      checks[name] = preference_check.check(loaded, asked, examples, seed=config["seed"])
    except PreferenceError as error:
      checks[name] = str(error)
  return checks


def comparison(checks: Mapping[str, Check | str]) -> str:
  """The forms in one table, and which to take: the one whose leads order examples best."""
  said: list[tuple[str, ...]] = [
    ("form", "AUC [95%]", "right [95%]", "ties", "calibrated [95%]", "offset")
  ]
  for name, check in checks.items():
    if isinstance(check, str):
      said.append((name, check))
      continue
    before = check.before or check.found
    offsets = (
      [f"{offset:+.2f}" for offset in check.calibration.offsets] if check.calibration else []
    )
    said.append(
      (
        name,
        verdict_statistics.area(check.found),
        verdict_statistics.right(before),
        f"{100 * before['all']['ties']:.0f}%",
        verdict_statistics.right(check.after) if check.after else "-",
        ", ".join(offsets) or "-",
      )
    )
  whole = [row for row in said if len(row) > 2]
  widths = [max(len(row[i]) for row in whole) for i in range(len(whole[0]))]
  lines = [
    "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in said
  ]
  rated = [c for c in checks.values() if isinstance(c, Check) and c.found["auc"] is not None]
  if rated:
    lines += ["", _advice(max(rated, key=lambda check: check.found["auc"]))]
  return "\n".join(lines)


def _advice(best: Check) -> str:
  if best.found["auc_interval"][0] <= 0.5:
    return "take none: even the best may order good and bad examples by chance"
  return f"take {best.preference}: its leads order good and bad examples best"


def table(check: Check) -> str:
  """What a check found, to be read in a terminal."""
  lines = [verdict_statistics.table(check.found)]
  if check.calibration and check.reported is not None and check.before and check.after:
    lines += [
      "",
      f"{check.calibration.described()}; on {check.reported.sum()} examples"
      + (" that it was not fitted on" if not check.reported.all() else ""),
      f"{'':<34}{'as it is':>20}{'calibrated':>20}",
    ]
    for name, show in (
      ("verdict on the label's side [95%]", verdict_statistics.right),
      ("area under the ROC curve [95%]", verdict_statistics.area),
      ("calibration error", lambda found: f"{100 * found['calibration_error']:.1f}%"),
    ):
      lines.append(f"{name:<34}{show(check.before):>20}{show(check.after):>20}")
  return "\n".join(lines)


def as_json(check: Check) -> dict[str, Any]:
  """A check as JSON values: `measure` of all examples, calibration, and a row for each example."""
  rows = zip(check.good, check.answers.margins, check.answers.leads)
  calibration = check.calibration and dataclasses.asdict(check.calibration)
  return {
    **check.found,
    "calibrated": calibration
    and {"calibration": calibration, "before": check.before, "after": check.after},
    "rows": [
      {"good": bool(good), "margins": margins.tolist(), "leads": leads.tolist()}
      for good, margins, leads in rows
    ],
  }
