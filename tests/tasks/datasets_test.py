"""Data sets in their own formats, and the demo world's twins of them."""

import csv
import gzip
import io
import json
import pathlib
import random

import pytest
import transformers

from rain_jax import judges
from rain_jax.demo import DATA_DIR, datasets, world
from rain_jax.judges.models import FORMS, prompt_ids
from rain_jax.runs.from_config import records_of
from rain_jax.tasks import TASKS, Record, find_task, load_prompts, load_records, readers
from rain_jax.tasks.files import read_rows
from rain_jax.text import formats
from rain_jax.types import DataError

ODD = (
  "a\u2028b\u2029c\x0bd\x0ce\x1cf\x85g\r\nh\"i,j\ttab \x00 \U0001f600 =1+1 {prompt} </s> 'q' \\n"
)


def write(tmp_path, name, text):
  path = tmp_path / name
  path.write_text(text, encoding="utf-8", newline="")
  return str(path)


def as_csv(rows):
  out = io.StringIO()
  writer = csv.DictWriter(out, list(rows[0]))
  writer.writeheader()
  writer.writerows(rows)
  return out.getvalue()


def prompts_config(**changes):
  return {"prompts": {"path": "", "column": "", "limit": 0, "text": "", "suffixes": "", **changes}}


def test_any_character_survives_every_kind_of_file(tmp_path):
  quoted = write(
    tmp_path, "p.csv", as_csv([{"goal": ODD, "target": "x"}, {"goal": "b", "target": ODD}])
  )
  lines = write(
    tmp_path,
    "p.jsonl",
    "".join(json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in (ODD, "b")),
  )
  for path in (quoted, lines):
    assert [r.prompt for r in load_prompts(path)] == [ODD, "b"]
  # Separators that are no line ends to CSV, in a field without quotes.
  bare = write(tmp_path, "b.csv", "goal,target\nx\u2028y\x0cz\x85,t\n")
  assert [r.prompt for r in load_prompts(bare)] == ["x\u2028y\x0cz\x85"]


def test_random_goals_and_questions_go_through_loaders_and_formats(tmp_path, bpe_tokenizer):
  """As many as were held back from us, of any characters that text can have."""
  rng = random.Random(0)
  signs = [chr(c) for c in range(32, 0x3000) if chr(c).isprintable()] + list(ODD)
  text = lambda: "x" + "".join(rng.choices(signs, k=rng.randrange(1, 80)))
  goals = [{"goal": text(), "target": text()} for _ in range(120)]
  read = load_prompts(write(tmp_path, "advbench.csv", as_csv(goals)))
  assert [(r.prompt, r.fields["target"]) for r in read] == [(g["goal"], g["target"]) for g in goals]
  rows = [
    {
      "Type": "Adversarial",
      "Category": text(),
      "Question": text(),
      "Best Answer": text(),
      "Best Incorrect Answer": text(),
      "Correct Answers": text(),
      "Incorrect Answers": text(),
      "Source": text(),
    }
    for _ in range(217)
  ]
  path = write(tmp_path, "TruthfulQA.csv", as_csv(rows))
  assert [r.prompt for r in load_prompts(path)] == [r["Question"] for r in rows]
  assert len(load_records(readers.binary_choice, [path])) == 2 * 217
  for record in read + load_prompts(path):
    for name in ("dialogue", "vicuna", "question", "llama2_chat"):
      form = formats.FORMATS[name]
      ids, last = form.encode(bpe_tokenizer, record.prompt)
      assert form.render(record.prompt)[-1] == last
      shown = bpe_tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False)
      assert shown == form.render(record.prompt)


def test_real_files_go_through_whole(data_dir):
  paths = {
    "advbench_harmful_behaviors.csv": 400,
    "truthfulqa.csv": 600,
    "hh_harmless_test_prompts.jsonl": 1000,
  }
  for name, count in paths.items():
    if (data_dir / name).is_file():
      assert len({r.id for r in load_prompts(str(data_dir / name))}) == count
  if (data_dir / "truthfulqa.csv").is_file():
    choices = load_records(readers.binary_choice, [str(data_dir / "truthfulqa.csv")])
    assert len(choices) == 1200 and sum(r.fields["label"] == "A" for r in choices) == 600


def test_real_goals_and_questions_go_through_formats_and_judges_whole(data_dir):
  """In LLaMA's own tokens: what is put to a model, or to a judge, is the text as it was meant."""
  names = ("advbench_harmful_behaviors.csv", "truthfulqa.csv", "llama_tokenizer.model")
  if missing := [name for name in names if not (data_dir / name).is_file()]:
    pytest.skip(f"no {missing[0]} in {data_dir}; set RAIN_JAX_TEST_DATA")
  llama = transformers.LlamaTokenizer.from_pretrained(
    str(data_dir / "llama_tokenizer.model"), add_bos_token=True
  )
  shown = lambda ids: (
    llama.decode(ids, clean_up_tokenization_spaces=False).removeprefix("<s>").lstrip()
  )
  goals, questions = (load_prompts(str(data_dir / name)) for name in names[:2])
  for record in goals[-120:] + questions[-217:]:
    for name in ("dialogue", "few_shot", "vicuna", "llama2_chat", "question"):
      form = formats.FORMATS[name]
      ids = [*form.prefix_ids(llama), *form.encode(llama, record.prompt)[0]]
      before = f"{form.prefix}\n\n" if form.prefix else ""
      assert (
        shown(ids) == before + form.render(record.prompt) and ids.count(1) == 1 and 2 not in ids
      )
    for name in ("truth", "info", "harmbench"):
      text = shown(prompt_ids(FORMS[name], llama, record, "So it is."))
      filled = {"asked": record.prompt.strip(), "response": "So it is."}
      assert text == FORMS[name].template.format_map(filled)


# -- HH ---------------------------------------------------------------------------


def test_hh_dialogues_whole_and_gzipped(tmp_path):
  dialogue = "\n\nHuman: One?\n\nAssistant: Two.\n\nStill two.\n\nHuman: Three?\n\nAssistant:"
  row = {"chosen": dialogue + " Four.", "rejected": dialogue + " Five."}
  path = tmp_path / "test.jsonl.gz"
  path.write_bytes(gzip.compress((json.dumps(row) + "\n").encode()))
  (record,) = load_prompts(str(path))
  assert record.prompt == "Three?" and record.history == ("One?", "Two.\n\nStill two.")
  assert record.fields["rejected"].endswith("Five.")
  assert formats.FORMATS["dialogue"].render(record.prompt, record.history) == dialogue.strip()
  (tmp_path / "cut.jsonl.gz").write_bytes(path.read_bytes()[:30])
  with pytest.raises(DataError, match="gzip"):
    load_prompts(str(tmp_path / "cut.jsonl.gz"))


@pytest.mark.parametrize(
  "text,turns",
  [
    ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", ["a\n\nb"]),
    ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c", ["a", "b", "c"]),
    ('Human: say "Assistant: no"\n\nAssistant:', ['say "Assistant: no"']),
    ("\n\nHuman: a\n\nAssistant: \n\nHuman: \n\nAssistant: x", ["a", "", ""]),
  ],
)
def test_turns_of_a_dialogue(text, turns):
  assert readers.parse_dialogue(text) == turns


@pytest.mark.parametrize("text", ["", "hello", "\n\nAssistant: hi", "x\n\nHuman: a"])
def test_what_is_no_dialogue_is_named(text):
  with pytest.raises(DataError, match="begins with 'Human:'"):
    readers.parse_dialogue(text)


# -- attacks ----------------------------------------------------------------------

GOALS = "goal,target\nDo a,Sure a\nDo b,Sure b\n"


@pytest.mark.parametrize(
  "name,text",
  [
    ("a.json", '[{"goal": "Do a", "controls": "! !"}, {"goal": "Do b", "controls": "?"}]'),
    ("a.json", '{"goal": ["Do a", "Do b"], "controls": ["! !", "?"]}'),
    ("a.jsonl", '{"goal": "Do a", "controls": "! !"}\n{"goal": "Do b", "controls": ["?"]}\n'),
    ("a.json", '{"goal": "Do a", "controls": "! !"}\n{"goal": "Do b", "controls": "?"}\n'),
  ],
)
def test_suffixes_as_the_published_code_reads_them(tmp_path, name, text):
  attack = write(tmp_path, name, text)
  goals = write(tmp_path, "goals.csv", GOALS)
  task = find_task("advbench")
  joined = records_of(prompts_config(path=goals, suffixes=attack), task)
  assert [(r.prompt, r.fields["goal"], r.fields["target"]) for r in joined] == [
    ("Do a ! !", "Do a", "Sure a"),
    ("Do b ?", "Do b", "Sure b"),
  ]
  alone = records_of(prompts_config(path=attack), task)
  assert [(r.prompt, r.fields["goal"]) for r in alone] == [("Do a ! !", "Do a"), ("Do b ?", "Do b")]


def test_several_and_universal_suffixes(tmp_path):
  goals = write(tmp_path, "goals.csv", GOALS)
  several = write(
    tmp_path,
    "s.json",
    json.dumps([{"goal": "Do a", "controls": ["x", "y"]}, {"goal": "Do b", "controls": ["z"]}]),
  )
  made = records_of(prompts_config(path=goals, suffixes=several), find_task("advbench"))
  assert [(r.id, r.prompt) for r in made] == [("2.0", "Do a x"), ("2.1", "Do a y"), ("3", "Do b z")]
  other = write(tmp_path, "u.json", '{"goal": ["Do y", "Do z"], "controls": ["!", "!"]}')
  made = records_of(prompts_config(path=goals, suffixes=other), find_task("advbench"))
  assert [r.prompt for r in made] == ["Do a !", "Do b !"]


@pytest.mark.parametrize(
  "text,says",
  [
    ('[{"goal": "Do a", "controls": "x"}]', "no suffix for 'Do b'"),
    ('[{"goal": "Do a"}]', "controls"),
    ('[{"goal": "Do a", "controls": 3}]', "expected text or a list"),
    ('[{"goal": "Do a", "controls": []}]', "expected text or a list"),
    ('{"goal": ["a", "b"], "controls": ["x"]}', "one length"),
    ('{"goal": "a"}', "one length"),
    ("[1]", "JSON object"),
    ("3", "list of objects"),
    ("{", "not JSON"),
  ],
)
def test_bad_suffix_files_are_one_line(tmp_path, text, says):
  attack, goals = write(tmp_path, "a.json", text), write(tmp_path, "goals.csv", GOALS)
  with pytest.raises(DataError, match=says) as error:
    records_of(prompts_config(path=goals, suffixes=attack), find_task("advbench"))
  assert attack in str(error.value) and "\n" not in str(error.value)


# -- the other data sets ----------------------------------------------------------


def test_binary_choice_in_both_orders_from_both_versions_of_the_file(tmp_path):
  new = (
    "Question,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers\n"
    "Q?,yes,no,yes; sure,never; no\n"
  )
  old = "Question,Best Answer,Correct Answers,Incorrect Answers\nQ?,yes,yes,never; no\n"
  for text, wrong in ((new, "no"), (old, "never")):
    first, second = load_records(readers.binary_choice, [write(tmp_path, "t.csv", text)])
    assert first.prompt == f"Q?\n(A) yes\n(B) {wrong}" and first.fields["label"] == "A"
    assert second.prompt == f"Q?\n(A) {wrong}\n(B) yes" and second.fields["label"] == "B"
    assert first.fields["pair"] == second.fields["pair"] and first.id != second.id
  empty = write(tmp_path, "t.csv", "Question,Best Answer,Incorrect Answers\nQ?,yes,\n")
  with pytest.raises(DataError, match="empty"):
    load_records(readers.binary_choice, [empty])


def test_review_beginnings_from_a_csv_and_the_original_folder(tmp_path):
  review = "I went there <br /><br />with one  friend, and we saw it all. Then home."
  table = write(tmp_path, "imdb.csv", as_csv([{"review": review, "sentiment": "positive"}]))
  (record,) = load_records(readers.review_beginnings(8), [table])
  assert record.prompt == "I went there with one friend, and we"
  assert record.fields["sentiment"] == "positive"
  (short,) = load_records(readers.review_beginnings(99), [table])
  assert short.prompt == "I went there with one friend, and we saw it all."
  for name in ("pos/1_8.txt", "neg/0_2.txt"):
    (tmp_path / "test" / name).parent.mkdir(parents=True)
    (tmp_path / "test" / name).write_text(review, "utf-8")
  folder = load_records(readers.review_beginnings(3), [str(tmp_path / "test")])
  assert [(r.id, r.prompt) for r in folder] == [
    ("neg/0_2", "I went there"),
    ("pos/1_8", "I went there"),
  ]


def test_misuse_and_benign_pairs(tmp_path):
  header = "Index,Goal,Target,Behavior,Category,Source\n"
  paths = [
    write(tmp_path, f"{name}-behaviors.csv", f"{header}0,{name} goal,t,b,c,s\n")
    for name in ("harmful", "benign")
  ]
  config = prompts_config(path=",".join(paths))
  misuse, benign = records_of(config, find_task("jailbreakbench"))
  assert (misuse.id, misuse.fields["group"]) == ("harmful-behaviors:0", "misuse")
  assert (benign.id, benign.fields["group"]) == ("benign-behaviors:0", "benign")
  other = write(tmp_path, "b.csv", header + "0,g,t,b,c,s\n")
  with pytest.raises(DataError, match="misuse or benign"):
    load_records(readers.misuse_or_benign, [other])
  own = write(tmp_path, "c.csv", "goal,group\ng,benign\n")
  assert load_records(readers.misuse_or_benign, [own])[0].fields["group"] == "benign"


def test_the_hub_is_asked_only_by_name(tmp_path, monkeypatch):
  asked = []
  file = write(tmp_path, "x.jsonl", '{"prompt": "hi"}\n')

  def download(name, path, repo_type):
    asked.append((name, path, repo_type))
    if path == "gone.csv":
      raise FileNotFoundError("no\nnetwork")
    return file

  monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
  assert read_rows("hub:Anthropic/hh-rlhf/harmless-base/test.jsonl.gz")[0].values == {
    "prompt": "hi"
  }
  assert asked == [("Anthropic/hh-rlhf", "harmless-base/test.jsonl.gz", "dataset")]
  with pytest.raises(DataError, match="not to be had") as error:
    read_rows("hub:a/b/gone.csv")
  assert "\n" not in str(error.value)
  with pytest.raises(DataError, match="OWNER/NAME/FILE"):
    read_rows("hub:only/two")
  with pytest.raises(DataError, match="no such file"):
    read_rows("Anthropic/hh-rlhf/test.jsonl")
  assert len(asked) == 2


# -- the demo world's twins -------------------------------------------------------


def test_demo_files_are_what_the_world_makes():
  for name, text in datasets.files().items():
    assert (DATA_DIR / name).read_text("utf-8") == text, f"{name}: python -m rain_jax.demo.datasets"


@pytest.mark.parametrize("name", [name for name in TASKS if f"demo_{name}" in TASKS])
def test_a_twin_differs_in_files_only_and_brings_the_worlds_own_prompts(name):
  task, twin = find_task(name), find_task(f"demo_{name}")
  assert (twin.format, twin.preference, twin.variant) == (
    task.format,
    task.preference,
    task.variant,
  )
  assert task.prompts == () and twin.prompts
  records = records_of(prompts_config(), twin)
  known = {
    r["prompt"]
    for kind, count in (("harmful", 100), ("benign", 50), ("question", 100), ("review", 100))
    for r in world.held_out_prompts(kind, count)
  }
  said = lambda r: r.fields.get("goal", r.fields.get("question", r.prompt))
  assert len(records) >= 50 and all(said(r) in known for r in records)
  assert any(r.history for r in records) == name.startswith("hh_")


def test_history_must_end_with_the_assistant():
  with pytest.raises(DataError, match="history"):
    Record("1", "x", {}, ("only one",))


def test_the_docs_name_every_task_format_and_judge():
  text = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "tasks.md").read_text("utf-8")
  for name in (*formats.FORMATS, *judges.JUDGES, *FORMS):
    assert name == "none" or f"`{name}" in text, name
  for name in ("hh", "advbench", "truthfulqa", "imdb", "jailbreakbench", "defences"):
    assert f"configs/{name}.py" in text
