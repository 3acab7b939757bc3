"""The demo world's held-out prompts in the formats of the field's data sets.

  python -m rain_jax.demo.datasets      writes them anew to rain_jax/demo/data

Extra columns (`kind`, `topic`, ...) are what the world's own judge needs to know.
"""

import csv
import io
import json
import pathlib
import random
from collections.abc import Sequence

from rain_jax.demo import DATA_DIR, words, world

_KNOWN = ("id", "kind", "level", "topic")


def _known(record: dict) -> dict:
  return {key: record[key] for key in (*_KNOWN, "asked") if key in record}


def _jsonl(rows: Sequence[dict]) -> str:
  return "".join(json.dumps(row) + "\n" for row in rows)


def _csv(rows: Sequence[dict]) -> str:
  out = io.StringIO()
  writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  return out.getvalue()


def _hh(rng: random.Random, kind: str, count: int) -> str:
  """Dialogues as in HH; every fifth has an exchange about something else before it."""
  rows = []
  for number, record in enumerate(world.held_out_prompts(kind, count)):
    before = ""
    if number % 5 == 4:
      other = world.sample_prompt(rng, "question", "train")
      answer = world.sample_response(rng, other, 1.0).partition(".")[0]
      before = f"\n\nHuman: {other['prompt']}\n\nAssistant:{answer}."
    asked = f"{before}\n\nHuman: {record['prompt']}\n\nAssistant:"
    chosen, rejected = (world.sample_response(rng, record, chance) for chance in (1.0, 0.0))
    rows.append({"chosen": asked + chosen, "rejected": asked + rejected, **_known(record)})
  return _jsonl(rows)


def _advbench(rng: random.Random, count: int) -> str:
  return _csv(
    [
      {
        "goal": record["prompt"],
        "target": world.harmful_sentence(rng, record["topic"]),
        **_known(record),
      }
      for record in world.held_out_prompts("harmful", count)
    ]
  )


def _suffixes(rng: random.Random, count: int) -> str:
  """Suffixes without a search behind them: odd words, as an attack begins with."""
  odd = (*words.USE_VERBS, *words.PLAIN_NOUNS, "==", "]]", "!", "sure", "step")
  rows = [
    {"goal": record["prompt"], "controls": " ".join(rng.sample(odd, 6))}
    for record in world.held_out_prompts("harmful", count)
  ]
  return json.dumps(rows, indent=1) + "\n"


def _truthfulqa(count: int) -> str:
  rows = []
  for record in world.held_out_prompts("question", count):
    animal, asked = record["topic"], record["asked"]
    right, wrong = world.truth(animal, asked), world.misconception(animal, asked)
    claim = lambda value: words.CLAIMS[asked][0].format(animal=animal, value=value)
    others = [claim(value) for value in words.VALUES[asked] if value not in (right, wrong)]
    rows.append(
      {
        "Type": "Adversarial",
        "Category": asked,
        "Question": record["prompt"],
        "Best Answer": claim(right),
        "Best Incorrect Answer": claim(wrong),
        "Correct Answers": claim(right),
        "Incorrect Answers": "; ".join([claim(wrong), *others]),
        "Source": "the valley",
        **_known(record),
      }
    )
  return _csv(rows)


def _imdb(rng: random.Random, count: int) -> str:
  rows = []
  for record in world.held_out_prompts("review", count):
    pleased = rng.random() < 0.5
    text = record["prompt"] + world.sample_response(rng, record, float(pleased))
    mood = "positive" if pleased else "negative"
    rows.append({"review": text, "sentiment": mood, **_known(record)})
  return _csv(rows)


def _behaviours(kind: str, count: int) -> str:
  rows = []
  for number, record in enumerate(world.held_out_prompts(kind, count)):
    known = _known(record)
    known.pop("id")
    rows.append(
      {
        "Index": number,
        "Goal": record["prompt"],
        "Target": f"Here is how to {record['topic']}",
        "Behavior": record["topic"],
        "Category": kind,
        "Source": "the valley",
        **known,
      }
    )
  return _csv(rows)


def files() -> dict[str, str]:
  """The contents of every file, by its name; the same each time."""
  rng = lambda name: random.Random(name)
  return {
    "hh_harmless.jsonl": _hh(rng("hh_harmless"), "harmful", 100),
    "hh_helpful.jsonl": _hh(rng("hh_helpful"), "benign", 50),
    "advbench.csv": _advbench(rng("advbench"), 100),
    "suffixes.json": _suffixes(rng("suffixes"), 100),
    "truthfulqa.csv": _truthfulqa(100),
    "imdb.csv": _imdb(rng("imdb"), 100),
    "harmful-behaviors.csv": _behaviours("harmful", 50),
    "benign-behaviors.csv": _behaviours("benign", 50),
  }


def write(folder: pathlib.Path = DATA_DIR) -> None:
  """Writes every file to a folder."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, text in files().items():
    (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
  write()
