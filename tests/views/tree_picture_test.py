"""The picture of a search shows the tree that was recorded; hostile text stays text."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from rain_jax.methods import recording
from rain_jax.types import DataError
from rain_jax.views import tree_picture
from tests.helpers import browser, recordings

SVG = "{http://www.w3.org/2000/svg}"


def searched(texts):
  """Two token sets, the first with children; the second is committed after two visits."""
  made = lambda parent, depth, text, **more: recording.Node(
    parent, depth, [1], text, "running", 0, **more
  )
  nodes = [
    made(-1, 0, ""),
    made(0, 1, texts[0], died=2),
    made(0, 1, texts[1], committed=2),
    made(0, 1, "untried", died=2),
    made(1, 2, texts[2], died=2),
    made(4, 3, "deep", died=2),
  ]
  changed = [
    [0, 2.0, 2, 0.0, 0.0],
    [1, 1.0, 1, -1.0, 0.25],
    [2, 1.2, 1, 1.0, 0.5],
    [3, 0.0, 0, 0.0, 0.25],
    [4, 1.0, 1, -1.0, 1.0],
    [5, 1.0, 1, 0.0, 1.0],
  ]
  frames = [
    recording.Frame(
      0, recording.SEARCH, [recording.Visit(1, -1.0, "", "running")], changed=changed
    ),
    recording.Frame(1, recording.SEARCH, [recording.Visit(2, 1.0, "", "running")]),
    recording.Frame(1, recording.COMMIT, node=2, reason="trusted", changed=[[2, 9.0, 9, 1.0, 0.0]]),
  ]
  return recordings.made_recording(nodes, frames)


def boxes(svg):
  """Each box: classes of its frame and its mark, and what is written."""
  return [
    (
      *(r.get("class") for r in group.iter(f"{SVG}rect")),
      *(t.text for t in group.iter(f"{SVG}text")),
    )
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g")
  ]


def test_a_picture_shows_visited_token_sets_at_the_first_move():
  drawn = boxes(tree_picture.draw(searched(["bad one", "good one", "worse"]), depth=2))
  assert sorted(drawn) == sorted(
    [
      ("box committed", "mixed", "(the prompt)", "visits 2.0, value +0.00", None, "+1"),
      ("box dead", "bad", "bad one", "visits 1.0, value -1.00", "prior 0.25, iteration 1"),
      ("box dead", "bad", "worse", "visits 1.0, value -1.00", "prior 1.00", "+1"),
      ("box committed", "good", "good one", "visits 1.2, value +1.00", "prior 0.50, iteration 2"),
    ]
  )


def test_hostile_text_stays_text_and_no_box_covers_another():
  hostile = browser.HOSTILE
  for texts in zip(hostile, hostile[1:], hostile[2:]):
    svg = tree_picture.draw(searched(texts))
    assert not re.search(r"<(script|img)|href|onerror=[^&]*>", svg)
    assert len(boxes(svg)) == 5
    corners = re.findall(r'<rect class="box[^>]*x="(\d+)" y="([\d.]+)"', svg)
    assert len(set(corners)) == 5


def test_a_search_without_a_move_has_no_picture():
  with pytest.raises(DataError, match="made no move"):
    tree_picture.draw(recordings.made_recording([recording.Node(-1, 0, [], "", "running", 0)], []))
