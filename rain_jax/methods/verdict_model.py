"""Who gives a session's verdicts, and how it is asked."""

import dataclasses

from rain_jax.models.loading import LoadedModel
from rain_jax.policy.language_model import VerdictModel
from rain_jax.policy.translation import Translation
from rain_jax.preferences import (
  CompiledPreference,
  Preference,
  compile_guard,
  compile_preference,
  compile_scored,
)
from rain_jax.text.formats import Format
from rain_jax.text.printable import one_line
from rain_jax.types import DataError


def compiled(preference: Preference, loaded: LoadedModel, form: Format) -> CompiledPreference:
  """A preference for the tokenizer of the model that gives the verdicts, in the way it is asked.

  Raises:
    PreferenceError: it does not suit the tokenizer.
  """
  judge = loaded.judging
  if judge.model.config.scores:
    return compile_scored(preference, judge.tokenizer)
  if judge.guard:
    return compile_guard(preference, judge.tokenizer)
  # The format is the writer's; another tokenizer's chat template knows nothing of its settings.
  form = dataclasses.replace(form, template_kwargs=()) if loaded.translated else form
  return compile_preference(preference, judge.tokenizer, form)


def static_part(loaded: LoadedModel) -> VerdictModel | None:
  """The model that gives the verdicts, if it is another.

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
        f" {one_line(loaded.name)}, whose texts are decoded for it on one device only; set mesh.data=1"
        " and mesh.tensor=1, or take a model of the same vocabulary."
      )
    translation = Translation(loaded.tokenizer, judge.tokenizer)
  return VerdictModel(judge.model.graphdef, judge.model.config, translation)


def described(loaded: LoadedModel) -> str:
  """Who is asked, for people; "" for the model itself."""
  judge = loaded.verdict
  if judge is None:
    return ""
  how = "score of" if judge.model.config.scores else "guarded by" if judge.guard else "judged by"
  return f", {how} {one_line(judge.name)}"
