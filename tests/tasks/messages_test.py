"""Dialogues as lists of messages: in files and from Python, and what is refused."""

import json

import pytest

import rain_jax
from rain_jax.tasks import Record, find_task, load_records, messages
from rain_jax.tasks.readers import binary_choice, prompts
from rain_jax.tasks.rows import RowError
from rain_jax.types import DataError

SYSTEM = {"role": "system", "content": "Be brief."}
ASKS, ANSWERS = ({"role": r, "content": c} for r, c in (("user", "One?"), ("assistant", "Two.")))
AGAIN, BEGUN = {"role": "user", "content": "Three?"}, {"role": "assistant", "content": "Sure: "}


def as_sharegpt(said):
  names = {"system": "system", "user": "human", "assistant": "gpt"}
  return [{"from": names[m["role"]], "value": m["content"]} for m in said]


@pytest.mark.parametrize(
  "said, want",
  [
    ([ASKS], ("One?", (), "", "")),
    ([SYSTEM, ASKS], ("One?", (), "Be brief.", "")),
    ([ASKS, BEGUN], ("One?", (), "", "Sure: ")),
    ([ASKS, ANSWERS, AGAIN], ("Three?", ("One?", "Two."), "", "")),
    ([SYSTEM, ASKS, ANSWERS, AGAIN, BEGUN], ("Three?", ("One?", "Two."), "Be brief.", "Sure: ")),
    ([{"role": "system", "content": ""}, ASKS], ("One?", (), "", "")),
    ([{**ASKS, "name": "Ann", "weight": 0}], ("One?", (), "", "")),
  ],
  ids=["one", "system", "prefill", "turns", "all", "empty-system", "more-fields"],
)
def test_a_list_of_messages_is_a_dialogue(said, want):
  assert messages.parse(said, "here") == want
  assert messages.parse(as_sharegpt(said), "here") == want
  for name, shape in (("messages", said), ("prompt", said), ("conversations", as_sharegpt(said))):
    row = messages.Row("p.jsonl", 3, {name: shape, "goal": "g", "id": 7})
    assert prompts(row) == [Record("7", want[0], {"goal": "g"}, *want[1:])]


BAD = {
  "text": ("hi", "expected a list of messages"),
  "empty": ([], "no message of the user"),
  "system alone": ([SYSTEM], "no message of the user"),
  "no object": ([ASKS, "Two."], "message 2 is 'Two.', expected an object"),
  "role": ([{"role": "tool", "content": "x"}], "message 1: role='tool', expected one of system"),
  "role kind": ([{"role": 1, "content": "x"}], "message 1: role=1"),
  "two systems": ([SYSTEM, SYSTEM, ASKS], "message 2 is a system message, and there is one"),
  "late system": ([ASKS, SYSTEM], "message 2 is a system message, and it does not come first"),
  "assistant first": ([ANSWERS, ASKS], "message 1 is the assistant's, expected the user's"),
  "user twice": ([SYSTEM, ASKS, AGAIN], "message 3 is the user's, expected the assistant's"),
  "no words": ([{"role": "user", "content": " \n"}], "message 1, the user's, is empty"),
  "no prefill": (
    [ASKS, {"role": "assistant", "content": ""}],
    "message 2, the assistant's, is emp",
  ),
  "last no text": ([ASKS, {"role": "assistant", "content": None}], "assistant's: content=None"),
  "parts": ([{"role": "user", "content": [{"type": "text"}]}], "message 1, the user's: content="),
  "mixed in one": ([{"role": "user", "value": "x"}], "message 1 has the fields 'role', 'value'"),
  "all in one": ([ASKS | {"from": "human", "value": "x"}], "expected role and content, or from"),
  "mixed": ([ASKS, *as_sharegpt([ANSWERS])], "message 2 has from and value, others role"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_dialogue_is_one_line(name):
  said, says = BAD[name]
  with pytest.raises(RowError) as caught:
    messages.parse(said, "p.jsonl, line 3")
  line = str(caught.value)
  assert line.startswith("p.jsonl, line 3: ") and says in line and "\n" not in line


def test_bad_rows_are_named_or_left_out(tmp_path):
  path = tmp_path / "dialogues.jsonl"
  rows = [{"messages": [SYSTEM, ASKS]}, *({"messages": said} for said, _ in BAD.values())]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  reader, left_out = find_task("dialogue").reader, []
  with pytest.raises(RowError, match="dialogues.jsonl, line 2: 'hi'"):
    load_records(reader, [str(path)])
  (record,) = load_records(reader, [str(path)], left_out=left_out)
  assert record.system == "Be brief." and len(left_out) == len(BAD)
  assert all(f"line {n}: " in line for n, line in enumerate(left_out, 2))


def test_which_field_is_the_prompt_has_to_be_clear():
  row = messages.Row("p.jsonl", 1, {"prompt": "One?", "messages": [AGAIN]})
  with pytest.raises(DataError, match="'messages', 'prompt': which of them.*prompts.column"):
    prompts(row)
  assert (
    prompts(row, "messages")[0].prompt == "Three?" and prompts(row, "prompt")[0].prompt == "One?"
  )
  trl = messages.Row("p.jsonl", 1, {"prompt": [ASKS], "chosen": [ANSWERS], "rejected": [ANSWERS]})
  assert prompts(trl)[0].prompt == "One?"
  with pytest.raises(DataError, match="no lists of messages"):
    binary_choice(messages.Row("p.jsonl", 1, {"prompt": [ASKS], "Best Answer": "a"}))


def test_suffixes_follow_the_last_user_turn():
  row = messages.Row("p", 1, {"messages": [SYSTEM, ASKS, BEGUN], "controls": ["x", "y"]})
  said = [(r.prompt, r.goal, r.system, r.prefill) for r in prompts(row)]
  assert said == [(f"One? {c}", "One?", "Be brief.", "Sure: ") for c in "xy"]


@pytest.mark.parametrize(
  "given, says",
  [([ASKS], "lists of messages"), ([[SYSTEM]], r"prompts\[0\]: no message"), ([[]], "no message")],
)
def test_python_refuses_what_is_no_dialogue(checkpoint, given, says):
  with pytest.raises(DataError, match=says):
    rain_jax.load(str(checkpoint)).generate(given, method="vanilla")
