"""Fitting a calibration: leads made of a known offset and scale, with and without labels."""

import numpy as np
import pytest

from rain_jax.methods import calibrate
from rain_jax.types import DataError


def made(offset, scale, count=4000, share=0.5, seed=0):
  """Leads of two normal groups whose log-odds of being good are scale * (lead - offset)."""
  rng = np.random.default_rng(seed)
  good = rng.random(count) < share
  apart, spread = 3.0, np.sqrt(3.0 / scale)  # (difference of means) / variance is the scale
  return offset + np.where(good, 0.5, -0.5) * apart + rng.normal(size=count) * spread, good


@pytest.mark.parametrize("offset, scale", [(1.6, 1.5), (-4.0, 0.8), (0.0, 3.0)])
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_labelled_fits_find_offset_and_scale_whatever_the_share_of_good(offset, scale, share):
  leads, good = made(offset, scale, share=share)
  (fit,) = calibrate.fit_labelled(leads[:, None], good)
  assert fit.offset == pytest.approx(offset, abs=0.15)
  assert fit.scale == pytest.approx(scale, rel=0.15)


def test_unlabelled_fits_find_where_good_and_bad_balance():
  first, good = made(1.6, 3.0)
  second = np.where(np.arange(len(good)) % 100 == 0, 1e4, -first)  # a few odd texts
  one, other = calibrate.fit_unlabelled(np.stack([first, second], axis=1))
  assert one.offset == pytest.approx(1.6, abs=0.2) and other.offset == pytest.approx(-1.6, abs=0.2)
  assert one.scale == other.scale == 1
  assert np.mean((first > one.offset) == good) > 0.9 > np.mean((first > 0) == good) + 0.1


def test_readings_are_fitted_apart_and_the_separable_stay_finite():
  good = np.arange(40) % 2 == 0
  leads = np.stack([np.where(good, 5.0, 1.0), np.where(good, -1.0, -2.0)], axis=1)
  first, second = calibrate.fit_labelled(leads, good)
  assert 1 < first.offset < 5 and -2 < second.offset < -1
  assert np.isfinite([*first, *second]).all()


def test_a_reading_that_tells_nothing_gets_probabilities_near_a_half():
  rng = np.random.default_rng(0)
  good = rng.random(200) < 0.5
  leads = np.where(good, -1.0, 1.0) + rng.normal(size=200)  # the wrong way round
  (fit,) = calibrate.fit_labelled(leads[:, None], good)
  assert fit.scale == 0.01 and abs(fit.offset) < 0.5


def test_too_little_to_fit_on():
  with pytest.raises(DataError, match="3 of 3 examples to fit on are good"):
    calibrate.fit_labelled(np.zeros((3, 1)), np.ones(3, bool))
  with pytest.raises(DataError, match="5 responses to fit on"):
    calibrate.fit_unlabelled(np.zeros((5, 2)))


def test_halves_hold_half_of_either_label():
  good = np.arange(30) < 10
  fitted = calibrate.halves(good, seed=3)
  assert fitted[good].sum() == 5 and fitted[~good].sum() == 10
  assert (calibrate.halves(good, seed=3) == fitted).all()
  assert (calibrate.halves(good, seed=4) != fitted).any()
