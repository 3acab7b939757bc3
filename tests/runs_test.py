"""Working directories: whole lines, resume, refusal of another configuration."""

import json

import pytest

from rain_jax import runs

MANIFEST = {"config": {"seed": 0, "search": {"leaves": 1}}, "model": {"path": "demo"}, "versions": {"jax": "1"}}


def test_results_survive_and_a_half_line_is_repaired(tmp_path):
  run = runs.Run.open(str(tmp_path / "run"), MANIFEST)
  run.append({"id": "a", "response": "zwei\nZeilen é"})
  run.append({"id": "b"})
  run.close()
  path = tmp_path / "run" / runs.RESULTS
  whole = path.read_bytes()
  path.write_bytes(whole + b'{"id": "c", "resp')
  assert [r["id"] for r in runs.read_results(str(tmp_path / "run"))] == ["a", "b"]
  run = runs.Run.open(str(tmp_path / "run"), MANIFEST)
  assert [r["id"] for r in run.results] == ["a", "b"] and path.read_bytes() == whole
  run.append({"id": "c"})
  run.close()
  assert [json.loads(line)["id"] for line in path.read_text("utf-8").splitlines()] == ["a", "b", "c"]


def test_another_configuration_is_refused_with_the_difference(tmp_path):
  runs.Run.open(str(tmp_path), MANIFEST).close()
  other = MANIFEST | {"config": {"seed": 0, "search": {"leaves": 4}}}
  with pytest.raises(runs.RunError, match=r"search.leaves: 1 -> 4.*--workdir"):
    runs.Run.open(str(tmp_path), other)
  with pytest.raises(runs.RunError, match="another model"):
    runs.Run.open(str(tmp_path), MANIFEST | {"model": {"path": "else"}})
  runs.Run.open(str(tmp_path), MANIFEST | {"versions": {"jax": "2"}}).close()


def test_a_damaged_line_or_manifest_is_an_error_that_loses_nothing(tmp_path):
  runs.Run.open(str(tmp_path), MANIFEST).close()
  path = tmp_path / runs.RESULTS
  path.write_text('{"id": "a"}\nnot json\n{"id": "b"}\n')
  with pytest.raises(runs.RunError, match="line 2"):
    runs.Run.open(str(tmp_path), MANIFEST)
  assert path.read_text() == '{"id": "a"}\nnot json\n{"id": "b"}\n'
  (tmp_path / runs.MANIFEST).write_text("{")
  with pytest.raises(runs.RunError, match="not JSON"):
    runs.Run.open(str(tmp_path), MANIFEST)


def test_a_workdir_that_cannot_be_is_one_line(tmp_path):
  (tmp_path / "file").write_text("x")
  with pytest.raises(runs.RunError, match="choose another --workdir"):
    runs.Run.open(str(tmp_path / "file" / "run"), MANIFEST)


def test_summary_is_written_whole(tmp_path):
  run = runs.Run.open(str(tmp_path), MANIFEST)
  run.finish({"methods": {"rain": {"harmless_rate": 1.0}}})
  run.close()
  assert json.loads((tmp_path / runs.SUMMARY).read_text()) == {"methods": {"rain": {"harmless_rate": 1.0}}}
  assert not list(tmp_path.glob("*.part"))
