"""Streams that run side by side."""

import threading
import time

import pytest

from rain_jax.parallel import workers


def test_all_that_the_streams_yield_comes_and_each_item_goes_to_one():
  items = workers.Shared(range(100))
  streams = [((worker, item) for item in items) for worker in range(4)]
  found = list(workers.merged(streams))
  assert sorted(item for _, item in found) == list(range(100))


def test_the_first_stream_runs_alone_until_it_yields():
  begun, ready = [], threading.Event()

  def stream(worker):
    begun.append(worker)
    assert worker == 0 or ready.is_set()
    time.sleep(0.05)
    ready.set()
    yield worker

  assert sorted(workers.merged([stream(worker) for worker in range(3)])) == [0, 1, 2]
  assert begun[0] == 0


def test_streams_run_at_the_same_time():
  meeting = threading.Barrier(3, timeout=20)

  def stream():
    yield "begun"
    meeting.wait()

  assert list(workers.merged([stream() for _ in range(3)])) == ["begun"] * 3


def test_an_error_of_one_comes_out_and_ends_the_others():
  before = threading.active_count()

  def endless():
    while True:
      time.sleep(0.001)
      yield 1

  def broken():
    yield 0
    raise ValueError("broken")

  with pytest.raises(ValueError, match="broken"):
    list(workers.merged([endless(), broken(), endless()]))
  assert threading.active_count() == before


def test_whoever_stops_reading_ends_them_all():
  taken = []

  def endless():
    while True:
      time.sleep(0.001)
      taken.append(1)
      yield 1

  found = workers.merged([endless(), endless()])
  next(found)
  found.close()
  count = len(taken)
  time.sleep(0.05)
  assert len(taken) == count
