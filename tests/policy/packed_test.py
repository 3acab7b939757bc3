"""Texts packed into rows against the same texts read whole, one by one."""

import dataclasses

import numpy as np
import pytest

from rain_jax import types
from rain_jax.models import NO_POSITION
from rain_jax.policy import packed
from tests.helpers.tiny_lm import make, padded_reader

TEXTS = [[50, 51], [60], [70, 71, 72, 73, 74, 75, 76], [80, 81, 82], [90, 91, 92, 93, 94]]


def test_rows_hold_every_text_with_every_suffix_once():
  suffixes = [(40, 41, 42), (43, 44)]
  rows = list(packed.pack(TEXTS, suffixes, 48))
  assert [place for row in rows for place in row.texts] == list(range(len(TEXTS)))
  assert len(rows) < len(TEXTS)
  for row in rows:
    assert row.tokens.shape == (48,) and len(row.last) == len(rows[0].last)
    for number, place in enumerate(row.texts):
      for which, suffix in enumerate(suffixes):
        mine = (row.text == number) & (row.positions != NO_POSITION)
        mine &= (row.reading < 0) | (row.reading == which)
        assert row.tokens[mine].tolist() == [*TEXTS[place], *suffix]
        assert row.positions[mine].tolist() == list(range(mine.sum()))
        assert row.last[number, which] == np.flatnonzero(mine)[-1]


@pytest.mark.parametrize("control", [(), (70, 72, 81)])
def test_answers_are_those_of_whole_texts(bpe_tokenizer, control):
  lm, params = make(bpe_tokenizer, types.SearchConfig())
  preference = dataclasses.replace(lm.preference, control_ids=control, stand_in=45)
  lm = dataclasses.replace(lm, preference=preference)
  read = padded_reader(lm, params)
  seen = 0
  spoken = [preference.spoken(text) for text in TEXTS]
  for row in packed.pack(spoken, preference.suffix_ids, 40):
    margins, leads = packed.read(lm, params, *row[1:])
    for number, place in enumerate(row.texts):
      text = [45 if token in control else token for token in TEXTS[place]]
      for which, suffix in enumerate(preference.suffix_ids):
        logits = read([*preference.prefix_ids, *text, *suffix])[1][-1]
        good, bad = (
          logits[list(ids[which])].max() for ids in (preference.good_ids, preference.bad_ids)
        )
        assert leads[number, which] == pytest.approx(good - bad, abs=1e-4)
        total = np.exp(logits).sum()
        margin = (np.exp(good) - np.exp(bad)) / total
        assert margins[number, which] == pytest.approx(margin, abs=1e-5)
        seen += 1
  assert seen == 2 * len(TEXTS)
