"""Recordings of the adaptive mode: the same responses, with every draft, search and rewind."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rain_jax import decode
from rain_jax.methods import SearchStep, events, recording, recording_drafts
from rain_jax.types import DataError
from rain_jax.views import tree_page, tree_picture
from tests.helpers import scripted, scripted_drafts
from tests.helpers.events import follow
from tests.helpers.recordings import made_recording, spell

MODEL, CONFIG = scripted_drafts.MODEL, scripted_drafts.MODEL.config
BATCH = 24
PROMPTS = scripted.make_prompts(BATCH, seed=7, shortest=10, longest=MODEL.longest)


@pytest.fixture(scope="module")
def recorded():
  """Every slot's recorder, its steps' frames, and the state at the end."""
  params = jax.tree.map(jnp.asarray, scripted_drafts.make_tables())
  state = decode.init(BATCH, MODEL.init(BATCH), CONFIG, MODEL.embedding_size, MODEL.longest)
  keys = {slot: jax.random.key(slot) for slot in range(BATCH)}
  state = decode.begin(state, keys, CONFIG)
  state = state.replace(model=MODEL.start(state.model, dict(enumerate(PROMPTS))))
  whole = lambda ids: spell((), ids)
  recorders = {s: recording_drafts.Recorder(CONFIG, spell, whole) for s in range(BATCH)}
  following, steps = dict(recorders), {slot: [] for slot in recorders}
  while following:
    state, frames = recording_drafts.advance(state, MODEL, params, CONFIG, following)
    for slot, new in frames.items():
      steps[slot].append(new)
      if not state.active[slot]:
        del following[slot]
  return recorders, steps, state, params


def test_the_record_agrees_with_the_response_and_its_counters(recorded):
  recorders, _, state, params = recorded
  start = lambda state, new: state.replace(model=MODEL.start(state.model, new))
  empty = decode.init(BATCH, MODEL.init(BATCH), CONFIG, MODEL.embedding_size, MODEL.longest)
  queue = [(slot, jax.random.key(slot), PROMPTS[slot]) for slot in range(BATCH)]
  for result, _ in decode.serve(empty, MODEL, params, CONFIG, queue, start):
    slot = result.index
    assert {k: int(v[slot]) for k, v in vars(state.counters).items()} == result.counters
    frames = recorders[slot].frames
    of = lambda kind, frames=frames: [frame for frame in frames if frame.kind == kind]
    assert len(of(recording.DRAFT)) * CONFIG.root_rows == result.counters["drafts"]
    assert len(of(recording.REWIND)) == result.counters["taken_back"]
    assert len(of(recording.COMMIT)) == result.counters["moves"]
    searched = [frame for frame in of(recording.COMMIT) if frame.reason != "draft"]
    assert len(searched) == result.counters["searched_moves"]
    assert sum(len(f.visits) for f in of(recording.SEARCH)) == result.counters["iterations"]
    ends = [frame.node for frame in frames if frame.node is not None]
    assert recorders[slot].tokens(ends[-1]) == result.tokens if ends else not result.tokens
    for node, one in enumerate(recorders[slot].nodes):
      final = ends and node in recording.path(recorders[slot].nodes, ends[-1])
      assert final == (one.committed is not None and one.died is None) or not node
  kinds = {f.kind for one in recorders.values() for f in one.frames}
  assert kinds >= {"draft", "search", "commit", "rewind"}


def test_events_show_drafts_and_rewinds_and_end_in_the_response(recorded):
  recorders, steps, state, _ = recorded
  rewound = 0
  for slot, recorder in recorders.items():
    length = int(state.response_length[slot])
    response = type("Response", (), {})()
    response.text = spell((), np.asarray(state.response[slot, :length]).tolist())
    told = [SearchStep(None, recorder.nodes, frames, None, True) for frames in steps[slot]]
    told[-1] = SearchStep(None, recorder.nodes, steps[slot][-1], response, True)
    *_, (event, final, trial) = follow(events.events(told))
    assert (event.kind, final, trial) == (events.END, response.text, "")
    rewound += sum(event.kind == events.REWIND for event, *_ in follow(events.events(told)))
  assert rewound > sum(np.asarray(state.counters.taken_back)) > 3


def test_pages_hold_what_was_recorded(recorded):
  recorders, _, state, _ = recorded
  slot = int(np.argmax(np.asarray(state.counters.taken_back)))
  whole = made_recording(recorders[slot].nodes, recorders[slot].frames)
  assert recording.Recording.from_json(json.loads(json.dumps(whole.as_json()))) == whole
  assert json.loads(json.dumps(whole.as_json(), allow_nan=False))
  assert '"rewind"' in tree_page.render(whole) and '"draft"' in tree_page.render(whole)
  for frame in range(len(whole.frames)):
    whole.numbers(frame)
  with pytest.raises(DataError, match="record the method rain"):
    tree_picture.draw(whole)
