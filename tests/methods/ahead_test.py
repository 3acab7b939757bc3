"""Programs that are compiled side by side are those that are called, and nothing of it is lost."""

import collections
import concurrent.futures
import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rain_jax import api
from rain_jax.methods import METHODS, ahead
from rain_jax.methods.segments import without_tree
from rain_jax.models import loading
from rain_jax.runs import directory, job, task
from tests.helpers.repository import ROOT
from tests.helpers.small_runs import API_CONFIG, CONFIG

PROGRAMS = ("sample", "review", "self_evaluate", "begin_prompts", "advance")


@pytest.fixture
def compiled():
  """How often each program is compiled from here on, or found in the compilation cache."""
  counts = collections.Counter()

  def hear(event, seconds, fun_name="", **_):
    if event == "/jax/core/compile/backend_compile_duration":
      counts[fun_name.removeprefix("jit(").removesuffix(")")] += 1

  jax.monitoring.register_event_duration_secs_listener(hear)
  yield counts
  jax.monitoring.unregister_event_duration_listener(hear)


@pytest.fixture(autouse=True)
def record(monkeypatch, tmp_path):
  """The record of seconds, apart from the one beside the tests' compiled programs."""
  path = tmp_path / "seconds.json"
  monkeypatch.setattr(ahead, "_record_path", lambda: path)
  return path


@pytest.mark.parametrize(
  "method, length, programs",  # of lengths that no other test has compiled programs for
  [
    ("vanilla", 9, {"sample", "review"}),
    pytest.param("best_of_n", 10, {"sample", "self_evaluate", "review"}, marks=pytest.mark.slow),
    ("segments", 11, {"begin_prompts", "advance", "review"}),
  ],
)
def test_what_a_method_calls_was_compiled_before(checkpoint, compiled, method, length, programs):
  config = dataclasses.replace(API_CONFIG, max_response=length)
  session = api.Rain(loading.load(str(checkpoint))).session(["the cat"], "harmless", config)
  options = {"samples": 2} if method == "best_of_n" else {}
  given = METHODS[method].programs(session, options)
  compiling = ahead.Ahead(given)
  for one in given:
    compiling.wait(one.name)
  compiling.close()
  assert {name: compiled[name] for name in PROGRAMS if compiled[name]} == dict.fromkeys(programs, 1)
  compiled.clear()
  assert len(list(METHODS[method].run(session, 0, **options))) == 1
  assert not any(compiled[name] for name in PROGRAMS)


def test_methods_that_do_not_search_share_the_programs_of_those_that_do(checkpoint):
  session = api.Rain(loading.load(str(checkpoint))).session(["the cat"], "harmless", API_CONFIG)
  other = session.searching(without_tree(session.config.search))
  assert other.lm != session.lm
  assert other.lm.without_search == session.lm.without_search
  names = {
    method: [one.name for one in METHODS[method].programs(session, {})]
    for method in ("vanilla", "segments", "rain")
  }
  assert len(set(names["vanilla"]) & set(names["segments"]) & set(names["rain"])) == 1
  assert len(set(names["segments"]) & set(names["rain"])) == 1


def test_an_error_is_raised_where_its_program_is_waited_for():
  def lower():
    raise ValueError("no such program")

  whole = ahead.Program("whole", lambda: jax.jit(jnp.sin).lower(1.0))
  compiling = ahead.Ahead([ahead.Program("broken", lower), whole])
  compiling.wait("whole")
  compiling.wait("not given")
  with pytest.raises(ValueError, match="no such program"):
    compiling.wait("broken")
  compiling.close()


def test_one_program_at_a_time_is_lowered():
  busy, begun = threading.Lock(), []

  def program(number):
    def lower():
      assert busy.acquire(blocking=False), "another one is being lowered"
      begun.append(number)
      time.sleep(0.02)
      busy.release()
      return jax.jit(lambda x: x + 0.234 + number).lower(1.0)

    return ahead.Program(f"program {number}", lower)

  compiling = ahead.Ahead([program(number) for number in range(5)])
  for number in range(5):
    compiling.wait(f"program {number}")
  compiling.close()
  assert sorted(begun) == list(range(5))


def test_programs_of_the_next_task_come_after_those_of_this_one():
  asked, begun = threading.Event(), []

  def program(name):
    def lower():
      begun.append(name)
      assert not name.startswith("long") or asked.wait(60)
      return jax.jit(lambda x: x + 0.321).lower(1.0)

    return ahead.Program(name, lower)

  # More than there are threads; some are never begun.
  first = ahead.Ahead([program(f"long {number}") for number in range(ahead._THREADS + 1)])
  nothing_left = ahead.Ahead([], after=first)
  second = ahead.Ahead([program("next")], after=nothing_left)
  time.sleep(0.2)
  assert begun and "next" not in begun
  first.close()
  asked.set()
  second.wait("next")
  assert begun[-1] == "next" and "long 4" not in begun
  second.close()
  nothing_left.close()


def test_programs_of_the_next_task_are_not_begun_after_all_are_closed():
  asked, begun = threading.Event(), []

  def program(name):
    def lower():
      begun.append(name)
      assert asked.wait(60)
      return jax.jit(lambda x: x + 0.432).lower(1.0)

    return ahead.Program(name, lower)

  first = ahead.Ahead([program("first")], "a model")
  second = ahead.Ahead([program("second")], "a model", after=first)
  time.sleep(0.2)
  second.close()
  first.close()
  asked.set()
  done, running = concurrent.futures.wait(second.futures(), 60)
  assert len(done) == 2 and not running and begun == ["first"]


def test_all_tasks_keep_the_seconds_of_their_programs(record):
  lower = lambda number: jax.jit(lambda x: x + number).lower(1.0)
  program = lambda name, number: ahead.Program(name, lambda: lower(number))
  first = ahead.Ahead([program("one", 0.543)], "a model")
  second = ahead.Ahead([program("two", 0.654)], "a model", after=first)
  second.wait("two")
  assert set(json.loads(record.read_text("utf-8"))) == {"a model: one", "a model: two"}
  second.close()
  first.close()


def test_a_line_says_what_is_waited_for_and_how_long_it_took(monkeypatch, caplog, record):
  monkeypatch.setattr(ahead, "_PATIENCE", 0.0)

  def said(record_of):
    """What is logged while a program is compiled."""
    asked = threading.Event()

    def lower():
      asked.wait(60)
      return jax.jit(lambda x: x + 0.123).lower(1.0)

    caplog.clear()
    go_on = lambda: caplog.messages and asked.set()
    compiling = ahead.Ahead([ahead.Program("the search", lower)], record_of, "demo", go_on)
    with caplog.at_level(logging.INFO, "rain_jax"):
      compiling.wait("the search")
    compiling.close()
    return caplog.messages

  assert said("a model") == ["demo: compiling the search (no time known)"]
  record.write_text(record.read_text("utf-8").replace(": 0.", ": 40."), "utf-8")
  (line,) = said("a model")
  assert line.startswith("demo: compiling the search (4") and "last compiled" in line
  assert said("another") == ["demo: compiling the search (no time known)"]
  record.write_text("[1, 2", "utf-8")
  assert said("a model") == ["demo: compiling the search (no time known)"]


def test_a_stop_ends_the_wait_and_the_process(tmp_path):
  """Although the program goes on being compiled, for longer than the test waits."""
  code = f"""
import sys, time
sys.path.insert(0, "{ROOT}/scripts")
import cli
from absl import flags
from rain_jax.methods import ahead
from rain_jax.runs import directory

def main():
  def between():
    raise directory.Stopped
  compiling = ahead.Ahead([ahead.Program("long", lambda: time.sleep(600))], between=between)
  compiling.wait("long")

cli.run(main, resumes=True)
"""
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 75, done.stderr
  assert done.stderr == "stopped; the same command goes on from here\n"


def test_only_what_is_left_is_compiled_and_before_weights_are_read(
  checkpoint, compiled, tmp_path, monkeypatch
):
  happened = []

  class Spied(ahead.Ahead):
    def __init__(self, programs, *others):
      programs = list(programs)
      happened.append({program.name for program in programs})
      super().__init__(programs, *others)

  read = loading.load_model
  spy = lambda *args, **kwargs: happened.append("weights") or read(*args, **kwargs)
  monkeypatch.setattr(task, "Ahead", Spied)
  monkeypatch.setattr(loading, "load_model", spy)
  config = CONFIG | {"methods": ["vanilla"], "prompts": CONFIG["prompts"] | {"text": "the cat"}}
  config["model"] = config["model"] | {"path": str(checkpoint)}
  config["limits"] = config["limits"] | {"max_response": 13}  # of no other test here
  job.run(config, str(tmp_path / "run"), say=lambda _: None)
  assert happened == [{"sampling (1)", "the reading of responses"}, "weights"]
  assert {name: compiled[name] for name in PROGRAMS if compiled[name]} == {"sample": 1, "review": 1}
  happened.clear()
  job.run(config, str(tmp_path / "run"), say=lambda _: None)
  assert happened == [set(), "weights"]
  assert directory.read_results(tmp_path / "run")


def differing(checkpoint, mesh=None):
  """What of a session of an abstract model is not as its weights make it."""
  model, read = loading.begin(checkpoint, mesh_of=lambda config: mesh)
  session = api.Rain(model).session(["the cat"], "harmless", API_CONFIG)
  described = lambda leaf: (
    *(leaf.shape, leaf.dtype, jax.typeof(leaf).weak_type),
    *(leaf.sharding, getattr(leaf, "committed", True)),
  )
  pairs = zip(
    jax.tree.leaves_with_path(session.params),
    jax.tree.leaves_with_path(session.with_weights(read()).params),
    strict=True,
  )
  assert any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(session.params))
  return [
    (jax.tree_util.keystr(path), described(shape), described(leaf))
    for (path, shape), (_, leaf) in pairs
    if described(shape) != described(leaf)
  ]


def test_shapes_say_where_everything_will_be(checkpoint):
  assert not differing(str(checkpoint))


def test_shapes_say_where_everything_will_be_on_a_mesh(checkpoint):
  code = f"""
from rain_jax.models.sharding import make_mesh
from tests.methods.ahead_test import differing
print(differing("{checkpoint}", make_mesh(tensor=2)))
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    **dict(cwd=ROOT, capture_output=True, text=True, timeout=120),
    env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
  )
  assert done.stdout == "[]\n", done.stdout + done.stderr


def test_weights_that_cannot_be_read_end_a_run_that_compiles(checkpoint, tmp_path):
  """Although the programs go on being compiled, for longer than the test waits."""
  for file in checkpoint.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  damaged = tmp_path / "model.safetensors"
  damaged.write_bytes(damaged.read_bytes()[:-4] + np.float32(np.nan).tobytes())
  code = f"""
import sys, time
sys.path.insert(0, "{ROOT}/scripts")
import cli
from rain_jax.methods import ahead
ahead.Ahead._compile = lambda self, program: time.sleep(600)
from rain_jax.runs import job
from tests.helpers.small_runs import CONFIG
config = CONFIG | {{"prompts": CONFIG["prompts"] | {{"text": "the cat"}}}}
config["model"] = config["model"] | {{"path": "{tmp_path}"}}
cli.run(lambda: job.run(config, "{tmp_path}/run"), resumes=True)
"""
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 1, done.stderr
  assert done.stderr.startswith("error: tensor ") and "no finite numbers" in done.stderr
  assert done.stderr.count("\n") == 1
