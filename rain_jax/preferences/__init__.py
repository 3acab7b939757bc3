"""What to align with: the templates in which a model judges a response.

A preference is a YAML file beside this module, or one of the user's own. It asks one question in
one or several forms (docs/preferences.md): `letters`, the published one, with options A and B in
either order; `words`, whose answer is a word after a few judged examples; and `chat`, a user turn
of the tokenizer's chat template. Each form is a fixed text, the way in which a conversation follows
it, and one or two readings, each of which asks about the response and names the labels of a good
and of a bad answer (RAIN, section 3.2, self-evaluation). `compile_preference`
turns a form into tokens, once per tokenizer; `calibration` corrects what the model then says.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from rain_jax.preferences.compiled import CompiledPreference as CompiledPreference
from rain_jax.preferences.compiled import compile_preference as compile_preference
from rain_jax.preferences.compiled import compile_scored as compile_scored
from rain_jax.preferences.guard import compile_guard as compile_guard
from rain_jax.preferences.template import CHAT, LETTERS, WORDS, Preference, PreferenceError, Reading
from rain_jax.preferences.yaml_file import read_yaml
from rain_jax.text.formats import PROMPT
from rain_jax.types import is_unicode

FORMS = (LETTERS, WORDS, CHAT)
BASE, INSTRUCT = KINDS = ("base", "instruct")
# A checkpoint that was trained to be asked in one form names it under this key of its
# tokenizer_config.json.
FORM_KEY = "preference_form"
NO_CUT, LAST_FULL_STOP = "none", "last_full_stop"

_FOLDER = pathlib.Path(__file__).parent
_FILE_KEYS = ("name", "description", "cut")
_FORM_KEYS = ("prefix", "conversation", "readings")
_READING_KEYS = ("suffix", "good", "bad")


def bundled_names() -> list[str]:
  """Names of the preferences that come with the package."""
  return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def kind_of(tokenizer: Any) -> str:
  """What a model is to a preference's defaults: "instruct" with a chat template, else "base"."""
  return INSTRUCT if getattr(tokenizer, "chat_template", None) else BASE


def load_preference(name_or_path: str | os.PathLike, tokenizer: Any = None) -> Preference:
  """Loads a bundled preference by its name, or one from a YAML file by its path.

  Args:
    name_or_path: a form may follow, as in "positive:words".
    tokenizer: of the model that is to be asked. It decides where no form is named: the form that
      the checkpoint was trained for (`FORM_KEY`), else the file's default for models of its kind.
      Without a tokenizer the published form is taken, or a base model's default.

  Raises:
    PreferenceError: naming the file, the key and what was expected.
  """
  where, form = _parted(name_or_path)
  forms, default = _read_file(where)
  if form is None:
    form = _default_form(forms, default, tokenizer)
  if form not in forms:
    known = ", ".join(forms) if "" not in forms else "none: it asks in one way only"
    raise PreferenceError(f"{where}: no form {form!r}; expected {known}.")
  return forms[form]


def load_forms(name_or_path: str | os.PathLike) -> dict[str, Preference]:
  """All forms of a preference by their names; "" is the name where the file has only one.

  Raises:
    PreferenceError: as `load_preference`, or if the name says which form.
  """
  where, form = _parted(name_or_path)
  if form is not None:
    raise PreferenceError(f"{str(name_or_path)!r} is one form; expected a name or path without it.")
  return _read_file(where)[0]


def _default_form(
  forms: Mapping[str, Preference], default: Mapping[str, str], tokenizer: Any
) -> str:
  if tokenizer is None:
    return LETTERS if LETTERS in forms else default[BASE]
  trained = getattr(tokenizer, "init_kwargs", {}).get(FORM_KEY)
  return trained if isinstance(trained, str) and trained in forms else default[kind_of(tokenizer)]


def _parted(name_or_path: str | os.PathLike) -> tuple[pathlib.Path, str | None]:
  """The file, and the form if one is named."""
  text = os.fspath(name_or_path)
  head, colon, form = text.rpartition(":")
  for name, chosen in ((text, None), (head, form)):
    path = _FOLDER / f"{name}.yaml" if name in bundled_names() else pathlib.Path(name)
    if name and os.path.isfile(path):
      return path, chosen
  raise PreferenceError(
    f"No preference {text!r}: expected one of {', '.join(bundled_names())}, or the path of a"
    " YAML file."
  )


def _read_file(path: pathlib.Path) -> tuple[dict[str, Preference], dict[str, str]]:
  """The forms in a file, and the default of each kind of model."""
  data, where = read_yaml(path), str(path)
  if isinstance(data, Mapping) and "forms" in data:
    _check_keys(where, "the file", data, (*_FILE_KEYS, "default", "forms"))
    about, forms = _read_about(where, data), data["forms"]
    if not isinstance(forms, Mapping) or not forms or not set(forms) <= set(FORMS):
      raise PreferenceError(f"{where}: forms={forms!r:.60}: expected some of {', '.join(FORMS)}.")
    found = {
      name: _read_form(where, f"forms.{name}", forms[name], name, about)
      for name in FORMS
      if name in forms
    }
    return found, _read_default(where, data["default"], found)
  _check_keys(where, "the file", data, (*_FILE_KEYS, *_FORM_KEYS))
  form = {key: data[key] for key in _FORM_KEYS}
  return {"": _read_form(where, "", form, "", _read_about(where, data))}, dict.fromkeys(KINDS, "")


def _read_about(path: str, data: Mapping[str, Any]) -> dict[str, str]:
  """What all forms share."""
  text = {key: _text(path, key, data[key]) for key in _FILE_KEYS}
  if text["cut"] not in (NO_CUT, LAST_FULL_STOP):
    raise PreferenceError(
      f"{path}: cut={text['cut']!r:.60}: expected {NO_CUT!r} or {LAST_FULL_STOP!r}."
    )
  if not all(text[key] and text[key].isprintable() for key in ("name", "description")):
    raise PreferenceError(f"{path}: name and description: expected one line each, to be printed.")
  return text


def _read_default(path: str, default: Any, forms: Mapping[str, Preference]) -> dict[str, str]:
  """The form for each kind of model; a name alone is for both."""
  chosen = dict.fromkeys(KINDS, default) if isinstance(default, str) else default
  if not isinstance(chosen, Mapping) or set(chosen) != set(KINDS):
    raise PreferenceError(
      f"{path}: default={default!r:.60}: expected a form, or {' and '.join(KINDS)}."
    )
  for kind, form in chosen.items():
    if not isinstance(form, str) or form not in forms:
      raise PreferenceError(f"{path}: default {form!r:.60}: expected one of {', '.join(forms)}.")
    if kind == BASE and form == CHAT:
      raise PreferenceError(
        f"{path}: default of {BASE} models is {CHAT!r}; they have no chat template."
      )
  return dict(chosen)


def _read_form(path: str, where: str, data: Any, form: str, about: Mapping[str, str]) -> Preference:
  at = f"{where}." if where else ""
  _check_keys(path, where or "the file", data, _FORM_KEYS)
  text = {key: _text(path, at + key, data[key]) for key in ("prefix", "conversation")}
  if PROMPT not in text["conversation"]:
    raise PreferenceError(
      f"{path}: {at}conversation={text['conversation']!r:.60}: expected {PROMPT} in it."
    )
  readings = data["readings"]
  if not isinstance(readings, list) or len(readings) not in (1, 2):
    raise PreferenceError(f"{path}: {at}readings={readings!r:.60}: expected a list of 1 or 2.")
  return Preference(
    **about,
    prefix=text["prefix"].rstrip("\n"),
    conversation=text["conversation"],
    readings=tuple(
      _read_reading(path, f"{at}readings[{i}]", data) for i, data in enumerate(readings)
    ),
    form=form,
  )


def _read_reading(path: str, where: str, data: Any) -> Reading:
  _check_keys(path, where, data, _READING_KEYS)
  suffix = _text(path, f"{where}.suffix", data["suffix"])
  if not suffix:
    raise PreferenceError(f"{path}: {where}.suffix='': expected the text that asks.")
  labels = {}
  for key in ("good", "bad"):
    if not isinstance(data[key], list) or not data[key]:
      raise PreferenceError(
        f"{path}: {where}.{key}={data[key]!r:.60}: expected a list of labels, not empty."
      )
    labels[key] = tuple(_text(path, f"{where}.{key}", label) for label in data[key])
    if "" in labels[key]:
      raise PreferenceError(f"{path}: {where}.{key}: '' is no label; expected text.")
  for label in labels["good"]:
    if label in labels["bad"]:
      raise PreferenceError(
        f"{path}: {where}: {label!r:.60} is good and bad; expected one of them."
      )
  return Reading(suffix, labels["good"], labels["bad"])


def _check_keys(path: str, where: str, data: Any, keys: tuple[str, ...]) -> None:
  if not isinstance(data, Mapping):
    raise PreferenceError(f"{path}: {where}: expected the keys {', '.join(keys)}.")
  for key in keys:
    if key not in data:
      raise PreferenceError(f"{path}: {where}: key {key!r} is missing.")
  for key in data:
    if key not in keys:
      raise PreferenceError(
        f"{path}: {where}: unknown key {key!r:.60}; expected only {', '.join(keys)}."
      )


def _text(path: str, key: str, value: Any) -> str:
  if not isinstance(value, str):
    raise PreferenceError(f"{path}: {key}: {value!r:.60} is not text; put it in quotes.")
  if not is_unicode(value):
    raise PreferenceError(
      f"{path}: {key}: half of a character in it (a surrogate without its pair)."
    )
  return value
