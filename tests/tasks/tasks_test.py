"""Prompts from files, and judges' rates."""

import json

import pytest

from rain_jax import judges, tasks
from rain_jax.tasks import Record
from rain_jax.text.formats import Format
from rain_jax.types import DataError


def write(tmp_path, name, text):
  path = tmp_path / name
  path.write_text(text, encoding="utf-8")
  return str(path)


def test_reads_jsonl_csv_and_text(tmp_path):
  lines = [{"id": "a", "prompt": "One?", "kind": "x"}, {"prompt": "Two\nlines"}]
  path = write(tmp_path, "p.jsonl", "\n\n".join(map(json.dumps, lines)))
  assert tasks.load_prompts(path) == [
    Record("a", "One?", {"kind": "x"}),
    Record("3", "Two\nlines", {}),
  ]
  path = write(tmp_path, "p.csv", '\ufeffgoal,target\n"Say, ""hi""","Sure,\nhi"\nBye,ok\n')
  read = tasks.load_prompts(path)
  assert [r.prompt for r in read] == ['Say, "hi"', "Bye"]
  assert read[0].fields == {"target": "Sure,\nhi"}
  path = write(tmp_path, "p.txt", "first\n\n  second  \n")
  assert [(r.id, r.prompt) for r in tasks.load_prompts(path)] == [("1", "first"), ("3", "second")]


def test_column_can_be_named(tmp_path):
  path = write(tmp_path, "p.csv", "Question,other\nq,o\n")
  assert tasks.load_prompts(path)[0].prompt == "q"
  assert tasks.load_prompts(path, "other")[0].prompt == "o"


@pytest.mark.parametrize(
  "name,text,says",
  [
    ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2"),
    ("p.jsonl", '["a"]\n', "JSON object"),
    ("p.jsonl", '{"text": "a"}\n', "config.prompts.column"),
    ("p.jsonl", '{"prompt": 3}\n', "expected text"),
    ("p.jsonl", '{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}\n', "appears twice"),
    ("p.csv", "prompt\na,b\n", "more fields"),
    ("p.txt", "\n \n", "no prompt"),
  ],
)
def test_bad_files_are_named_in_one_line(tmp_path, name, text, says):
  path = write(tmp_path, name, text)
  with pytest.raises(DataError, match=says) as error:
    tasks.load_prompts(path)
  assert path in str(error.value) and "\n" not in str(error.value)


def test_missing_file_and_wrong_encoding(tmp_path):
  with pytest.raises(DataError, match="no such file"):
    tasks.load_prompts(str(tmp_path / "none.jsonl"))
  path = tmp_path / "p.txt"
  path.write_bytes(b"caf\xe9\n")
  with pytest.raises(DataError, match="UTF-8"):
    tasks.load_prompts(str(path))


def test_braces_in_a_prompt_mean_nothing():
  assert Format(template="Q: {prompt}\nA:").render("{prompt} {x}") == "Q: {prompt} {x}\nA:"


def test_unknown_names_list_the_known_ones():
  with pytest.raises(DataError, match="dialogue"):
    tasks.find_task("nope")
  with pytest.raises(DataError, match="demo_rules"):
    judges.find_judge("nope")


def test_rates_average_over_the_prompts_that_have_the_measure():
  answers = [{"harmless": True}, {"harmless": False}, {"helpful": True}, {}]
  assert judges.rate(answers) == {"harmless_rate": 0.5, "helpful_rate": 1.0}


def test_demo_rules_refuse_prompts_of_another_world():
  with pytest.raises(DataError, match="not from the demo world"):
    judges.demo_rules(Record("1", "x"), "y")
