"""Numbers per step, the heartbeat, and the profiler."""

import json
import logging
import resource

import jax.numpy as jnp
import pytest

from rain_jax.methods import BatchProgress
from rain_jax.methods.session import Response
from rain_jax.runs import metrics
from rain_jax.tasks import Record

NAME = {"task": "dialogue", "method": "rain"}


def response(tokens, forwarded, rewinds):
  counters = {"response_tokens": tokens, "tokens_forwarded": forwarded, "rewinds": rewinds}
  return Response(Record("a", "hi"), "", [], "eos", 1.0, counters)


def test_a_step_counts_what_ended_and_what_goes_on(caplog):
  now, lines = [100.0], []
  told = metrics.Progress(lines.append, NAME, total=5, done=1, clock=lambda: now[0])
  now[0] += 2.0
  with caplog.at_level(logging.INFO, "rain_jax"):
    told.step(BatchProgress(0, slots=3, busy=2, response_tokens=10, tokens_forwarded=40, rewinds=1))
    assert caplog.records == []  # too early for a heartbeat
    told.count(response(8, 100, 3))
    now[0] += metrics.HEARTBEAT
    told.step(BatchProgress(0, slots=3, busy=2, response_tokens=10, tokens_forwarded=40, rewinds=2))
  first, second = lines
  assert first["tokens"] == 10 and first["tokens_per_second"] == 5.0 and first["rewinds"] == 1
  assert (first["slots_busy"], first["slots"], first["answered"], first["of"]) == (2, 3, 1, 5)
  assert first["forwarded_per_second"] == 20.0
  assert second["tokens"] == 18 and second["rewinds"] == 5 and second["answered"] == 2
  assert second["tokens_per_second"] == pytest.approx(8 / metrics.HEARTBEAT, abs=1e-3)
  (line,) = (record.getMessage() for record in caplog.records)
  assert (
    line.startswith("dialogue rain: 2 of 5 answered") and "2 of 3 slots busy, 5 rewinds" in line
  )
  assert "1.1 tokens/s, 8 forwarded/s" in line  # 18 and 140 of 17 seconds, not of the last step


def test_workers_count_together():
  lines = []
  told = metrics.Progress(lines.append, NAME, total=5, done=0)
  for worker, tokens in ((0, 4), (1, 6), (0, 5)):
    told.step(BatchProgress(worker, 1, 1, response_tokens=tokens, tokens_forwarded=10, rewinds=2))
  assert [(line["tokens"], line["slots"], line["rewinds"]) for line in lines] == [
    (4, 1, 2),
    (10, 2, 4),
    (11, 2, 4),
  ]


def test_a_method_without_a_search_has_no_slots():
  lines = []
  told = metrics.Progress(lines.append, NAME, total=2, done=0)
  told.count(response(8, 100, 0))
  told.step(None)
  assert lines[0]["tokens"] == 8 and "slots" not in lines[0]
  assert "slots" not in metrics.heartbeat(lines[0])


def test_samples_are_told_while_nothing_is_answered_yet():
  lines = []
  told = metrics.Progress(lines.append, NAME, total=16, done=0, clock=iter(range(9)).__next__)
  for tokens, samples in ((90, 256), (80, 512)):  # the best so far may be a shorter one
    told.step(BatchProgress(0, 16, 16, tokens, 100 * samples, 0, samples, samples_wanted=640))
  assert [line["tokens_per_second"] for line in lines] == [90.0, 0.0]
  assert "0 of 16 answered, 512 of 640 samples, 0.0 tokens/s" in metrics.heartbeat(lines[1])
  told.count(response(80, 70_000, 0))
  told.step(BatchProgress(0, 16, 0, 0, 0, 0))
  assert lines[2]["tokens"] == 80 and "samples" not in lines[2]


def test_metrics_are_lines_of_json_added_to_what_is_there(tmp_path):
  for process, processes, name in ((0, 1, "metrics.jsonl"), (2, 4, "metrics-2.jsonl")):
    for step in range(2):
      written = metrics.Metrics(str(tmp_path), process, processes)
      written.write({"step": step})
      assert json.loads((tmp_path / name).read_text().splitlines()[-1]) == {"step": step}
      written.close()
    assert len((tmp_path / name).read_text().splitlines()) == 2


def test_metrics_that_cannot_be_written_are_one_warning(tmp_path, caplog):
  """The limit on a file's size stands in for the disk's: a part is taken, then no more."""
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 0}\n{"st')  # as a killed run leaves it
  written = metrics.Metrics(str(tmp_path))
  written.write({"step": 1})
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, before[1]))
  try:
    for step in (2, 3):
      written.write({"step": step})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  written.write({"step": 4})
  written.close()
  assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
  nowhere = metrics.Metrics(str(tmp_path / "nowhere"))
  nowhere.write({"step": 0})
  nowhere.close()
  warned = [record.getMessage() for record in caplog.records]
  assert len(warned) == 2 and all("the run goes on without metrics" in line for line in warned)
  assert str(path) in warned[0] and "nowhere" in warned[1]


def test_the_profiler_traces_a_few_steps_behind_the_first(tmp_path):
  profiler = metrics.Profiler(str(tmp_path / "trace"))
  profiler.step()
  assert not (tmp_path / "trace").exists()
  for _ in range(6):
    jnp.ones(8).sum().block_until_ready()
    profiler.step()
  profiler.close()
  assert list((tmp_path / "trace").rglob("*.xplane.pb"))
  nothing = metrics.Profiler(None)
  for _ in range(6):
    nothing.step()
  nothing.close()
