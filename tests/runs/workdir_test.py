"""Working directories of hostile days: kills, second starts, pods with equal numbers, full disks.

What a start does is played by `work`: it opens the directory, answers what is missing of its share,
and ends. Whatever happens to it, after one undisturbed start every prompt is answered once.
`-m slow` repeats each situation 50 times, with other delays each time.
"""

import errno
import json
import os
import random
import resource
import shutil
import time

import pytest

from rain_jax.parallel.hosts import Hosts
from rain_jax.runs import directory, files, locks, results
from tests.helpers import processes
from tests.helpers.results import ids, line

MANIFEST = {"config": {"seed": 0}, "model": {"path": "demo"}, "prompts": {"dialogue": "x"}}
PROMPTS = [str(n) for n in range(12)]
REPEATS = [
  pytest.param(3, id="few"),
  pytest.param(50, id="many", marks=pytest.mark.slow),
]


def work(path, process=0, count=1, manifest=MANIFEST, pause=0.0, size=10):
  """One process of a start; a result takes `pause` seconds and about `size` bytes."""
  run = directory.Run.open(str(path), manifest, process, count)
  done = {one["id"] for one in run.results}
  for name in sorted(Hosts(process, count).mine(PROMPTS), key=int):
    if name not in done:
      time.sleep(pause)
      run.append(line(name, response="x" * size))
  run.close()


def all_once(path, manifest=MANIFEST):
  """After an undisturbed start, every prompt is answered once, by whole lines."""
  work(path, manifest=manifest)
  assert sorted(ids(path), key=int) == PROMPTS
  assert len(directory.read_results(str(path))) == len(PROMPTS)
  assert not list(path.rglob("*.part"))


def repeat(tmp_path, count):
  """So many empty folders, and a source of chance for each."""
  for number in range(count):
    path = tmp_path / str(number)
    yield path, random.Random(number)
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.parametrize("count", REPEATS)
def test_kills_at_any_moment_lose_and_double_nothing(tmp_path, count):
  """Starts of one and of several processes, each killed, one after the other."""
  killed = 0
  for path, rng in repeat(tmp_path, count):
    kept = []
    for many in (1, 3, 1):
      begun = [
        processes.fork(lambda i=i: work(path, i, many, pause=0.002, size=rng.choice((10, 9000))))
        for i in range(many)
      ]
      for pid in begun:
        processes.kill_after(pid, rng.uniform(0, 0.02))
      killed += sum(code < 0 for code in processes.wait(*begun))
      now = ids(path) if path.exists() else []
      assert set(kept) <= set(now) and len(now) == len(set(now))
      kept = now
    all_once(path)
  assert killed >= count  # some had ended before


@pytest.mark.parametrize("count", REPEATS)
@pytest.mark.parametrize("first,second", [(1, 1), (1, 2), (2, 3), (2, 2)])
def test_of_two_starts_one_goes_on_alone(tmp_path, monkeypatch, count, first, second):
  """At the same time, of equal and of different counts: a prompt is answered once."""
  monkeypatch.setattr(locks, "_CONVINCED", 0.06)  # less than a start takes here
  refused = 0
  # More often, and longer, where a busy machine keeps the starts apart.
  for number, (path, rng) in enumerate(repeat(tmp_path, 20 * count), 1):
    begun = []
    pause = 0.02 * (1 + number // count)
    for many in (first, second):
      begun += [
        processes.fork(lambda i=i, many=many: work(path, i, many, pause=pause)) for i in range(many)
      ]
      time.sleep(rng.uniform(0, 0.05))
    codes = processes.wait(*begun)
    assert set(codes) <= {0, processes.FAILED}
    refused += codes.count(processes.FAILED)
    assert min(max(codes[:first]), max(codes[first:])) == 0 or first == second
    now = ids(path)
    assert len(now) == len(set(now)), "a prompt is answered twice"
    all_once(path)
    if number >= count and refused:
      break
  assert refused  # or they were never there together


@pytest.mark.parametrize("count", REPEATS)
def test_two_starts_of_different_configurations_do_not_mix(tmp_path, count):
  other = MANIFEST | {"config": {"seed": 1}}
  for path, rng in repeat(tmp_path, count):
    begun = []
    for manifest in (MANIFEST, other):
      begun.append(processes.fork(lambda m=manifest: work(path, manifest=m, pause=0.01)))
      time.sleep(rng.uniform(0, 0.01))
    codes = processes.wait(*begun)
    assert sorted(codes) == [0, processes.FAILED]
    assert sorted(ids(path), key=int) == PROMPTS
    kept = json.loads((path / directory.MANIFEST).read_text())["config"]
    assert kept == (MANIFEST, other)[codes.index(0)]["config"]


@pytest.mark.parametrize("count", REPEATS)
def test_pods_whose_processes_have_equal_numbers_start_together(tmp_path, count):
  for path, rng in repeat(tmp_path, count):
    four = [
      processes.fork(lambda i=i: processes.as_process_one(lambda: work(path, i, 4)))
      for i in range(4)
    ]
    assert processes.wait(*four) == [0] * 4
    assert sorted(ids(path), key=int) == PROMPTS
    all_once(path)


@pytest.mark.parametrize("count", REPEATS)
def test_a_full_disk_loses_nothing_and_goes_on_when_there_is_room(tmp_path, count):
  """A file system of its own, filled in the middle; where that is not allowed, a limit of size."""

  def on_small_disk(folder, room):
    """In a process of its own, as its file system ends with it."""
    folder.mkdir()
    mounted = processes.small_disk(folder, 1 << 20)
    path = folder / "run"
    filler = folder / "filler"
    if mounted:
      filler.write_bytes(b"x" * ((1 << 20) - room))
    else:
      resource.setrlimit(resource.RLIMIT_FSIZE, (room // 4, resource.RLIM_INFINITY))
    with pytest.raises(directory.RunError, match="No space left|File too large"):
      work(path, size=room // 8)
    kept = ids(path) if path.exists() else []
    assert len(kept) < len(PROMPTS) and kept == PROMPTS[: len(kept)]
    if mounted:
      filler.unlink()
    else:
      resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert kept == (ids(path) if path.exists() else [])
    all_once(path)

  for path, rng in repeat(tmp_path, count):
    room = rng.randrange(1 << 12, 1 << 16)
    assert processes.wait(processes.fork(lambda: on_small_disk(path, room))) == [0]


def test_a_start_with_and_one_without_processes_do_not_share_a_directory(tmp_path):
  one = directory.Run.open(str(tmp_path), MANIFEST)
  for process in range(2):
    with pytest.raises(directory.RunError, match="another start, of 1 process, is at work there"):
      directory.Run.open(str(tmp_path), MANIFEST, process, 2)
  one.close()
  two = directory.Run.open(str(tmp_path), MANIFEST, 1, 2)
  with pytest.raises(directory.RunError, match="another start, of 2 processes.*choose another"):
    directory.Run.open(str(tmp_path), MANIFEST)
  with pytest.raises(directory.RunError, match="another start, of 2 processes"):
    directory.Run.open(str(tmp_path), MANIFEST, 0, 3)
  first = directory.Run.open(str(tmp_path), MANIFEST, 0, 2)  # the same run's
  for run in (first, two):
    run.close()


def test_a_start_that_fails_at_its_beginning_leaves_the_directory_to_others(tmp_path):
  def fail():
    raise directory.RunError("no")

  with pytest.raises(directory.RunError, match="no"):
    locks.enter(tmp_path, 1, fail)
  locks.enter(tmp_path, 4, lambda: None).close()


def test_results_without_a_manifest_are_not_adopted(tmp_path):
  work(tmp_path)
  kept = (tmp_path / directory.MANIFEST).read_text()
  (tmp_path / directory.MANIFEST).unlink()
  for other in (MANIFEST, MANIFEST | {"config": {"seed": 1}}):
    with pytest.raises(directory.RunError, match="results.jsonl without manifest.json.*put that"):
      directory.Run.open(str(tmp_path), other)
  assert not (tmp_path / directory.MANIFEST).exists()
  (tmp_path / directory.MANIFEST).write_text(kept)
  all_once(tmp_path)
  judged = tmp_path / "judged"
  judged.mkdir()
  (judged / "judged.jsonl").write_text('{"id": "a"}\n')
  with pytest.raises(directory.RunError, match="judged.jsonl without manifest.json"):
    directory.Run.open(str(judged), MANIFEST)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"config": 3}', "\0\0\0"])
def test_a_damaged_manifest_is_to_be_put_back(tmp_path, text):
  work(tmp_path)
  (tmp_path / directory.MANIFEST).write_text(text)
  for read in (
    lambda: directory.Run.open(str(tmp_path), MANIFEST),
    lambda: directory.read_manifest(str(tmp_path)),
    lambda: directory.read_results(str(tmp_path)),
  ):
    with pytest.raises(directory.RunError, match="manifest.json: .*put a whole copy") as error:
      read()
    assert "remove" not in str(error.value) and "\n" not in str(error.value)


def other_manifest(path, other):
  shutil.copy(other / directory.MANIFEST, path)


def other_results(path, other):
  shutil.copy(other / directory.RESULTS, path)


def other_results_and_origin(path, other):
  other_results(path, other)
  shutil.copy(other / "results.origin", path)


def more_results(path, other):
  shutil.copy(other / directory.RESULTS, path / "results-1.jsonl")


def no_origin(path, other):
  (path / "results.origin").unlink()


def damaged_origin(path, other):
  (path / "results.origin").write_bytes(b"\xff\xff")


@pytest.mark.parametrize(
  "change",
  [
    other_manifest,
    other_results,
    other_results_and_origin,
    more_results,
    no_origin,
    damaged_origin,
  ],
)
def test_files_of_another_run_are_refused_by_starts_and_readers(tmp_path, change):
  path, other = tmp_path / "run", tmp_path / "other"
  work(path)
  work(other, manifest=MANIFEST | {"config": {"seed": 1}}, size=11)
  change(path, other)
  for read in (
    lambda: directory.Run.open(
      str(path), json.loads((path / directory.MANIFEST).read_text()) | {"started": ""}
    ),
    lambda: directory.read_results(str(path)),
  ):
    with pytest.raises(
      directory.RunError, match="put .*back, or choose another --workdir"
    ) as error:
      read()
    assert "\n" not in str(error.value)


def test_lines_may_be_removed_and_files_moved_together(tmp_path):
  path = tmp_path / "run"
  work(path)
  rows = (path / directory.RESULTS).read_text().splitlines(keepends=True)
  for left in (rows[1:], rows[:-1], rows[5:6], rows[::2]):
    (path / directory.RESULTS).write_text("".join(left))
    all_once(path)
  shutil.copytree(path, tmp_path / "copy")
  all_once(tmp_path / "copy")
  manifest = path / directory.MANIFEST
  manifest.write_text(json.dumps(json.loads(manifest.read_text())))  # laid out anew
  all_once(path)


def test_a_directory_in_which_answers_are_there_twice_counts_each_once(tmp_path, caplog):
  """As earlier versions could leave it behind."""
  (tmp_path / directory.MANIFEST).write_text(json.dumps(MANIFEST))
  for name in ("results.jsonl", "results-0.jsonl"):
    rows = [json.dumps(line(n, response=name)) for n in (1, 2)]
    (tmp_path / name).write_text("".join(row + "\n" for row in rows))
  found = directory.read_results(str(tmp_path))
  assert [(r["id"], r["response"]) for r in found] == [
    ("1", "results.jsonl"),
    ("2", "results.jsonl"),
  ]
  assert "2 responses are there again; the first of each counts" in caplog.text
  run = directory.Run.open(str(tmp_path), MANIFEST)
  assert len(run.results) == 2
  run.close()


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
  work(tmp_path)
  path = tmp_path / directory.RESULTS
  whole = path.read_bytes()
  path.write_bytes(whole[:-1])
  assert len(directory.read_results(str(tmp_path))) == len(PROMPTS)
  directory.Run.open(str(tmp_path), MANIFEST).close()
  assert path.read_bytes() == whole
  for zeros in (b"\0\0\0\0", b'{"id": "\0\0\0'):  # as a crash of the machine may leave them
    path.write_bytes(whole + zeros)
    directory.Run.open(str(tmp_path), MANIFEST).close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
  "row,says",
  [
    ("{}", "id=None, expected text"),
    ("null", "'None' is not a JSON object"),
    ("17", "'17' is not a JSON object"),
    ('"text"', "'text' is not a JSON object"),
    ("[1, 2]", "'.1, 2.' is not a JSON object"),
    ("NaN", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("1" * 5000, "not JSON"),
    ("\ufeff{", "not JSON"),
    (json.dumps(line("a") | {"id": 3}), "id=3, expected text"),
    (json.dumps(line("a") | {"response": None}), "response=None, expected text"),
    (json.dumps(line("a") | {"verdict": "good"}), "verdict='good', expected null or a number"),
    (json.dumps(line("a") | {"verdict": 10**400}), "verdict=1000000"),
    (json.dumps(line("a") | {"counters": {"moves": "3"}}), "counters=.*expected numbers"),
    (json.dumps(line("a") | {"seconds": True}), "seconds=True, expected a number"),
    (json.dumps(line("a") | {"judged": {"harmless": 1}}), "judged=.*expected answers"),
    (json.dumps(line("a") | {"history": ["one"]}), "history=.*expected texts"),
    (json.dumps(line("a") | {"history": "two"}), "history=.*expected texts"),
  ],
)
@pytest.mark.parametrize("end", ["\n", ""])
def test_a_line_edited_by_hand_is_named_by_file_and_row(tmp_path, row, says, end):
  if not end and row.lstrip("\ufeff").startswith("{") and says == "not JSON":
    pytest.skip("may be cut short by a kill")
  work(tmp_path)
  path = tmp_path / directory.RESULTS
  edited = path.read_text() + row + end
  path.write_text(edited)
  number = len(PROMPTS) + 1
  for read in (
    lambda: directory.read_results(str(tmp_path)),
    lambda: directory.Run.open(str(tmp_path), MANIFEST),
  ):
    with pytest.raises(directory.RunError, match=f"results.jsonl, line {number}: {says}") as error:
      read()
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
  assert path.read_text().rstrip("\n") == edited.rstrip("\n")  # nothing is lost


def test_what_editors_leave_is_read(tmp_path):
  work(tmp_path)
  path = tmp_path / directory.RESULTS
  rows = path.read_bytes()
  path.write_bytes(b"\xef\xbb\xbf" + rows.replace(b"\n", b"\r\n\r\n"))
  all_once(tmp_path)


def test_files_are_on_disk_when_they_are_there(tmp_path, monkeypatch):
  """What is renamed was synced before, and its folder after."""
  done, sync = [], os.fsync

  def synced(descriptor):
    done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    sync(descriptor)

  monkeypatch.setattr(os, "fsync", synced)
  files.replace_text(tmp_path / "a.txt", "text")
  part, folder = done
  assert part.startswith(f"{tmp_path}/.a.txt.") and folder == str(tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_parts_have_names_of_their_own(tmp_path, monkeypatch):
  """Two processes of equal number, each about to put the same file in place."""
  names = set()
  monkeypatch.setattr(os, "getpid", lambda: 1)
  monkeypatch.setattr(files.pathlib.Path, "replace", lambda part, path: names.add(part.name))
  for _ in range(20):
    files.replace_text(tmp_path / ("long " * 40 + ".json"), "text")
  assert len(names) == 20 and not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch):
  def no_locks(*args):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(locks.fcntl, "flock", no_locks)
  with pytest.raises(directory.RunError, match="No locks available; choose another --workdir"):
    directory.Run.open(str(tmp_path), MANIFEST)


def test_readers_need_no_lock(tmp_path):
  run = directory.Run.open(str(tmp_path), MANIFEST)
  assert results.read_manifest(tmp_path)["layout"] == results.LAYOUT
  assert directory.read_results(str(tmp_path)) == []
  run.append(line("a"))
  assert ids(tmp_path) == ["a"] == [one["id"] for one in directory.read_results(str(tmp_path))]
  run.close()


@pytest.mark.parametrize("name", [directory.RESULTS, "results-7.jsonl", ".lock"])
@pytest.mark.parametrize("kind", ["folder", "loop"])
def test_what_is_no_file_is_named(tmp_path, name, kind):
  work(tmp_path / "run")
  path = tmp_path / "run" / name
  path.unlink(missing_ok=True)
  path.mkdir() if kind == "folder" else path.symlink_to(path)
  if (kind, name) == ("loop", "results-7.jsonl"):
    pytest.skip("no results")
  with pytest.raises(directory.RunError, match=f"{name}: .*; choose another --workdir"):
    directory.Run.open(str(tmp_path / "run"), MANIFEST)
