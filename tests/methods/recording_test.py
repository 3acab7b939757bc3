"""Recorded searches: the same search, with nothing lost that was discarded or renumbered."""

import collections
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rain_jax import types
from rain_jax.methods import recording
from tests.helpers import scripted, serving
from tests.helpers.recordings import record, spell
from tests.helpers.serving import BATCH, CONFIG


def of(recorder):
  return recording.Recording("", "", "", None, "", {}, {}, recorder.nodes, recorder.frames)


@pytest.fixture(scope="module")
def params():
  return jax.tree.map(jnp.asarray, scripted.make_tables())


@pytest.fixture(scope="module")
def recorded(params):
  """Four styles at a time, eight prompts in all, with the final states."""
  found = []
  for first in (0, 4):
    prompts = {slot: serving.PROMPTS[first + slot] for slot in range(BATCH)}
    found.append((prompts, *record(params, prompts)))
  return found


def test_a_recorded_search_is_the_search(params, recorded):
  for prompts, recorders, _, state in recorded:
    plain, _ = serving.serve(params, range(BATCH), prompts=prompts)
    for result, held in plain:
      slot = result.index
      length = int(state.response_length[slot])
      assert state.response[slot, :length].tolist() == result.tokens
      assert {k: int(v[slot]) for k, v in vars(state.counters).items()} == result.counters
      for name in ("visit_weight", "visits", "value", "prior", "parent", "alive"):
        np.testing.assert_array_equal(getattr(state.tree, name)[slot], getattr(held.tree, name))


def test_the_record_agrees_with_the_counters(recorded):
  for _, recorders, _, state in recorded:
    for slot, recorder in recorders.items():
      counters = {k: int(v[slot]) for k, v in vars(state.counters).items()}
      frames = recorder.frames
      commits = [f for f in frames if f.kind == recording.COMMIT]
      assert sum(len(f.visits) for f in frames) == counters["iterations"]
      assert sum(len(f.grown) for f in frames) == counters["grows"]
      assert sum(len(f.similar) for f in frames) == counters["similarity_updates"]
      assert sum(f.rewound is not None for f in frames) == counters["rewinds"]
      assert len(commits) == counters["moves"]
      made = [t for f in commits for t in recorder.nodes[f.node].tokens]
      length = int(state.response_length[slot])
      assert made == state.response[slot, :length].tolist()
      assert (frames[-1].kind == recording.END) == (int(state.finish[slot]) == types.EXHAUSTED)
      assert {f.reason for f in commits} <= {"trusted", "limit"}
      assert all(f.step <= g.step for f, g in zip(frames, frames[1:]))
  every = [f for _, recorders, _, _ in recorded for r in recorders.values() for f in r.frames]
  assert any(f.similar for f in every) and any(f.grown for f in every)
  assert {f.reason for f in every if f.kind == recording.COMMIT} == {"trusted", "limit"}


def test_the_record_replays_to_the_tree_after_every_step(recorded):
  for _, recorders, after, _ in recorded:
    for slot, recorder in recorders.items():
      replayed = of(recorder)
      for place, summary in after[slot][::7] + after[slot][-1:]:
        numbers = replayed.numbers(place)
        assert len(numbers) == len(summary)
        # The same nodes, told apart by the tokens on their paths.
        root = next(r for r in summary if r["parent"] < 0)
        top = next(node for node in numbers if replayed.nodes[node].parent not in numbers)
        ours = {tuple(recorder.tokens(n)[len(recorder.tokens(top)) :]): n for n in numbers}
        path = {root["id"]: ()}
        for line in summary:
          if line is not root:
            path[line["id"]] = path[line["parent"]] + tuple(line["tokens"])
          node = ours[path[line["id"]]]
          assert numbers[node] == (
            line["visit_weight"],
            line["visits"],
            line["value"],
            line["prior"],
          )
          assert replayed.nodes[node].depth == line["depth"]
          assert replayed.nodes[node].finish == line["finish"]


def test_what_is_discarded_stays_on_record(recorded):
  discarded = 0
  for _, recorders, _, _ in recorded:
    for recorder in recorders.values():
      for place, node in enumerate(recorder.nodes):
        assert node.parent < place
        assert node.died is None or node.committed is None
        if node.parent >= 0:
          parent = recorder.nodes[node.parent]
          assert node.born >= parent.born and node.depth == parent.depth + 1
          assert parent.died is None or (node.died is not None and node.died <= parent.died)
        discarded += node.died is not None
        if node.died is not None:
          frame = recorder.frames[node.died]
          assert frame.kind == recording.COMMIT and frame.node not in recording.path(
            recorder.nodes, place
          )
      for frame in recorder.frames:
        for visit in frame.visits:
          depth = recorder.nodes[visit.node].depth
          assert visit.rollout.endswith(f"<{depth}>")
          ends = visit.finish != "running"
          assert ends == (visit.response is not None)
          if ends:
            assert visit.response == spell((), recorder.tokens(visit.node)) + visit.rollout
  assert discarded > 100


def test_a_recording_survives_json(recorded):
  whole = of(recorded[0][1][0])
  again = recording.Recording.from_json(json.loads(json.dumps(whole.as_json())))
  assert again == whole
  with pytest.raises((KeyError, TypeError)):
    recording.Recording.from_json({"nodes": []})


def test_several_leaves_and_moves_on_inherited_trust_are_told_apart(params):
  config = dataclasses.replace(CONFIG, leaves=2, early_commit=True, max_nodes=24, max_visited=8)
  recorders, after, state = record(params, dict(enumerate(serving.PROMPTS[:BATCH])), config)
  reasons = collections.Counter()
  for slot, recorder in recorders.items():
    counters = {k: int(v[slot]) for k, v in vars(state.counters).items()}
    commits = [f for f in recorder.frames if f.kind == recording.COMMIT]
    reasons.update(f.reason for f in commits)
    assert sum(len(f.visits) for f in recorder.frames) == counters["iterations"]
    assert max(len(f.visits) for f in recorder.frames) <= 2
    assert sum(f.reason == "inherited" for f in commits) == counters["inherited_commits"]
    assert len(commits) == counters["moves"]
    made = [t for f in commits for t in recorder.nodes[f.node].tokens]
    assert made == state.response[slot, : int(state.response_length[slot])].tolist()
    replayed = of(recorder)
    for place, summary in after[slot]:
      assert sorted(replayed.numbers(place).values()) == sorted(
        (line["visit_weight"], line["visits"], line["value"], line["prior"]) for line in summary
      )
  assert reasons["room"] > 0
