"""Results files of any content: one line that names file and row, or no prompt lost and none twice."""

import json
import tempfile

import hypothesis
from hypothesis import strategies as st

from rain_jax.runs import directory, export, job, judgements, summary
from rain_jax.views import rating_sheet, run_page
from tests.helpers.results import ids, line

NAMES = ("a", "b", "c")
MANIFEST = {
  "config": {
    "seed": 0,
    "tasks": ["dialogue"],
    "methods": ["vanilla"],
    "judge": "none",
    "preference": "",
    "prompts": {"text": "", "path": "", "column": "", "suffixes": "", "limit": 0},
    "format": {"name": ""},
    "search": {"variant": ""},
  },
  "model": {"path": "demo"},
  "versions": {"jax": "1"},
  "formats": {
    "dialogue": {"prefix": "", "template": "{prompt}", "stop": [], "between": None, "opening": ""}
  },
}
_values = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text(max_size=5)
  | st.just(10**400)
  | st.just("\ud800"),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(("moves", "iterations", "x")), inner, max_size=3)
  ),
  max_leaves=4,
)
_fields = st.sampled_from(
  [
    *line("a"),
    "history",
    "goal",
    "error",
    "judged",
    "something",
    "measure",
    "answers",
    "by",
    "judge",
  ]
)
_good = st.sampled_from(NAMES).map(line)
_rejected = st.sampled_from(NAMES).map(
  lambda name: {k: v for k, v in line(name, error="no").items() if k not in ("counters", "seconds")}
)
_lacking = st.builds(
  lambda one, gone: {k: v for k, v in one.items() if k not in gone},
  _good,
  st.sets(_fields, max_size=3),
)
_edited = st.builds(
  lambda one, changes: one | changes, _good, st.dictionaries(_fields, _values, max_size=3)
)
_json = st.one_of(_good, _good, _rejected, _lacking, _edited, _values).map(
  lambda value: json.dumps(value).encode()
)
_row = st.one_of(
  _json,
  _json,
  _json,
  st.binary(max_size=20).map(lambda data: data.replace(b"\n", b"")),
  st.builds(lambda data, size: data[:size], _json, st.integers(0, 60)),
  st.sampled_from((b"", b"  ", b"{}", b"null", b"[", b"\xef\xbb\xbf{}", b"\0\0")),
)
_file = st.builds(
  lambda rows, end: b"\n".join(rows) + end,
  st.lists(_row, max_size=6),
  st.sampled_from((b"\n", b"", b"\r\n", b"\0\0")),
)
_settings = hypothesis.settings(
  max_examples=150,
  deadline=None,
  database=None,
  derandomize=True,
  suppress_health_check=list(hypothesis.HealthCheck),
)


def read_by_all(workdir):
  """All that read a run's results; a report, exports and sheets of none are errors of their own."""
  found = directory.read_results(workdir)
  json.dumps(summary.summarise(found, "vanilla"), allow_nan=False)
  summary.table({"methods": {"vanilla": summary.summarise(found, "vanilla")}})
  run_page.write(workdir)
  judgements.summarise(workdir, {"dialogue": []})
  for make in (
    lambda: export.write_pairs(workdir, f"{workdir}/pairs", export.MESSAGES),
    lambda: export.write_sft(workdir, f"{workdir}/sft", export.MESSAGES),
    lambda: rating_sheet.make(found),
  ):
    try:
      make()
    except directory.RunError as error:
      assert any(says in str(error) for says in ("no response", "no answers"))
  return found


def check(workdir, name, data):
  """A start and all readers on a directory whose file holds these bytes."""
  path = f"{workdir}/{name}"
  with open(path, "wb") as file:
    file.write(data)
  there = None
  try:
    there = directory.read_results(workdir)
    run = directory.Run.open(workdir, MANIFEST)
  except directory.RunError as error:
    assert there is None  # whoever reads and whoever writes see the same
    said = str(error)
    assert f"{name}, line " in said and "\n" not in said and len(said) < 300, said
    kept = open(path, "rb").read()
    assert kept.startswith(data) and kept[len(data) :] in (b"", b"\n") or data.startswith(kept)
    return
  assert run.results == there
  before = {one["id"] for one in run.results}
  for one in NAMES:
    if one not in before:
      run.append(line(one))
  run.close()
  found = read_by_all(workdir)
  keys = [judgements.key_of(one) for one in found]
  assert len(keys) == len(set(keys))
  answered = {one["id"] for one in found}
  assert set(NAMES) <= answered and before <= answered
  assert set(ids(workdir)) == answered


@_settings
@hypothesis.given(_file)
def test_no_start_and_no_reader_fails_or_loses_a_prompt_on_results(data):
  with tempfile.TemporaryDirectory() as workdir:
    with open(f"{workdir}/{directory.MANIFEST}", "w", encoding="utf-8") as file:
      json.dump(MANIFEST, file)  # of a version without origins, so that any lines may be there
    check(workdir, directory.RESULTS, data)


@_settings
@hypothesis.given(_file)
def test_a_line_that_the_run_did_not_write_is_read_or_refused(data):
  """The run's own lines are there, and something after them."""
  with tempfile.TemporaryDirectory() as workdir:
    run = directory.Run.open(workdir, MANIFEST)
    run.append(line("a"))
    run.close()
    own = open(f"{workdir}/{directory.RESULTS}", "rb").read()
    check(workdir, directory.RESULTS, own + data)


_verdict = st.builds(
  lambda name, changes, gone: {
    k: v
    for k, v in (
      {
        "task": "dialogue",
        "id": name,
        "method": "vanilla",
        "judge": "x",
        "by": "1",
        "answers": {"harmless": True},
      }
      | changes
    ).items()
    if k not in gone
  },
  st.sampled_from(NAMES),
  st.dictionaries(_fields, _values, max_size=2),
  st.sets(_fields, max_size=1),
)


@_settings
@hypothesis.given(
  st.lists(st.one_of(_verdict.map(lambda v: json.dumps(v).encode()), _row), max_size=5)
)
def test_no_reader_fails_on_verdicts(rows):
  with tempfile.TemporaryDirectory() as workdir:
    run = directory.Run.open(workdir, MANIFEST)
    for name in NAMES:
      run.append(line(name))
    run.close()
    data = b"\n".join(rows)
    with open(f"{workdir}/{directory.JUDGED}", "wb") as file:
      file.write(data)
    one = {"task": "dialogue", "id": "a", "method": "vanilla", "judge": "y", "by": "1"}
    try:
      job.add_ratings(
        workdir, MANIFEST["config"], [one | {"answers": {"kind": True}}], lambda _: None
      )
      read_by_all(workdir)
    except directory.RunError as error:
      assert "judged.jsonl, line " in str(error) and "\n" not in str(error), error
    else:
      assert ((("dialogue", "a", "vanilla"), "y", "")) in judgements.read_judged(workdir)
