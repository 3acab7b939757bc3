"""What takes a model's bias out of its verdicts: an offset and a scale for each reading.

Small models answer one label more readily than the other, whatever they read. A reading counts as
good where its lead, the log-odds of the good label against the bad one, exceeds an offset; a scale
turns the distance from it into a probability (Platt scaling). Both are fitted for one model, asked
in one form with one tokenizer, and are of no use to any other: the file says which it was. Fitted by
`methods.calibrate`, applied by `policy.self_evaluation`.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from rain_jax.preferences.template import PreferenceError
from rain_jax.preferences.yaml_file import read_yaml

_KEYS = ("model", "fingerprint", "preference", "template", "source", "readings")
_READING_KEYS = ("offset", "scale")


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Offsets and scales, and what they were fitted for.

  Attributes:
    model: what the user called it.
    fingerprint: of its weights.
    preference: name and form, `Preference.label`.
    template: `CompiledPreference.digest`.
    source: what it was fitted on, in words.
    offsets: per reading, the lead in log-odds that a good response exceeds.
    scales: per reading, above 0.
  """

  model: str
  fingerprint: str
  preference: str
  template: str
  source: str
  offsets: tuple[float, ...]
  scales: tuple[float, ...]

  def check(self, fingerprint: str, preference: str, template: str) -> None:
    """Raises PreferenceError, in one line, unless it was fitted for this model and template."""
    short = lambda digest: digest[:12]
    for what, own, other, shown in (
      ("preference", self.preference, preference, str),
      ("model", self.fingerprint, fingerprint, short),
      ("template or tokenizer", self.template, template, short),
    ):
      if own != other:
        raise PreferenceError(
          f"The calibration was fitted for another {what}: {shown(own)}, and this is"
          f" {shown(other)}; fit one for it with check_preference.py --fit."
        )

  def log_odds(self, leads: np.ndarray) -> np.ndarray:
    """Log-odds of being good, float[..., readings]."""
    return np.array(self.scales) * (leads - np.array(self.offsets))

  def margins(self, leads: np.ndarray) -> np.ndarray:
    """Probability of being good minus that of being bad, float[..., readings]."""
    return np.tanh(self.log_odds(leads) / 2)

  def described(self) -> str:
    """One line for people."""
    offsets = ", ".join(f"{offset:+.2f}" for offset in self.offsets)
    return f"calibrated, offset {offsets} ({self.source})"

  def as_yaml(self) -> str:
    """The file's text."""
    data = {key: getattr(self, key) for key in _KEYS if key != "readings"}
    pairs = zip(self.offsets, self.scales, strict=True)
    data["readings"] = [{"offset": offset, "scale": scale} for offset, scale in pairs]
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def load_calibration(path: str | os.PathLike) -> Calibration:
  """Reads a file that `check_preference.py --fit` wrote.

  Raises:
    PreferenceError: naming the file, the key and what was expected.
  """
  data = read_yaml(path, "a file of check_preference.py --fit")
  if not isinstance(data, Mapping) or set(data) != set(_KEYS):
    raise PreferenceError(f"{path}: expected the keys {', '.join(_KEYS)}.")
  for key in _KEYS[:-1]:
    if not isinstance(data[key], str):
      raise PreferenceError(f"{path}: {key}={data[key]!r:.60}: expected text.")
  pairs = [_pair(path, one) for one in _list(path, data["readings"])]
  offsets, scales = zip(*pairs)
  texts = {key: data[key] for key in _KEYS[:-1]}
  return Calibration(**texts, offsets=offsets, scales=scales)


def _list(path, readings: Any) -> list:
  if not isinstance(readings, list) or len(readings) not in (1, 2):
    raise PreferenceError(f"{path}: readings={readings!r:.60}: expected a list of 1 or 2.")
  return readings


def _pair(path, reading: Any) -> tuple[float, float]:
  if not isinstance(reading, Mapping) or set(reading) != set(_READING_KEYS):
    raise PreferenceError(
      f"{path}: readings: expected the keys {', '.join(_READING_KEYS)} in each."
    )
  for key in _READING_KEYS:
    value = reading[key]
    number = (
      isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    )
    if not number or (key == "scale" and value <= 0):
      wanted = "a number above 0" if key == "scale" else "a number"
      raise PreferenceError(f"{path}: {key}={value!r:.60}: expected {wanted}.")
  return float(reading["offset"]), float(reading["scale"])
