"""Who gives a session's verdicts, and how it is asked."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from rain_jax.models.loading import LoadedModel
from rain_jax.policy.language_model import VerdictModel
from rain_jax.policy.params import Correction
from rain_jax.policy.translation import Translation
from rain_jax.preferences import (
  CompiledPreference,
  Preference,
  compile_guard,
  compile_preference,
  compile_scored,
)
from rain_jax.preferences.calibration import Calibration
from rain_jax.text.formats import Format
from rain_jax.text.printable import one_line
from rain_jax.types import DataError

# How a verdict's model is asked.
KINDS = PREFERENCE, GUARD, REWARD = "preference", "guard", "reward"


def check_kind(model: str, kind: str) -> None:
  """Raises DataError, in one line, for a kind that is unknown, or one without a model."""
  if kind not in KINDS:
    raise DataError(f"verdict.kind={kind!r:.60}: expected {', '.join(KINDS)}.")
  if kind != PREFERENCE and not model:
    raise DataError(f"verdict.kind={kind}: set verdict.model to the {kind} model.")


def check_calibrated(kind: str, calibration: Any) -> None:
  """Raises DataError, in one line, for scores whose verdicts nothing says."""
  if kind == REWARD and not calibration:
    raise DataError(
      f"verdict.kind={REWARD}: which scores are good is for config.calibration to say, a file that"
      " check_preference.py --fit writes from labelled examples."
    )


def kind_of(loaded: LoadedModel) -> str:
  """How the model that gives the verdicts is asked, one of `KINDS`."""
  judge = loaded.judging
  return REWARD if judge.model.config.scores else GUARD if judge.guard else PREFERENCE


def compiled(preference: Preference, loaded: LoadedModel, form: Format) -> CompiledPreference:
  """A preference for the tokenizer of the model that gives the verdicts, in the way it is asked.

  Raises:
    PreferenceError: it does not suit the tokenizer.
  """
  judge, kind = loaded.judging, kind_of(loaded)
  if kind == REWARD:
    return compile_scored(preference, judge.tokenizer)
  if kind == GUARD:
    return compile_guard(preference, judge.tokenizer)
  # The format is the writer's; another tokenizer's chat template knows nothing of its settings.
  form = dataclasses.replace(form, template_kwargs=()) if loaded.translated else form
  return compile_preference(preference, judge.tokenizer, form)


def static_part(loaded: LoadedModel, preference: CompiledPreference) -> VerdictModel | None:
  """The model that gives the verdicts, if it is another.

  Args:
    loaded: both models.
    preference: as `compiled`.

  Raises:
    DataError: it has another tokenizer, and the models are spread over several devices.
  """
  judge = loaded.verdict
  if judge is None:
    return None
  translation = None
  if loaded.translated:
    if loaded.mesh is not None:
      raise DataError(
        f"verdict.model={one_line(judge.name)!r:.60}: its tokenizer is not that of"
        f" {one_line(loaded.name)}, whose texts are decoded for it on one device only; show the process"
        " one (CUDA_VISIBLE_DEVICES=0), or take a model of the same vocabulary."
      )
    translation = Translation(loaded.tokenizer, judge.tokenizer, preference.opening)
  return VerdictModel(judge.model.graphdef, judge.model.config, translation)


def correction(calibration: Calibration | None) -> Correction | None:
  """What a calibration makes of the answers."""
  if calibration is None:
    return None
  return Correction(
    jnp.asarray(calibration.offsets, jnp.float32), jnp.asarray(calibration.scales, jnp.float32)
  )


def described(loaded: LoadedModel) -> str:
  """Who is asked, for people; "" for the model itself."""
  judge = loaded.verdict
  if judge is None:
    return ""
  how = {REWARD: "score of", GUARD: "guarded by", PREFERENCE: "judged by"}
  return f", {how[kind_of(loaded)]} {one_line(judge.name)}"
