"""Calibration files: what is read, what is refused, and for whom."""

import dataclasses

import numpy as np
import pytest
import yaml

from rain_jax.preferences import PreferenceError
from rain_jax.preferences.calibration import Calibration, load_calibration

MINE = Calibration("demo", "f" * 64, "mine:words", "d" * 64, "4 examples", (1.5, -0.25), (2.0, 0.5))
GOOD = yaml.safe_load(MINE.as_yaml())


def test_a_file_is_read_as_it_was_written(tmp_path):
  path = tmp_path / "mine.yaml"
  path.write_text(MINE.as_yaml(), "utf-8")
  assert load_calibration(path) == load_calibration(str(path)) == MINE
  assert MINE.described() == "calibrated, offset +1.50, -0.25 (4 examples)"


@pytest.mark.parametrize(
  "data, says",
  [
    ({k: v for k, v in GOOD.items() if k != "model"}, "expected the keys model, fingerprint"),
    (GOOD | {"colour": "red"}, "expected the keys model, fingerprint"),
    (GOOD | {"fingerprint": 7}, "fingerprint=7: expected text"),
    (GOOD | {"readings": []}, "expected a list of 1 or 2"),
    (GOOD | {"readings": [{"offset": 1}]}, "expected the keys offset, scale"),
    (GOOD | {"readings": [{"offset": "1", "scale": 1}]}, "offset='1': expected a number"),
    (GOOD | {"readings": [{"offset": float("nan"), "scale": 1}]}, "offset=nan: expected a number"),
    (GOOD | {"readings": [{"offset": 1, "scale": 0}]}, "scale=0: expected a number above 0"),
    ([], "expected the keys"),
    (b"\xff", "not UTF-8 text"),
    (b"a: [", "not valid YAML"),
  ],
)
def test_bad_files_are_one_line(tmp_path, data, says):
  path = tmp_path / "mine.yaml"
  path.write_bytes(data if isinstance(data, bytes) else yaml.safe_dump(data).encode())
  with pytest.raises(PreferenceError) as caught:
    load_calibration(path)
  text = str(caught.value)
  assert says in text and text.startswith(str(path)) and "\n" not in text


def test_a_missing_file_is_one_line(tmp_path):
  with pytest.raises(PreferenceError, match="No such file or directory; expected a file of check"):
    load_calibration(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
  "other, says",
  [
    ({"fingerprint": "a" * 64}, "another model: ffffffffffff, and this is aaaaaaaaaaaa"),
    ({"preference": "mine:chat"}, "another preference: mine:words, and this is mine:chat"),
    ({"template": "b" * 64}, "another template or tokenizer: dddddddddddd, and this is bbb"),
  ],
)
def test_a_calibration_is_for_one_model_and_one_template(other, says):
  one = dataclasses.replace(MINE, **other)
  MINE.check(MINE.fingerprint, MINE.preference, MINE.template)
  with pytest.raises(PreferenceError, match=says):
    MINE.check(one.fingerprint, one.preference, one.template)


def test_margins_are_probabilities_by_the_distance_from_the_offset():
  leads = np.array([[1.5, -0.25], [2.5, 1.75]])
  odds = np.exp([[0.0, 0.0], [2.0, 1.0]])
  good = odds / (1 + odds)
  np.testing.assert_allclose(MINE.margins(leads), good - (1 - good), atol=1e-12)
