"""Working directories: whole lines, resume, refusal of another configuration."""

import json
import resource

import pytest

from rain_jax.methods import recording
from rain_jax.runs import directory
from tests.helpers import recordings
from tests.helpers.results import line

MANIFEST = {
  "config": {"seed": 0, "search": {"leaves": 1}},
  "model": {"path": "demo"},
  "versions": {"jax": "1"},
}


def test_results_survive_and_a_half_line_is_repaired(tmp_path):
  run = directory.Run.open(str(tmp_path / "run"), MANIFEST)
  run.append(line("a", response="zwei\nZeilen é"))
  run.append(line("b"))
  run.close()
  path = tmp_path / "run" / directory.RESULTS
  whole = path.read_bytes()
  path.write_bytes(whole + b'{"id": "c", "resp')
  assert [r["id"] for r in directory.read_results(str(tmp_path / "run"))] == ["a", "b"]
  run = directory.Run.open(str(tmp_path / "run"), MANIFEST)
  assert [r["id"] for r in run.results] == ["a", "b"] and path.read_bytes() == whole
  run.append(line("c"))
  run.close()
  assert [json.loads(row)["id"] for row in path.read_text("utf-8").splitlines()] == [
    "a",
    "b",
    "c",
  ]


def begin(path, manifest):
  """A directory with a result."""
  run = directory.Run.open(str(path), manifest)
  run.append(line("a"))
  run.close()


def test_a_run_without_a_result_binds_nobody(tmp_path):
  """It ended in an error, and the next start has another configuration for it."""
  other = MANIFEST | {"config": {"seed": 0, "search": {"leaves": 4}}}
  run = directory.Run.open(str(tmp_path), MANIFEST)
  with pytest.raises(directory.RunError, match="search.leaves: 1 -> 4"):
    directory.Run.open(str(tmp_path), other)  # it has just begun
  run.close()
  (tmp_path / "metrics.jsonl").write_text("{}\n", "utf-8")
  directory.Run.open(str(tmp_path), other).close()
  kept = json.loads((tmp_path / directory.MANIFEST).read_text("utf-8"))
  assert kept["config"]["search"] == {"leaves": 4}
  (tmp_path / "attack.json.part").touch()  # what an attack has found so far
  with pytest.raises(directory.RunError, match="search.leaves: 4 -> 1"):
    directory.Run.open(str(tmp_path), MANIFEST)


def test_another_configuration_is_refused_with_the_difference(tmp_path):
  begin(tmp_path, MANIFEST)
  other = MANIFEST | {"config": {"seed": 0, "search": {"leaves": 4}}}
  with pytest.raises(directory.RunError, match=r"search.leaves: 1 -> 4.*--workdir"):
    directory.Run.open(str(tmp_path), other)
  with pytest.raises(directory.RunError, match="another model"):
    directory.Run.open(str(tmp_path), MANIFEST | {"model": {"path": "else"}})
  directory.Run.open(str(tmp_path), MANIFEST | {"versions": {"jax": "2"}}).close()


@pytest.mark.parametrize(
  "part,says",
  [
    ("templates", "other preference templates"),
    ("formats", "other prompt formats"),
    ("prompts", "other prompts"),
  ],
)
def test_what_lies_in_edited_files_is_refused_with_the_difference(tmp_path, part, says):
  text = "word " * 400
  before = MANIFEST | {part: {"dialogue": {"text": text + "one" + text}}}
  begin(tmp_path, before)
  directory.Run.open(str(tmp_path), before).close()
  other = MANIFEST | {part: {"dialogue": {"text": text + "two" + text}}}
  with pytest.raises(
    directory.RunError, match=f"{says} .dialogue.text: .*word one.* -> .*word two"
  ) as error:
    directory.Run.open(str(tmp_path), other)
  assert "\n" not in str(error.value) and len(str(error.value)) < 400
  older = tmp_path / "older"
  begin(older, MANIFEST)
  with pytest.raises(
    directory.RunError, match=f"older version, .* its {part}; choose another --workdir"
  ):
    directory.Run.open(str(older), before)


def test_many_differences_are_counted(tmp_path):
  assert directory.difference({str(n): n for n in range(9)}, {}).endswith(
    "4: 4 -> None, and 4 more"
  )
  assert directory.difference({"a": [1, 2], "mesh": {"data": 1}}, {"a": (1, 2)}) == ""


def test_a_damaged_line_or_manifest_is_an_error_that_loses_nothing(tmp_path):
  directory.Run.open(str(tmp_path), MANIFEST).close()
  path = tmp_path / directory.RESULTS
  text = f"{json.dumps(line('a'))}\nnot json\n{json.dumps(line('b'))}\n"
  path.write_text(text)
  with pytest.raises(directory.RunError, match="line 2"):
    directory.Run.open(str(tmp_path), MANIFEST)
  assert path.read_text() == text
  (tmp_path / directory.MANIFEST).write_text("{")
  with pytest.raises(directory.RunError, match="not JSON"):
    directory.Run.open(str(tmp_path), MANIFEST)


def test_a_workdir_that_cannot_be_is_one_line(tmp_path):
  (tmp_path / "file").write_text("x")
  with pytest.raises(directory.RunError, match="choose another --workdir"):
    directory.Run.open(str(tmp_path / "file" / "run"), MANIFEST)


def test_summary_is_written_whole(tmp_path):
  run = directory.Run.open(str(tmp_path), MANIFEST)
  run.finish({"methods": {"rain": {"harmless_rate": 1.0}}})
  run.close()
  assert json.loads((tmp_path / directory.SUMMARY).read_text()) == {
    "methods": {"rain": {"harmless_rate": 1.0}}
  }
  assert not list(tmp_path.glob("*.part"))


def test_a_run_of_several_processes_is_read_as_one(tmp_path):
  workdir = str(tmp_path)
  two = [directory.Run.open(workdir, MANIFEST, process, 2) for process in range(2)]
  two[0].append(line("a"))
  two[1].append(line("b"))
  for run in two:
    run.close()
  (tmp_path / "results-1.jsonl").open("a").write('{"id": "c", "resp')
  (tmp_path / "results-old.jsonl").write_text("not ours")
  assert [r["id"] for r in directory.read_results(workdir)] == ["a", "b"]
  one = directory.Run.open(workdir, MANIFEST)  # fixes what the second process left
  assert [r["id"] for r in one.results] == ["a", "b"]
  one.append(line("c"))
  one.close()
  assert (tmp_path / "results-1.jsonl").read_text() == json.dumps(line("b")) + "\n"
  four = [directory.Run.open(workdir, MANIFEST, process, 4) for process in range(4)]
  assert all([r["id"] for r in run.results] == ["c", "a", "b"] for run in four)
  four[3].append(line("d"))
  for run in four:
    run.close()
  assert [r["id"] for r in directory.read_results(workdir)] == ["c", "a", "b", "d"]


def test_two_processes_do_not_write_one_file(tmp_path):
  first = directory.Run.open(str(tmp_path), MANIFEST)
  with pytest.raises(directory.RunError, match="another process writes it"):
    directory.Run.open(str(tmp_path), MANIFEST)
  first.close()
  directory.Run.open(str(tmp_path), MANIFEST).close()


def test_the_mesh_may_change_between_two_starts(tmp_path):
  config = MANIFEST["config"]
  directory.Run.open(str(tmp_path), MANIFEST | {"config": config | {"mesh": {"tensor": 1}}}).close()
  directory.Run.open(str(tmp_path), MANIFEST | {"config": config | {"mesh": {"tensor": 4}}}).close()


def test_a_full_disk_loses_nothing_written(tmp_path):
  """The limit on a file's size stands in for the disk's: a part is taken, then no more."""
  run = directory.Run.open(str(tmp_path), MANIFEST)
  for i in range(3):
    run.append(line(i, response="x" * 200))
  size = (tmp_path / directory.RESULTS).stat().st_size
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, before[1]))
  try:
    with pytest.raises(directory.RunError, match="3 results so far are kept"):
      run.append(line(3, response="x" * 200))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  run.close()
  assert (tmp_path / directory.RESULTS).stat().st_size == size
  run = directory.Run.open(str(tmp_path), MANIFEST)
  run.append(line(3))
  run.close()
  assert [r["id"] for r in directory.read_results(str(tmp_path))] == ["0", "1", "2", "3"]


def test_a_workdir_that_vanishes_or_is_replaced_is_one_line(tmp_path):
  run = directory.Run.open(str(tmp_path / "run"), MANIFEST)
  run.append(line("a"))
  (tmp_path / "run").rename(tmp_path / "moved")
  with pytest.raises(directory.RunError, match="put the directory back"):
    run.append(line("b"))
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / directory.RESULTS).write_text("")
  with pytest.raises(directory.RunError, match="replaced while"):
    run.append(line("b"))
  with pytest.raises(directory.RunError, match="all results are kept"):
    (tmp_path / "run").rename(tmp_path / "again")
    run.finish({})
  run.close()
  assert [r["id"] for r in directory.read_results(str(tmp_path / "moved"))] == ["a"]


def test_recordings_are_kept_by_method_and_older_ones_are_read(tmp_path):
  run = directory.Run.open(str(tmp_path), MANIFEST)
  made = recordings.made_recording([recording.Node(-1, 0, [], "", "running", 0)], [])
  for method in ("rain", "other", "rain"):
    run.keep_recording("dialogue", method, "a/b", made.as_json())
  kept = list(directory.recorded(str(tmp_path)))
  assert sorted((one.task, one.method, one.id) for one in kept) == [
    ("dialogue", "other", "a/b"),
    ("dialogue", "rain", "a/b"),
  ]
  # As the first versions kept them.
  (tmp_path / "trees").mkdir()
  old = {"task": "hh", "id": "7", "tree": made.as_json()}
  (tmp_path / "trees" / "hh-7.json").write_text(json.dumps(old))
  (first,) = (one for one in directory.recorded(str(tmp_path)) if one.task == "hh")
  assert (first.method, first.id, first.recording) == ("rain", "7", made)
