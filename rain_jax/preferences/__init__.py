"""What to align with: the templates in which a model judges a response.

A preference is a YAML file beside this module, or one of the user's own: a fixed text
with a few judged examples, the form in which a conversation follows it, and one or two
readings, each of which asks about the response and names the labels of a good and of a
bad answer (RAIN, section 3.2, self-evaluation; design section 2). `compile_preference`
turns it into tokens, once per tokenizer.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from rain_jax.text import vocab
from rain_jax.text.formats import join_turns

PROMPT = "{prompt}"  # stands for the user's prompt in `Preference.conversation`
NO_CUT, LAST_FULL_STOP = "none", "last_full_stop"

_FOLDER = pathlib.Path(__file__).parent
_PREFERENCE_KEYS = ("name", "description", "prefix", "conversation", "cut", "readings")
_READING_KEYS = ("suffix", "good", "bad")


class PreferenceError(ValueError):
  """A preference that cannot be used; the message says why, in one line."""


@dataclasses.dataclass(frozen=True)
class Reading:
  """One way of asking about a response.

  It is good when the largest probability of a good label, after the suffix, exceeds
  the largest of a bad label.

  Attributes:
    suffix: text after the response; ends where the answer begins.
    good: labels of a good answer, spelled as they follow the suffix.
    bad: labels of a bad answer.
  """

  suffix: str
  good: tuple[str, ...]
  bad: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Preference:
  """What to align with; the value of a response is 2 * (share of good readings) - 1.

  Attributes:
    name: of the preference.
    description: one line.
    prefix: text that all verdicts begin with; an empty line follows it. May be empty.
    conversation: text after it, with "{prompt}" for the prompt; the response follows.
    cut: "none", or "last_full_stop" to judge a response up to its last full stop only.
    readings: one or two.
  """

  name: str
  description: str
  prefix: str
  conversation: str
  cut: str
  readings: tuple[Reading, ...]


@dataclasses.dataclass(frozen=True)
class CompiledPreference:
  """A preference in the tokens of one tokenizer; static and hashable.

  Attributes:
    prefix_ids: tokens that all verdicts begin with, the tokenizer's own token for the
      beginning of a text included.
    suffix_ids: per reading, the tokens after the response.
    good_ids: per reading, the tokens of its good labels, one each, without repeats.
    bad_ids: likewise of its bad labels; no token is both.
    cut: judge a response up to its last full stop only.
    conversation: see `Preference`.
    tokenizer: what the tokens belong to.
  """

  prefix_ids: tuple[int, ...]
  suffix_ids: tuple[tuple[int, ...], ...]
  good_ids: tuple[tuple[int, ...], ...]
  bad_ids: tuple[tuple[int, ...], ...]
  cut: bool
  conversation: str
  tokenizer: Any = dataclasses.field(repr=False, compare=False)

  def conversation_ids(self, prompt: str, history: Sequence[str] = ()) -> tuple[int, ...]:
    """Tokens between prefix and response, for one prompt and what was said before it.

    Raises:
      ValueError: if the text has no tokens of its own, see `vocab.encode_continuation`.
    """
    text = join_turns(self.conversation, prompt, history)
    return tuple(vocab.encode_continuation(self.tokenizer, text))


def bundled_names() -> list[str]:
  """Names of the preferences that come with the package."""
  return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_preference(name_or_path: str | os.PathLike) -> Preference:
  """Loads a bundled preference by its name, or one from a YAML file by its path.

  Raises:
    PreferenceError: naming the file, the key and what was expected.
  """
  if isinstance(name_or_path, str) and name_or_path in bundled_names():
    path = _FOLDER / f"{name_or_path}.yaml"
  else:
    path = pathlib.Path(name_or_path)
    if not path.is_file():
      raise PreferenceError(
        f"No preference {str(name_or_path)!r}: expected one of"
        f" {', '.join(bundled_names())}, or the path of a YAML file."
      )
  try:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
  except UnicodeDecodeError:
    raise PreferenceError(f"{path}: not UTF-8 text; expected a YAML file.") from None
  except (yaml.YAMLError, ValueError) as error:  # the latter: a day that no calendar has
    reason = " ".join(str(error).split())
    raise PreferenceError(f"{path}: not valid YAML ({reason}).") from None
  return _read_preference(str(path), data)


def _read_preference(path: str, data: Any) -> Preference:
  _check_keys(path, "the file", data, _PREFERENCE_KEYS)
  text = {key: _text(path, key, data[key]) for key in _PREFERENCE_KEYS if key != "readings"}
  if PROMPT not in text["conversation"]:
    raise PreferenceError(
      f"{path}: conversation={text['conversation']!r}: expected {PROMPT} in it."
    )
  if text["cut"] not in (NO_CUT, LAST_FULL_STOP):
    raise PreferenceError(
      f"{path}: cut={text['cut']!r}: expected {NO_CUT!r} or {LAST_FULL_STOP!r}."
    )
  if not text["name"] or len(text["description"].splitlines()) != 1:
    raise PreferenceError(f"{path}: name and description: expected one line each.")
  readings = data["readings"]
  if not isinstance(readings, list) or len(readings) not in (1, 2):
    raise PreferenceError(f"{path}: readings={readings!r:.60}: expected a list of 1 or 2.")
  text["prefix"] = text["prefix"].rstrip("\n")
  return Preference(
    **text, readings=tuple(_read_reading(path, i, data) for i, data in enumerate(readings))
  )


def _read_reading(path: str, index: int, data: Any) -> Reading:
  where = f"readings[{index}]"
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
      raise PreferenceError(f"{path}: {where}: {label!r} is good and bad; expected one of them.")
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
        f"{path}: {where}: unknown key {key!r}; expected only {', '.join(keys)}."
      )


def _text(path: str, key: str, value: Any) -> str:
  if not isinstance(value, str):
    raise PreferenceError(f"{path}: {key}: {value!r:.60} is not text; put it in quotes.")
  return value


def compile_preference(preference: Preference, tokenizer: Any) -> CompiledPreference:
  """Turns a preference into tokens.

  Prefix, conversation, response and suffix are joined as tokens, so each is tokenised
  as it continues other text. Text that spells a special token stays plain text.

  Args:
    preference: what to compile.
    tokenizer: fast tokenizer of transformers.

  Raises:
    PreferenceError: for a label that is not exactly one token, or the same token as a
      label of the other side.
  """

  def encode(text: str) -> list[int]:
    try:
      return vocab.encode_continuation(tokenizer, text)
    except ValueError as error:
      raise PreferenceError(f"Preference {preference.name!r}: {error}") from None

  def label_ids(suffix: str, labels: tuple[str, ...]) -> tuple[int, ...]:
    ids = [_label_id(encode, preference, tokenizer, suffix, label) for label in labels]
    return tuple(dict.fromkeys(ids))

  suffixes, good, bad = [], [], []
  for reading in preference.readings:
    suffixes.append(tuple(encode(reading.suffix)))
    good.append(label_ids(reading.suffix, reading.good))
    bad.append(label_ids(reading.suffix, reading.bad))
    for token in good[-1]:
      if token in bad[-1]:
        raise PreferenceError(
          f"Preference {preference.name!r}: token {_piece(tokenizer, token)!r} stands for a"
          f" good and a bad label ({reading.good}, {reading.bad}); choose other labels."
        )
  return CompiledPreference(
    prefix_ids=_prefix_ids(tokenizer, preference.prefix),
    suffix_ids=tuple(suffixes),
    good_ids=tuple(good),
    bad_ids=tuple(bad),
    cut=preference.cut == LAST_FULL_STOP,
    conversation=preference.conversation,
    tokenizer=tokenizer,
  )


def _label_id(
  encode: Callable[[str], list[int]],
  preference: Preference,
  tokenizer: Any,
  suffix: str,
  label: str,
) -> int:
  """The token of a label after its suffix."""
  before, whole = encode(suffix), encode(suffix + label)
  behind = whole[len(before) :] if whole[: len(before)] == before else None
  # Where the label joins the suffix's last token ("(" and "A" as "(A"), the model still
  # sees the suffix's own tokens, and answers with the label's.
  alone = encode(label)
  for ids in (behind, alone):
    if ids is not None and len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
      return ids[0]
  pieces = [_piece(tokenizer, token) for token in (behind or alone)]
  raise PreferenceError(
    f"Preference {preference.name!r}: label {label!r} after {suffix[-20:]!r} becomes"
    f" {pieces}; expected one known token: use a shorter label, or one that begins"
    " with the space before it."
  )


def _piece(tokenizer: Any, token: int) -> str:
  return tokenizer.convert_ids_to_tokens([token])[0]


def _prefix_ids(tokenizer: Any, prefix: str) -> tuple[int, ...]:
  """The beginning of a text, and the prefix with an empty line after it."""
  plain = lambda text, special: (
    tokenizer(text, add_special_tokens=special, split_special_tokens=True).input_ids
  )
  # What the tokenizer puts before any text (a token for its beginning, or nothing);
  # what it may put after a text does not belong here.
  probe, dressed = plain("a", False), plain("a", True)
  begin = next(i for i in range(len(dressed)) if dressed[i : i + len(probe)] == probe)
  text = plain(prefix + "\n\n", False) if prefix else []
  return (*dressed[:begin], *text)
