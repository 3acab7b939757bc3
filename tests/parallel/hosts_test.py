"""Runs of several processes: one model for all or one for each, killed and taken up again."""

import os
import random
import signal
import socket
import time

import numpy as np
import pytest

from rain_jax.parallel import hosts
from rain_jax.runs import directory
from tests.helpers import scripts, small_runs

METHODS = ("vanilla", "rain")
PROMPTS = [f"the cat number {i} sat on a mat; and then" for i in range(12)]
KILLS = 10
LONGEST = 3600  # seconds for a process that answers many prompts


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
  path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
  path.write_text("\n".join(PROMPTS) + "\n", "utf-8")
  return path


@pytest.fixture(scope="module")
def alone(checkpoint, prompts, tmp_path_factory):
  """Runs one process to its end, once for each choice of methods: its results."""
  known = {}

  def results(methods, batch):
    if (methods, batch) not in known:
      workdir = tmp_path_factory.mktemp("alone")
      code, _, err = scripts.end(
        scripts.start("generate.py", *flags_of(checkpoint, prompts, workdir, methods, batch))
      )
      assert code == 0, err
      known[methods, batch] = small_runs.by_key(workdir)
    return known[methods, batch]

  return results


def flags_of(checkpoint, prompts, workdir, methods=METHODS, batch=4, **changes):
  changes = {"prompts.path": prompts, "methods": methods, "batch_size": batch} | changes
  return small_runs.flags_of(checkpoint, workdir, **changes)


def free_port():
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


def start(count, flags, together):
  """Starts the processes of a run."""
  port = free_port()
  joined = ["--distributed", f"--coordinator=127.0.0.1:{port}"] if together else []
  return [
    scripts.start(
      "generate.py",
      *flags,
      *joined,
      f"--processes={count}",
      f"--process={i}",
      f"--config.mesh.across_hosts={together}",
    )
    for i in range(count)
  ]


def end(processes):
  """Exit codes and errors of all."""
  ended = [scripts.end(process) for process in processes]
  return [code for code, _, _ in ended], "\n".join(err for _, _, err in ended)


def answers(results):
  """What was answered: the work may be counted otherwise elsewhere."""
  return {key: (r["response"], r["finish_reason"]) for key, r in results.items()}


def agreement(found, expected):
  found, expected = answers(found), answers(expected)
  assert found.keys() == expected.keys()
  return np.mean([found[key] == expected[key] for key in found])


def test_processes_share_out_the_prompts():
  ids = [str(i) for i in range(7)]
  shares = [hosts.Hosts(process, 3).mine(ids) for process in range(3)]
  assert sum(map(len, shares)) == 7 and frozenset.union(*shares) == frozenset(ids)
  assert hosts.Hosts().mine(ids) == frozenset(ids)
  np.testing.assert_array_equal(hosts.Hosts(1, 3).any([True, False]), [True, False])


def test_processes_that_do_not_know_each_other_share_no_model():
  mesh = {"data": -1, "tensor": 1, "across_hosts": True}
  with pytest.raises(hosts.HostsError, match="only with --distributed"):
    hosts.of_config(mesh, 0, 2, connected=False)
  assert not hosts.of_config(mesh, 0, 1, connected=False).together
  assert not hosts.of_config(mesh | {"across_hosts": False}, 0, 2, connected=False).together
  assert hosts.of_config(mesh, 1, 2, connected=True).together


def test_a_run_that_cannot_begin_says_so(tmp_path):
  for flags, says in (
    (["--processes=2"], "--process=None of --processes=2"),
    (["--processes=2", "--process=2"], "--process=2 of --processes=2"),
    (["--coordinator=127.0.0.1:1"], "--distributed, which is not set"),
    (["--distributed"], "jax.distributed"),
    (["--distributed", "--start_timeout=0"], "--start_timeout=0: expected seconds"),
  ):
    process = scripts.start(
      "generate.py", "--config=configs/demo.py", f"--workdir={tmp_path / 'run'}", *flags
    )
    code, out, err = scripts.end(process)
    assert code == 1 and says in err and "Traceback" not in err, err
    assert not (tmp_path / "run").exists()


def test_processes_that_start_without_the_others_end_with_a_code_that_is_retried(tmp_path):
  """The first waits for the second, the second for the first: neither comes."""
  begun = []
  for process in range(2):
    flags = ["--processes=2", f"--process={process}", "--start_timeout=5"]
    port = free_port()
    begun.append(
      scripts.start(
        "generate.py",
        "--config=configs/demo.py",
        f"--workdir={tmp_path / 'run'}",
        "--distributed",
        f"--coordinator=127.0.0.1:{port}",
        *flags,
      )
    )
  for process in begun:
    code, out, err = scripts.end(process)
    assert code == os.EX_TEMPFAIL and out == ""
    assert "not all processes started within 5 s; start all of them again" in err
    assert len(err.strip().splitlines()) == 1, err
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "environment,backend,used,says",
  [
    ({"SLURM_GPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "1"}, "gpu", 1, "1 of this node's 8"),
    ({"SLURM_GPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, "gpu", 1, "4 of this node"),
    ({"SLURM_GPUS_ON_NODE": "4"}, "gpu", 1, "1 of this node's 4 GPUs are used, 1 by this process"),
    ({"SLURM_GPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, "gpu", 1, ""),
    ({"SLURM_GPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "1"}, "gpu", 8, ""),
    ({"SLURM_GPUS_ON_NODE": "8"}, "cpu", 1, ""),
    ({}, "gpu", 1, ""),
  ],
)
def test_gpus_that_nobody_uses_are_told(environment, backend, used, says):
  told = hosts.idle_devices(environment, backend, used)
  assert (says in told) if says else told == ""
  assert not says or "--ntasks-per-node" in told


@pytest.mark.parametrize(
  "coordinator",
  ["host", "host:", ":80", "host:abc", "host:0", "host:99999", "host:-1", "1:2:\u0663"],
)
def test_a_coordinator_without_a_host_or_a_port_is_known_at_once(coordinator):
  with pytest.raises(hosts.HostsError, match="--coordinator=.*expected HOST:PORT") as error:
    hosts.connect(coordinator, 2, 0, 1)
  assert not isinstance(error.value, hosts.StartError)  # which is tried again for ever


def test_an_environment_that_jax_cannot_read_is_one_line(monkeypatch):
  def initialize(*args, **kwargs):
    raise KeyError("SLURM_STEP_NODELIST")

  monkeypatch.setattr(hosts.jax.distributed, "initialize", initialize)
  with pytest.raises(hosts.HostsError, match="'SLURM_STEP_NODELIST'; start all processes"):
    hosts.connect()


@pytest.mark.parametrize(
  "visible,processes,mesh,coordinator,taken",
  [
    ("0,1,2,3", 4, {}, None, "2"),
    ("GPU-a,GPU-b,GPU-c,GPU-d", 4, {"data": 1}, None, "2"),
    ("0,1,2,3,4,5,6,7", 4, {}, None, None),  # other machines, or more than one each
    ("3", 4, {}, None, None),  # a launcher gave each its own
    ("", 4, {}, None, None),
    ("0,1,2,3", 4, {"tensor": 2}, None, None),
    ("0,1,2,3", 4, {"data": 2}, None, None),
    ("0", 1, {}, None, None),
    ("0,1,2,3", 4, {"tensor": 4}, "127.0.0.1:1234", "2"),
    ("0,1,2,3", 4, {"tensor": 4, "across_hosts": False}, "127.0.0.1:1234", None),
    ("0,1,2,3", 4, {"across_hosts": False}, "localhost:1234", "2"),
    ("0,1,2,3", 4, {}, "node-7:1234", None),
  ],
)
def test_a_process_takes_its_own_gpu_where_there_are_as_many(
  monkeypatch, visible, processes, mesh, coordinator, taken
):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
  said = []
  monkeypatch.setattr(hosts.jax.config, "update", lambda *change: said.append(change))
  process = 2 if processes > 1 else 0
  mesh = {"data": -1, "tensor": 1, "across_hosts": True} | mesh
  hosts.take_device(process, processes, mesh, coordinator)
  assert said == ([("jax_cuda_visible_devices", taken)] if taken else [])


@pytest.mark.parametrize("together", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_processes_give_the_results_of_one(checkpoint, prompts, alone, tmp_path, together):
  """Killed after the first batch, and taken up by one process more; sampling alone."""
  methods = ("vanilla",)
  flags = flags_of(checkpoint, prompts, tmp_path, methods)
  processes = start(2, flags, together)
  while len(directory.read_results(str(tmp_path))) < 2:
    assert processes[0].poll() is None, end(processes)
    time.sleep(0.01)
  for process in processes:
    process.kill()
  end(processes)
  some = small_runs.by_key(tmp_path)
  assert 2 <= len(some) <= len(PROMPTS)
  codes, err = end(start(2 if together else 3, flags, together))
  assert set(codes) == {0}, err
  assert agreement(small_runs.by_key(tmp_path), alone(methods, 4)) == 1
  assert (tmp_path / directory.SUMMARY).exists() and not (tmp_path / directory.RESULTS).exists()
  assert (tmp_path / "report.html").exists()  # whichever was the last


@pytest.mark.slow
@pytest.mark.parametrize("count,tensor", [(2, 1), (2, 2), (4, 1), (4, 2)])
def test_one_model_over_processes_gives_the_results_of_one(
  checkpoint, prompts, alone, tmp_path, count, tensor
):
  flags = flags_of(checkpoint, prompts, tmp_path, **{"mesh.tensor": tensor})
  processes = start(count, flags, together=True)
  scripts.wait_for(tmp_path, processes[0], "vanilla", 1, "results-0.jsonl")
  processes[-1].send_signal(signal.SIGTERM)  # one is told, all leave
  codes, err = end(processes)
  assert set(codes) == {os.EX_TEMPFAIL}, err
  codes, err = end(start(count, flags, together=True))
  assert set(codes) == {0}, err
  assert agreement(small_runs.by_key(tmp_path), alone(METHODS, 4)) >= (0.99 if tensor > 1 else 1)


@pytest.fixture(scope="module")
def long(checkpoint, tmp_path_factory):
  """A file of many prompts, and its results of one process."""
  folder = tmp_path_factory.mktemp("long")
  path, workdir = folder / "prompts.txt", folder / "run"
  many = [f"the cat number {i} sat on a mat; and then\n" for i in range(300)]
  path.write_text("".join(many), "utf-8")
  code, _, err = scripts.end(
    scripts.start("generate.py", *flags_of(checkpoint, path, workdir)), LONGEST
  )
  assert code == 0, err
  return path, small_runs.by_key(workdir)


def seconds_until_a_result(count, flags, together, workdir):
  """Starts the processes, and tells them to stop after their first result."""
  before, begun = len(small_runs.by_key(workdir)), time.monotonic()
  processes = start(count, flags, together)
  while len(directory.read_results(str(workdir))) == before:
    assert processes[0].poll() is None, end(processes)
    time.sleep(0.05)
  seconds = time.monotonic() - begun
  for process in processes:
    process.terminate()
  end(processes)
  return seconds


@pytest.mark.slow
@pytest.mark.parametrize("count,together", [(2, False), (4, False), (2, True)])
def test_ten_kills_in_a_row_lose_and_double_nothing(checkpoint, long, tmp_path, count, together):
  """At any moment, while the processes load and compile, too; and each hits one that is at work."""
  rng = random.Random(count)
  path, expected = long
  flags = flags_of(checkpoint, path, tmp_path)
  # The second start finds its programs compiled, as most of those that are killed do.
  start_up = [seconds_until_a_result(count, flags, together, tmp_path) for _ in range(2)][1]
  latest = 1.5 * start_up  # ten rounds do not see the end of the work
  kills = 0
  for _ in range(KILLS):
    processes = start(count, flags, together)
    time.sleep(rng.uniform(0, latest))
    victim = rng.choice(processes)
    victim.kill()
    kills += victim.wait() == -signal.SIGKILL  # otherwise it had ended before
    for process in processes:
      if together:  # what is left waits for the one that is gone; a launcher ends it
        process.kill()
      else:  # what is left knows nothing of it, and would do all its work
        process.terminate()
    end(processes)
    done = small_runs.by_key(tmp_path)  # none twice
    print(f"kill {kills}: {len(done)} of {len(expected)} results")
  assert kills == KILLS and len(done) < len(expected)
  processes = start(count, flags, together)
  ended = [scripts.end(process, LONGEST) for process in processes]
  assert {code for code, _, _ in ended} == {0}, ended
  assert agreement(small_runs.by_key(tmp_path), expected) == 1
