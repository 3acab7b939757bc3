"""Text that grows, is taken back, is final: whoever follows the events holds the response."""

import types as pytypes

import pytest

from rain_jax.methods import SearchStep, events, recording
from tests.helpers.events import follow


def node(parent, text, finish="running"):
  return recording.Node(parent, 0, [], text, finish, 0)


def visit(leaf, rollout, verdict=-1.0, finish="running"):
  return recording.Frame(
    0, recording.SEARCH, visits=[recording.Visit(leaf, verdict, rollout, finish)]
  )


@pytest.fixture
def search():
  """Two children of the empty response; the second and its child are committed."""
  nodes = [node(-1, ""), node(0, "Bad"), node(0, "Go"), node(2, "od <b>day</b>")]

  def steps():
    yield [visit(0, "Bad idea,")]
    yield [visit(1, " luck.")]
    yield [recording.Frame(0, recording.SEARCH, grown=[0])]
    yield [visit(2, "od evening,")]
    yield [visit(3, ".", 1.0), recording.Frame(0, recording.COMMIT, node=2)]
    yield [recording.Frame(0, recording.COMMIT, node=3), recording.Frame(0, recording.END)]

  response = pytypes.SimpleNamespace(text="Good <b>day</b>")
  progress = [SearchStep(None, nodes, frames) for frames in steps()]
  progress[-1] = SearchStep(None, nodes, progress[-1].frames, response)
  return progress


def test_commits_add_up_to_the_response_and_rewinds_take_back_what_was_tried(search):
  told = []
  for event, final, trial in follow(events.events(search)):
    told.append((event.kind, event.text, final, trial))
  assert told == [
    ("try", "Bad idea,", "", "Bad idea,"),
    ("rewind", "idea,", "", "Bad "),
    ("try", "luck.", "", "Bad luck."),
    ("rewind", "Bad luck.", "", ""),
    ("try", "Good evening,", "", "Good evening,"),
    ("rewind", "evening,", "", "Good "),
    ("try", "<b>day</b>.", "", "Good <b>day</b>."),
    ("commit", "Go", "Go", "od <b>day</b>."),
    ("commit", "od <b>day</b>", "Good <b>day</b>", "."),
    ("rewind", ".", "Good <b>day</b>", ""),
    ("end", "Good <b>day</b>", "Good <b>day</b>", ""),
  ]


def test_an_event_says_that_the_response_ends_behind_it():
  nodes = [node(-1, ""), node(0, "Go."), node(1, "", "eos")]
  frames = [
    visit(1, ""),
    visit(1, ""),
    visit(2, "", 1.0, "eos"),
    recording.Frame(0, recording.COMMIT, node=1),
    recording.Frame(0, recording.COMMIT, node=2),
  ]
  told = [
    (e.kind, e.text, e.verdict, e.ends) for e in events.events([SearchStep(None, nodes, frames)])
  ]
  assert told == [
    ("try", "Go.", -1.0, False),
    ("try", "", -1.0, False),
    ("try", "", 1.0, True),
    ("commit", "Go.", None, False),
    ("commit", "", None, True),
  ]
