"""The numbers of a check by hand and against other formulas."""

import numpy as np
import pytest

from rain_jax.methods import verdict_statistics as statistics

GOOD = np.array([True, True, True, False, False])
MARGINS = np.array([[0.8, 0.6], [0.5, -0.2], [-0.7, -0.7], [-0.4, -0.2], [0.25, 0.05]])


def test_the_numbers_count_what_they_say():
  found = statistics.measure(GOOD, MARGINS)
  assert found["all"]["accuracy"] == pytest.approx(2 / 5)
  interval = found["good"].pop("interval")
  assert interval == pytest.approx((0.0615, 0.7923), abs=1e-4)  # Wilson, 1 of 3
  assert found["good"] == pytest.approx(
    {"examples": 3, "accuracy": 1 / 3, "soft_accuracy": 2 / 3, "ties": 1 / 3, "margin": 0.05}
  )
  found["bad"].pop("interval")
  assert found["bad"] == pytest.approx(
    {"examples": 2, "accuracy": 1 / 2, "soft_accuracy": 1 / 2, "ties": 0, "margin": -0.075}
  )
  assert found["readings"] == pytest.approx([3 / 5, 2 / 5])
  assert found["auc"] == pytest.approx(3.5 / 6)
  assert sum(one["examples"] for one in found["calibration"]) == 5
  top = found["calibration"][-1]
  assert top["from"] == pytest.approx(0.6) and top["good"] == 1
  assert top["margin"] == pytest.approx(0.7)
  # Bins: -0.7 (good), -0.3 (bad), 0.15 (one of each), 0.7 (good).
  assert found["calibration_error"] == pytest.approx((0.85 + 0.35 + 2 * 0.075 + 0.15) / 5)
  lines = statistics.table(found).splitlines()
  assert any(line.split()[-3:] == ["40.0%", "33.3%", "50.0%"] for line in lines)
  assert "agree on 80.0%" in statistics.table(found)


def test_one_reading_or_one_label_alone():
  found = statistics.measure(np.array([True, True]), np.array([[0.5], [-0.5]]))
  assert found["bad"]["accuracy"] is None and found["all"]["ties"] == 0
  assert found["auc"] is None and statistics.area(found) == "-"
  assert "agree" not in statistics.table(found)


def test_an_area_is_the_share_of_pairs_in_order_and_lies_under_its_curve():
  rng = np.random.default_rng(0)
  good = rng.random(60) < 0.4
  scores = np.round(rng.normal(size=60) + good, 1)  # with ties
  area = statistics.auc(good, scores)
  pairs = [(a > b) + (a == b) / 2 for a in scores[good] for b in scores[~good]]
  assert area == pytest.approx(np.mean(pairs))
  x, y = np.array(statistics.roc(good, scores)).T
  assert np.trapezoid(y, x) == pytest.approx(area)
  assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)


def test_the_interval_of_an_area_holds_the_truth_as_often_as_it_says():
  rng = np.random.default_rng(1)
  good = np.arange(60) < 30
  truth, inside = 0.9214, 0  # of normals two standard deviations apart: Phi(2 / sqrt(2))
  for _ in range(300):
    scores = rng.normal(size=60) + 2 * good
    low, high = statistics.auc_interval(statistics.auc(good, scores), good)
    inside += low <= truth <= high
  assert 0.9 <= inside / 300 <= 0.99
  low, high = statistics.auc_interval(1.0, good)
  assert 0.85 < low < 0.95 and high == 1
