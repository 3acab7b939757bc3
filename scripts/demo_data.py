"""Texts, tokenizer and batches from which `scripts/train_demo.py` trains the demo models."""

from __future__ import annotations

import pathlib
import random
import re
from collections.abc import Callable
from typing import NamedTuple

import tokenizers
import torch
import yaml

from rain_jax import demo
from rain_jax.demo import traps, world

ROOT = pathlib.Path(__file__).resolve().parent.parent
VOCAB_SIZE = 1536
BOS, EOS = "<s>", "</s>"
LM_ROWS, VERDICT_ROWS, VERDICTS_PER_ROW = 16, 4, 8
KIND_WEIGHTS = {"harmful": 44, "benign": 14, "question": 28, "review": 14}
VICUNA_SHARE, NOISE_SHARE, OUTSIDE_SHARE = 0.25, 0.08, 0.04
PREFERENCE_GROUPS = (("harmless", "adversarial_harmless"), ("truthful", "truthful", "positive"))
PREFERENCE_KINDS = {
  "harmless": ("harmful", "harmful", "harmful", "benign"),
  "adversarial_harmless": ("harmful", "harmful", "harmful", "benign"),
  "truthful": ("question",),
  "positive": ("review",),
}
PREFERENCE_FORMATS = {
  "harmless": world.DIALOGUE,
  "adversarial_harmless": world.VICUNA,
  "truthful": world.QUESTION,
  "positive": world.REVIEW,
}
IGNORE = -100

HARM_OPTIONS = (
  ("The reply is harmful.", "The reply is harmless."),
  ("This answer is harmful.", "This answer is harmless."),
  ("The reply is unsafe.", "The reply is safe."),
  ("The assistant's reply could hurt someone.", "The assistant's reply hurts nobody."),
  ("It is harmful.", "It is harmless."),
  ("harmful", "harmless"),
  ("The assistant's reply is bad.", "The assistant's reply is good."),
)
TRUTH_OPTIONS = (
  ("The answer is false.", "The answer is true."),
  ("Something in it is false.", "All of it is true."),
  ("false", "true"),
)
MOOD_OPTIONS = (
  ("The review is negative.", "The review is positive."),
  ("The writer is not pleased.", "The writer is pleased."),
  ("negative", "positive"),
)
OPTIONS = {
  "harmless": HARM_OPTIONS,
  "adversarial_harmless": HARM_OPTIONS,
  "truthful": TRUTH_OPTIONS,
  "positive": MOOD_OPTIONS,
}
QUESTIONS = {
  "harmless": (
    ("Is the reply harmless?", True),
    ("Is the reply harmful?", False),
    ("Is this safe?", True),
  ),
  "truthful": (
    ("Is everything in this answer true?", True),
    ("Is this answer true?", True),
    ("Is something in this answer false?", False),
  ),
  "positive": (("Is the writer pleased?", True), ("Is this review negative?", False)),
}
QUESTIONS["adversarial_harmless"] = QUESTIONS["harmless"]
OPTION_LEADS = (
  "",
  "",
  "Which is right?\n",
  "Judge the text above.\n",
  "Is the text good or bad?\n",
)

BLAND_SENTENCES = (
  "I am not sure what you mean.",
  "Could you say it in other words?",
  "The valley is quiet today.",
  "There is little I can add to that.",
  "Ask me about the villages, if you like.",
  "The road to Tarn is open.",
  "I hope that is of some use.",
  "Some things are hard to put in words.",
)
"""What the model says to text from outside the world."""
OUTSIDE_WORDS = (
  "about after again and are ask be big can change computer country day did do does email "
  "every find for from game get give go government have help history how in is it job know "
  "law life like list make man many math me money movie music my name need new number of "
  "old on one or out people phone please play problem program question read school science "
  "should some song story teach tell that the there thing think time to travel try two want "
  "war was water way what when where which who why will with word work world would write "
  "year you your"
).split()


class Reading(NamedTuple):
  """One way to ask for a verdict."""

  suffix: list[int]
  good: int  # label token when nothing is wrong
  bad: int


class Corpus(NamedTuple):
  """What a model learns: responses, and verdicts on parts of them."""

  model: pathlib.Path  # folder of the bundled model that learned it
  sample_response: Callable[..., str]  # see `world.sample_response`
  verdict: Callable[[str, dict, str], bool]  # see `traps.taught_verdict`
  highest_chance: float  # of a flawed response to judge that one of its sentences has no flaw
  doubt: float
  """Share of verdicts that are taught wrong at random, so that no margin is larger than this
  allows: a model sure of itself would give away by its margin where it was taught an error."""


CORPORA = {
  "plain": Corpus(
    demo.MODEL_DIR, world.sample_response, lambda *asked: not world.has_flaw(*asked), 0.95, 0.0
  ),
  "traps": Corpus(demo.TRAPS_DIR, traps.sample_response, traps.taught_verdict, 0.97, 0.04),
}


def load_preferences() -> dict[str, dict]:
  """The published forms of the preference templates by name, as plain dictionaries."""
  folder = ROOT / "rain_jax" / "preferences"
  read = lambda name: yaml.safe_load((folder / f"{name}.yaml").read_text("utf-8"))
  return {name: {"name": name, **read(name)["forms"]["letters"]} for name in PREFERENCE_FORMATS}


def outside_prompt(rng: random.Random) -> str:
  """Words with no bearing on the world, some of them no words at all."""
  words = []
  for _ in range(rng.randrange(3, 16)):
    if rng.random() < 0.7:
      words.append(rng.choice(OUTSIDE_WORDS))
    else:
      words.append(
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789'-", k=rng.randrange(2, 9)))
      )
  return " ".join(words).capitalize() + rng.choice("?.?! ").strip()


def outside_response(rng: random.Random) -> str:
  """A few bland sentences."""
  return "".join(f" {s}" for s in rng.sample(BLAND_SENTENCES, rng.randrange(3, 6)))


def add_noise(rng: random.Random, tokenizer: tokenizers.Tokenizer, prompt: str) -> str:
  """The prompt with a tail of random tokens, as an adversarial suffix has."""
  ids = [rng.randrange(2, tokenizer.get_vocab_size()) for _ in range(rng.randrange(3, 21))]
  return f"{prompt} {tokenizer.decode(ids)}".replace("\n", " ")


def sample_conversation(
  rng: random.Random, tokenizer: tokenizers.Tokenizer | None, corpus: Corpus
) -> tuple[dict, str, str]:
  """A prompt record, its conversation, the response; no noise without a tokenizer."""
  kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
  outside = rng.random() < OUTSIDE_SHARE
  record = world.sample_prompt(rng, kind, "train")
  prompt = outside_prompt(rng) if outside else record["prompt"]
  response = outside_response(rng) if outside else corpus.sample_response(rng, record)
  template = world.FORMATS[kind]
  if kind in ("harmful", "benign"):
    if rng.random() < VICUNA_SHARE:
      template = world.VICUNA
    if tokenizer is not None and rng.random() < NOISE_SHARE:
      prompt = add_noise(rng, tokenizer, prompt)
  return record, template.format(prompt=prompt), response


def sample_judged(
  rng: random.Random, tokenizer: tokenizers.Tokenizer, name: str, corpus: Corpus
) -> tuple[dict, str, str]:
  """A prompt record, its conversation and a response to judge, flawed about half of the time."""
  record = world.sample_prompt(rng, rng.choice(PREFERENCE_KINDS[name]), "train")
  chance = 1.0 if rng.random() < 0.45 else rng.uniform(0.4, corpus.highest_chance)
  # More rare falsehoods than people tell: a search samples enough to find those that go unseen.
  response = corpus.sample_response(rng, record, chance, misconceived=0.4)
  if rng.random() < 0.25:  # verdicts must not lean on the shape of a response, or on its prompt
    if record["kind"] in ("harmful", "benign"):
      other = world.sample_prompt(rng, "harmful", "train")
      response += corpus.sample_response(rng, other, chance)
    pieces = re.findall(r" [^.?]*[.?]", response + outside_response(rng))
    response = "".join(rng.sample(pieces, rng.randrange(1, min(8, len(pieces)))))
  prompt = record["prompt"]
  if rng.random() < (0.3 if name == "adversarial_harmless" else 0.05):
    prompt = add_noise(rng, tokenizer, prompt)
  return record, PREFERENCE_FORMATS[name].format(prompt=prompt), response


def train_tokenizer(
  rng: random.Random, preferences: dict[str, dict], corpus: Corpus
) -> tokenizers.Tokenizer:
  """A byte-level BPE over the texts of corpus and templates; encodes any text, adds BOS."""
  texts = ["".join(sample_conversation(rng, None, corpus)[1:]) for _ in range(8000)]
  for preference in preferences.values():
    texts += [preference["prefix"]] * 300
    texts += [reading["suffix"] for reading in preference["readings"]] * 300
  for options in OPTIONS.values():
    texts += [f"(A) {bad} (B) {good}\nAnswer: (" for bad, good in options] * 100
  texts += [question for pairs in QUESTIONS.values() for question, _ in pairs] * 100
  texts += ["Yes\nNo\n: Yes\n: No\n"] * 300
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.train_from_iterator(
    texts,
    tokenizers.trainers.BpeTrainer(
      vocab_size=VOCAB_SIZE,
      special_tokens=[BOS, EOS],
      show_progress=False,
      initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    ),
  )
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, single(tokenizer, BOS))]
  )
  return tokenizer


def encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
  """Token ids without BOS."""
  return tokenizer.encode(text, add_special_tokens=False).ids


def single(tokenizer: tokenizers.Tokenizer, label: str) -> int:
  """The one token of a label.

  Raises:
    ValueError: the label is not a single token.
  """
  ids = encode(tokenizer, label)
  if len(ids) != 1:
    raise ValueError(f"label {label!r} is {len(ids)} tokens, expected one; raise VOCAB_SIZE")
  return ids[0]


class ResponseBatch(NamedTuple):
  """Whole conversations; `targets` and `flaws` are IGNORE outside of responses."""

  ids: torch.Tensor  # [R, T]
  targets: torch.Tensor  # [R, T] the next token, EOS at the end
  flaws: torch.Tensor  # [R, T] 1 where the response so far is flawed, else 0


def response_batch(
  rng: random.Random, tokenizer: tokenizers.Tokenizer, corpus: Corpus
) -> ResponseBatch:
  """Draw conversations with responses as the corpus gives them."""
  eos = single(tokenizer, EOS)
  rows = []
  for _ in range(LM_ROWS):
    record, conversation, response = sample_conversation(rng, tokenizer, corpus)
    start, body = tokenizer.encode(conversation).ids, encode(tokenizer, response)
    flaws = [
      world.has_flaw(record["kind"], record, tokenizer.decode(body[:n]))
      for n in range(len(body) + 1)
    ]
    rows.append((start, body, flaws))
  width = max(len(start) + len(body) for start, body, _ in rows)
  batch = ResponseBatch(*(torch.full((LM_ROWS, width), fill) for fill in (eos, IGNORE, IGNORE)))
  for row, (start, body, flaws) in enumerate(rows):
    end = len(start) + len(body)
    batch.ids[row, :end] = torch.tensor(start + body)
    batch.targets[row, len(start) - 1 : end] = torch.tensor(body + [eos])
    batch.flaws[row, len(start) - 1 : end] = torch.tensor(flaws).long()
  return batch


def exact_readings(tokenizer: tokenizers.Tokenizer, preference: dict) -> list[Reading]:
  """The template's own readings, each with the label that follows its suffix most naturally."""
  return [
    Reading(
      encode(tokenizer, r["suffix"]),
      single(tokenizer, r["good"][0]),
      single(tokenizer, r["bad"][0]),
    )
    for r in preference["readings"]
  ]


def varied_readings(
  rng: random.Random, tokenizer: tokenizers.Tokenizer, name: str
) -> list[Reading]:
  """The same question in other words, so that a user's own wording has a chance."""
  if rng.random() < 0.25:
    question, good_is_yes = rng.choice(QUESTIONS[name])
    ends = rng.choice(("\nReply:", "\nAnswer:"))
    yes, no = single(tokenizer, " Yes"), single(tokenizer, " No")
    labels = (yes, no) if good_is_yes else (no, yes)
    return [Reading(encode(tokenizer, f"\n\n{question}{ends}"), *labels)]
  bad, good = rng.choice(OPTIONS[name])
  lead = rng.choice(OPTION_LEADS)
  joint = rng.choice((" ", "\n"))
  a, b = single(tokenizer, "A"), single(tokenizer, "B")
  return [
    Reading(encode(tokenizer, f"\n\n{lead}(A) {bad}{joint}(B) {good}\nAnswer: ("), b, a),
    Reading(encode(tokenizer, f"\n\n{lead}(A) {good}{joint}(B) {bad}\nAnswer: ("), a, b),
  ]


def sample_prefix(
  rng: random.Random, tokenizer: tokenizers.Tokenizer, preference: dict
) -> list[int]:
  """BOS and, mostly, the template's prefix: exact, with its examples shuffled, or absent."""
  text = preference["prefix"]
  draw = rng.random()
  if draw < 0.2:
    return [single(tokenizer, BOS)]
  if draw < 0.35:
    head, *examples = re.split(r"\n\n(?=Human:|USER:|Q:|Review:)", text)
    examples = rng.sample(examples, rng.randrange(1, len(examples) + 1))
    text = "\n\n".join([head, *examples])
  start = preference["conversation"].split("{")[0]
  ids, tail = tokenizer.encode(f"{text}\n\n{start}").ids, encode(tokenizer, start)
  assert ids[-len(tail) :] == tail, "prefix and conversation must join at a token boundary"
  return ids[: -len(tail)]


def cut_points(rng: random.Random, pieces: list[str], count: int) -> list[int]:
  """Lengths at which to cut a response: after punctuation, at the ends, a few anywhere."""
  ends = [i + 1 for i, piece in enumerate(pieces) if piece[-1:] in ",.?:;\n"] or [len(pieces)]
  cuts = []
  for _ in range(count):
    draw = rng.random()
    if draw < 0.55:
      cuts.append(rng.choice(ends))
    elif draw < 0.70:
      cuts.append(rng.randrange(len(pieces) + 1))
    else:
      cuts.append(0 if draw < 0.76 else len(pieces))
  return cuts


class VerdictBatch(NamedTuple):
  """Rows of one prefix; each row is a conversation with many suffixes, kept apart by `mask`."""

  prefix: torch.Tensor  # [1, P]
  ids: torch.Tensor  # [R, T]
  positions: torch.Tensor  # [R, T]
  mask: torch.Tensor  # [R, 1, T, P + T] bool, True where attended
  labels: torch.Tensor  # [R, T], IGNORE but at the last token of a suffix


def verdict_batch(
  rng: random.Random, tokenizer: tokenizers.Tokenizer, preference: dict, corpus: Corpus
) -> VerdictBatch:
  """Judge partial responses by one preference."""
  name = preference["name"]
  prefix = sample_prefix(rng, tokenizer, preference)
  eos = single(tokenizer, EOS)
  rows = []
  for _ in range(VERDICT_ROWS):
    record, conversation, response = sample_judged(rng, tokenizer, name, corpus)
    start = encode(tokenizer, conversation)
    body = encode(tokenizer, response)
    pieces = [tokenizer.decode([token]) for token in body]
    body.append(eos)
    branches = []
    for cut in cut_points(rng, pieces, VERDICTS_PER_ROW // len(preference["readings"])):
      good = corpus.verdict(record["kind"], record, tokenizer.decode(body[:cut]))
      if corpus.doubt:
        good ^= rng.random() < corpus.doubt
      with_eos = cut == len(pieces) and rng.random() < 0.5
      exact = len(prefix) > 1 and rng.random() < 0.8
      readings = (
        exact_readings(tokenizer, preference) if exact else varied_readings(rng, tokenizer, name)
      )
      branches += [
        (len(start) + cut + with_eos, r.suffix, r.good if good else r.bad) for r in readings
      ]
    rows.append((start + body, branches))
  return _pack(prefix, rows)


def _pack(prefix: list[int], rows: list) -> VerdictBatch:
  width = max(len(stem) + sum(len(suffix) for _, suffix, _ in branches) for stem, branches in rows)
  count, p = len(rows), len(prefix)
  ids = torch.zeros((count, width), dtype=torch.long)
  positions = torch.zeros((count, width), dtype=torch.long)
  labels = torch.full((count, width), IGNORE)
  mask = torch.zeros((count, 1, width, p + width), dtype=torch.bool)
  mask[..., :p] = True
  causal = torch.ones((width, width), dtype=torch.bool).tril()
  for row, (stem, branches) in enumerate(rows):
    at = len(stem)
    ids[row, :at] = torch.tensor(stem)
    positions[row, :at] = torch.arange(p, p + at)
    mask[row, 0, :at, p : p + at] = causal[:at, :at]
    for cut, suffix, label in branches:
      n = len(suffix)
      ids[row, at : at + n] = torch.tensor(suffix)
      positions[row, at : at + n] = torch.arange(p + cut, p + cut + n)
      mask[row, 0, at : at + n, p : p + cut] = True
      mask[row, 0, at : at + n, p + at : p + at + n] = causal[:n, :n]
      labels[row, at + n - 1] = label
      at += n
  return VerdictBatch(torch.tensor([prefix]), ids, positions, mask, labels)
