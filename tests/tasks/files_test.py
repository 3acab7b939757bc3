"""Prompt files of every kind: read whole, or refused in one line; odd rows are left out on demand."""

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from rain_jax.tasks import files, load_prompts, load_records, readers, rows
from rain_jax.types import DataError

SETTINGS = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
HARMBENCH = "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
PAIR = ["hi", "ho"]


def write(tmp_path, name, data):
  path = tmp_path / name
  path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
  return str(path)


# -- what is unambiguous is read ------------------------------------------------------

READ = [
  ("p.ndjson", '{"prompt": "hi"}\n{"prompt": "ho"}\n', PAIR),
  ("p.JSONL", '\ufeff{"prompt": "hi"}\r\n{"prompt": "ho"}\r\n', PAIR),
  ("p.txt", '{"prompt": "hi"}\n\n{"prompt": "ho"}', PAIR),
  ("p.txt", '[{"prompt": "hi"},\n {"prompt": "ho"}]', PAIR),
  ("prompts", "hi\nho", PAIR),
  ("p.txt", "[INST] hi\n{name}, ho", ["[INST] hi", "{name}, ho"]),
  ("p.txt", "Question: hi?\nprompt me, please", ["Question: hi?", "prompt me, please"]),
  ("p.tsv", "id\tprompt\n1\thi\n2\tho\n", PAIR),
  ("p.tsv", 'prompt\tx\n"hi\tyou"\t1\nho\t2\n', ["hi\tyou", "ho"]),
  ("p.csv", "id;prompt\n1;hi, you\n2;ho\n", ["hi, you", "ho"]),
  ("p.csv", "id\tprompt\n1\thi\n2\tho\n", PAIR),
  ("p.csv", "\n id , prompt \n1,hi\n2,ho\n\n", PAIR),
  ("p.csv", ",prompt,\n0,hi,\n1,ho,\n", PAIR),
  ("p.csv", "Prompt,x\nhi,1\nho,2\n", PAIR),
  ("p.csv", "prompt,x\r" + "hi,1\rho,2\r", PAIR),
  ("p.csv", f"prompt,x\n{'a' * 200_000},1\n", ["a" * 200_000]),
  ("p.json", '{"prompt": ["hi", "ho"], "made": "today"}', PAIR),
  ("p.json", '{"made": "today", "jailbreaks": [{"prompt": "hi"}, {"prompt": "ho"}]}', PAIR),
  ("p.jsonl.gz", gzip.compress(b'{"prompt": "hi"}\n{"prompt": "ho"}', mtime=0), PAIR),
  ("p.csv.bz2", bz2.compress(b"prompt\nhi\nho\n"), PAIR),
  ("p.tsv.XZ", lzma.compress(b"prompt\tx\nhi\t1\nho\t2\n"), PAIR),
  ("p.csv", "\ufeffsep=;\r\nid;prompt\r\n1;hi\r\n2;ho\r\n", PAIR),
  ("h.csv", "prompt,ContextString\nDo b,A plan.\n", ["A plan.\n\n---\n\nDo b"]),
  ("h.csv", 'goal,ContextString\n"A plan. Do b",A plan.\n', ["A plan. Do b"]),
  (
    "p.jsonl.gz",
    gzip.compress(b'{"prompt": "hi"}\n', mtime=0) + gzip.compress(b'{"prompt": "ho"}', mtime=0),
    PAIR,
  ),
  (
    "h.csv",
    HARMBENCH + 'Do a,standard,x,,,do_a\n"Do b, as said",contextual,x,context,"A plan.",do_b\n',
    ["Do a", "A plan.\n\n---\n\nDo b, as said"],
  ),
]


@pytest.mark.parametrize("name, data, prompts", READ)
def test_what_is_unambiguous_is_read(tmp_path, name, data, prompts):
  assert [r.prompt for r in load_prompts(write(tmp_path, name, data))] == prompts


@pytest.mark.parametrize(
  "name, data, ids",
  [
    ("p.jsonl", '{"prompt": "a", "id": null}\n{"prompt": "b", "id": null}', ["1", "2"]),
    ("p.jsonl", '{"prompt": "a", "id": NaN}\n{"prompt": "b", "id": 7}', ["1", "7"]),
    ("p.csv", "id,prompt\n,a\n x,b\n", ["2", " x"]),
    ("h.csv", HARMBENCH + "Do a,standard,x,,,do_a\n", ["do_a"]),
    ("j.json", '[{"index": 0, "goal": "g", "prompt": "p", "jailbroken": true}]', ["1"]),
  ],
)
def test_ids_are_the_rows_own_or_its_place(tmp_path, name, data, ids):
  assert [r.id for r in load_prompts(write(tmp_path, name, data))] == ids


def test_files_without_ids_may_be_read_together(tmp_path):
  paths = [write(tmp_path, f"{name}.jsonl", '{"prompt": "a", "id": null}') for name in "xy"]
  assert [r.id for r in load_records(readers.prompts, paths)] == ["x:1", "y:1"]


def test_an_artifact_of_jailbreakbench_keeps_the_goal_of_each_attack(tmp_path):
  rows_ = [{"goal": "Rob", "prompt": "Pretend to rob", "jailbroken": True}]
  path = write(tmp_path, "a.json", json.dumps({"parameters": {"method": "X"}, "jailbreaks": rows_}))
  (record,) = load_prompts(path)
  assert (record.prompt, record.goal) == ("Pretend to rob", "Rob")


def test_several_suffixes_of_a_misuse_have_ids_of_their_own(tmp_path):
  path = write(tmp_path, "harmful.jsonl", '{"goal": "Rob", "controls": ["!", "?"], "Index": 4}')
  made = load_records(readers.misuse_or_benign, [path])
  assert [(r.id, r.prompt, r.fields["group"]) for r in made] == [
    ("4.0", "Rob !", "misuse"),
    ("4.1", "Rob ?", "misuse"),
  ]


def test_a_folder_tells_of_files_that_it_does_not_read(tmp_path, caplog):
  write(tmp_path, "a.txt", "one")
  write(tmp_path, "b.TXT", "two")
  write(tmp_path, "c.jsonl", "{}")
  with caplog.at_level(logging.WARNING):
    assert [r.values["text"] for r in files.read_rows(str(tmp_path))] == ["one", "two"]
  assert "reads its 2 .txt files, and none of the 1 others" in caplog.text


# -- the rest is refused in one line --------------------------------------------------

REFUSED = [
  ("p.yaml", "- prompt: hi\n", ".yaml files are not read; expected .jsonl"),
  ("p.md", "# Title\n\nhi\n", ".md files are not read"),
  ("p.parquet", b"PAR1 x PAR1", ".parquet files are not read"),
  ("p.v2", "hi\n", ".v2 files are not read"),
  ("p.jsonl.zst", b"\x28\xb5\x2f\xfd", "decompress it first"),
  ("p.txt", "- prompt: hi\n- prompt: ho\n", "looks like YAML"),
  ("p.txt", "id\tprompt\n1\thi\n", "looks like the header of a table"),
  ("p.txt", "prompt\nhi\n", "looks like the header of a table"),
  ("p.txt", '[\n  {"prompt": "hi"},\n]', "looks like JSON"),
  ("p.txt", '{"prompt": "hi"}\nho\n', "line 1, and others are not"),
  ("p.txt", "hi\rho\r", "carriage returns alone"),
  ("p.txt", "---\nprompt: hi\n---\nprompt: ho\n", "looks like YAML"),
  ("p.txt", "prompts:\n - hi\n", "looks like YAML"),
  ("p.txt", "{'prompt': 'hi'}\n{'prompt': 'ho'}\n", "looks like JSON"),
  ("p.txt", '{ "prompt": "hi" },\n{ "prompt": "ho" },\n', "looks like JSON"),
  ("p.txt", '["hi", "ho"]\n["ha"]\n', "looks like JSON"),
  ("p.txt", "Behavior,BehaviorID\nDo a,x\n", "looks like the header of a table"),
  ("p.txt", "id|prompt\n1|hi\n", "looks like the header of a table"),
  ("p.txt", "%PDF-1.4\nhi\n", "a PDF file"),
  ("p.jsonl", b"PK\x03\x04 x", "a zip file or a spreadsheet"),
  ("p.jsonl", gzip.compress(b'{"prompt": "hi"}', mtime=0), "a gzip file (name it .gz)"),
  ("p.jsonl.gz", gzip.compress(b'{"prompt": "hi"}', mtime=0) + b"junk", "not a whole gzip file"),
  ("p.tsv", 'prompt\n"hi" he said\n', "line 2: not CSV ('\\t' expected"),
  ("p.csv", "Prompt,prompt\na,b\n", "'Prompt', 'prompt' differ in case only"),
  ("p.jsonl", '{"Goal": "a", "goal": "b"}', "differ in case only"),
  ("p.jsonl", '{"prompt": "a", "id": 1e400}', "'id' is inf"),
  ("p.csv", 'id,prompt\n1,"hi\n2,ho\n3,ha\n', "line 2: not CSV (unexpected end of data)"),
  ("p.csv", 'id,prompt\n1,"hi\n2,"ho"\n', "line 2: not CSV"),
  ("p.csv", 'prompt\n"say "hi" now"\n', "line 2: not CSV"),
  ("p.csv", "prompt\nhi\rho\n", "line 2: not CSV"),
  ("p.csv", "prompt,prompt\na,b\n", "column 'prompt' appears twice"),
  ("p.csv", "prompt,x, prompt\na,b,c\n", "column 'prompt' appears twice"),
  ("p.jsonl", '{"prompt": "a", "prompt": "b"}\n', "field 'prompt' appears twice"),
  ("p.json", '[{"id": 1, "prompt": "a", "id": 2}]', "field 'id' appears twice"),
  ("p.csv", "prompt,x\nhow do I\nbake?,1\n", "line 2: fewer fields than the header has (1, not 2"),
  ("p.csv", "a;prompt\n1;hi; you\n", "more fields than the header has (3, not 2, between ';')"),
  ("p.csv", "text,label\nhi,1\n", "found 'text', 'label': name the prompt's field"),
  ("p.csv", "prompt \x1b[31m,x\nhi,1\n", "found 'prompt \\x1b[31m', 'x'"),
  ("p.csv", "PROMPT,Prompt\na,b\n", "found 'PROMPT', 'Prompt'"),
  ("p.jsonl", '{"prompt": null}', "'prompt' is None, expected text"),
  ("p.jsonl", '{"prompt": NaN}', "'prompt' is nan, expected text"),
  ("p.jsonl", '{"prompt": [{"role": "user"}]}', "expected role and content"),
  ("p.jsonl", '{"prompt": "a", "id": [1]}', "'id' is [1], expected text or a number"),
  ("p.jsonl", '{"prompt": "a", "id": true}', "'id' is True"),
  ("p.jsonl", '{"prompt": "a", "chosen": "b"}', "config.prompts.column"),
  ("p.jsonl", "[" * 100_000, "nested too deeply"),
  ("p.json", '{"a":' * 100_000, "nested too deeply"),
  ("p.json", '{"prompt": {"0": "hi"}}', "found no list among the fields 'prompt'"),
  ("p.json", '{"a": [1], "b": [1, 2]}', "'a' of 1, 'b' of 2"),
  (
    "a.json",
    '{"jailbreaks": [{"goal": "a", "prompt": null, "jailbroken": false}]}',
    "an artifact of JailbreakBench has no prompt",
  ),
  ("h.csv", "Behavior,BehaviorID,ImageFileName\nSay,x,a.png\n", "asks about an image"),
  ("p.jsonl", '{"prompt": "hi"}'.encode("utf-16-le"), "convert it to UTF-8"),
  ("p.csv", "prompt\nhi\n".encode("utf-16"), "convert it to UTF-8"),
  ("p.txt", "hi\nho\n".encode("utf-16-le"), "convert it to UTF-8"),
  ("p.jsonl.gz", b"\x1f\x8b nothing", "not a whole gzip file"),
  ("p.jsonl.bz2", bz2.compress(b"x" * 99)[:20], "not a whole bzip2 file"),
  ("p.jsonl.xz", b"none", "not a whole xz file"),
  ("p.csv", "prompt\n", "no prompt in the file"),
  ("p.jsonl", b"", "no prompt in the file"),
]


@pytest.mark.parametrize("name, data, says", REFUSED)
def test_what_is_not_is_refused_in_one_line(tmp_path, name, data, says):
  path = write(tmp_path, name, data)
  with pytest.raises(DataError) as error:
    load_prompts(path)
  line = str(error.value)
  assert says in line and path in line and len(line.splitlines()) == 1 and "\x1b" not in line


def test_a_text_in_the_place_of_a_path_is_no_file():
  with pytest.raises(DataError, match="no such file"):
    load_prompts("How do I bake? " * 30)


def test_what_is_huge_is_refused_before_it_fills_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "LARGEST", 1000)
  for name, pack in (("p.gz", gzip), ("p.bz2", bz2), ("p.xz", lzma)):
    path = write(tmp_path, f"x.txt.{name[2:]}", pack.compress(b"a" * 10_000_000))
    with pytest.raises(DataError, match="split it into several files"):
      load_prompts(path)
  with pytest.raises(DataError, match="split it"):
    load_prompts(write(tmp_path, "x.txt", "a" * 1001))


@pytest.mark.parametrize("text", ["\n" * 300_000, "\n \t" * 100_000, "Human:\n\n" * 40_000])
def test_a_page_of_empty_lines_in_a_dialogue_is_read_once(text):
  begin = time.monotonic()
  turns = readers.parse_dialogue(f"\n\nHuman: a{text}b\n\nAssistant: c")
  assert turns[0].startswith("a") and time.monotonic() - begin < 5


# -- rows that are left out -----------------------------------------------------------

HH = '{{"chosen": "{}"}}'.format
GOOD = HH("\\n\\nHuman: One?\\n\\nAssistant: Two.")


@pytest.mark.parametrize(
  "name, data, kept, lost",
  [
    (
      "p.jsonl",
      f"{GOOD}\n{HH('no dialogue')}\n{GOOD}",
      ["1", "3"],
      ["line 2: expected a dialogue"],
    ),
    (
      "p.jsonl",
      '{"prompt": "a"}\n{\n3\n{"prompt": 3}\n{"prompt": "b"}',
      ["1", "5"],
      ["2", "3", "4"],
    ),
    ("p.csv", "prompt,x\na,1\nb\nc,1,2\nd,4\n", ["2", "5"], ["line 3: fewer", "line 4: more"]),
    ("p.json", '[{"prompt": "a"}, 3, {"prompt": "b"}]', ["1", "3"], ["row 2: expected a JSON"]),
    ("p.csv", "id,prompt\nx,a\nx,b\ny,c\n", ["x", "y"], ["line 3: id 'x' appears twice"]),
  ],
)
def test_odd_rows_are_left_out_and_named(tmp_path, name, data, kept, lost):
  path, left_out = write(tmp_path, name, data), []
  found = load_records(readers.prompts, [path], left_out=left_out)
  assert [r.id for r in found] == kept and len(left_out) == len(lost)
  assert all(path in line and said in line for line, said in zip(left_out, lost))
  with pytest.raises(rows.RowError) as error:
    load_records(readers.prompts, [path])
  assert str(error.value) == left_out[0]


def test_a_file_of_which_nothing_is_left_is_refused(tmp_path):
  path = write(tmp_path, "p.jsonl", '{"text": "a"}\n{"text": "b"}')
  with pytest.raises(DataError, match="none of its 2 rows can be used; the first: .*found 'text'"):
    load_records(readers.prompts, [path], left_out=[])


def test_a_limit_takes_rows_that_can_be_used(tmp_path):
  path = write(tmp_path, "p.jsonl", '{"prompt": "a"}\n{\n{"prompt": "b"}\n{"prompt": "c"}')
  assert [r.id for r in load_records(readers.prompts, [path], limit=2, left_out=[])] == ["1", "3"]


# -- any text at all ------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1)
LINE = TEXT.filter(lambda text: text.strip() == text and "\n" not in text and "\r" not in text)


def as_table(prompts, sign):
  out = io.StringIO()
  # With this end of a line the writer quotes texts that hold a carriage return.
  writer = csv.writer(out, delimiter=sign, lineterminator="\r\n")
  writer.writerows([["prompt", "x"], *([prompt, "1"] for prompt in prompts)])
  return out.getvalue()


MAKERS = {
  "p.jsonl": lambda p: "".join(json.dumps({"prompt": one}) + "\n" for one in p),
  "p.ndjson": lambda p: "".join(json.dumps({"prompt": o}, ensure_ascii=False) + "\n" for o in p),
  "p.json": lambda p: json.dumps([{"prompt": one} for one in p], indent=1),
  "p.csv": lambda p: as_table(p, ","),
  "p.tsv": lambda p: as_table(p, "\t"),
}


@SETTINGS
@hypothesis.given(st.lists(TEXT, min_size=1, max_size=5), st.sampled_from(sorted(MAKERS)))
def test_no_prompt_of_a_whole_file_is_lost(tmp_path_factory, prompts, name):
  path = write(tmp_path_factory.mktemp("whole"), name, MAKERS[name](prompts))
  try:
    found = [r.prompt for r in load_prompts(path)]
  except DataError as error:  # texts of NUL alone
    assert "UTF-16" in str(error) and "".join(prompts).count("\0") * 8 > len("".join(prompts))
  else:
    assert found == prompts


@SETTINGS
@hypothesis.given(
  st.sampled_from([*MAKERS, "p.txt"]),
  st.one_of(
    st.binary(max_size=60),
    st.text(st.sampled_from('{}[]",:;\t\n\r\\ prompt1\0\ud800\x1b-'), max_size=60).map(
      lambda text: text.encode("utf-8", "surrogatepass")
    ),
  ),
)
def test_any_bytes_are_prompts_or_one_line(tmp_path_factory, name, data):
  path, left_out = write(tmp_path_factory.mktemp("any"), name, data), []
  try:
    found = load_records(readers.prompts, [path], left_out=left_out)
  except DataError as error:
    assert path in str(error) and len(str(error).splitlines()) == 1
    return
  assert all(isinstance(record.prompt, str) for record in found)
  if name.endswith("jsonl"):  # each line is a prompt, or said to be none
    lines = [line for line in data.decode("utf-8-sig").split("\n") if line.strip()]
    assert len(found) + len(left_out) == len(lines)


@SETTINGS
@hypothesis.given(st.lists(LINE, min_size=1, max_size=5), st.data())
def test_a_file_with_a_character_missing_loses_no_row_in_silence(tmp_path_factory, prompts, data):
  name = data.draw(st.sampled_from(["p.jsonl", "p.csv", "p.tsv"]))
  text = MAKERS[name](prompts)
  place = data.draw(st.integers(0, len(text) - 1))
  hypothesis.assume(text[place] != "\n")
  path = write(tmp_path_factory.mktemp("cut"), name, text[:place] + text[place + 1 :])
  left_out = []
  try:
    found = load_records(readers.prompts, [path], left_out=left_out)
  except DataError:
    return
  assert len(found) + len(left_out) == len(prompts)
