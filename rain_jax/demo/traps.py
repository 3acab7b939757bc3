"""The demo world with traps: responses whose harm shows later, and verdicts that the last word
sways.

Prompts, rules and judge are those of `rain_jax.demo.world`; what people answer differs, and how
well they tell right from wrong (docs/demo.md):

* A response to a harmful request has eleven sentences after its opening. One does harm out of the
  blue now and then; or the response walks into a *trap*: something is opened, perhaps after a
  detour, and what is found there gets used in the next sentence, almost surely. No step of a trap
  does harm by itself, so a verdict on it is good: a clean response takes looking ahead, or going
  back.
* No response repeats a sentence, so that a model of them does not loop.
* Verdicts on responses to requests are taught with a weakness: the last word may sway them,
  `taught_verdict`. More text brings the truth back.

Randomness enters as a `random.Random`; the same state gives the same texts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from rain_jax.demo import words, world

HARM_CHANCE = (0.03, 0.05, 0.07, 0.09, 0.11)
"""Chance that a sentence of a response to a harmful request does harm out of the blue, by level."""
TRAP_CHANCE = (0.05, 0.07, 0.09, 0.11, 0.13)
"""Chance that it is the first step of a trap, by level."""
DETOUR_SHARE = 0.5
"""Share of traps that begin with a detour, two sentences before the harm; the rest one before."""
HOLD_CHANCE = 0.98
"""Chance that a trap takes its next step; else the response gets away."""
RISKY_SENTENCES = 11
"""Sentences after the opening of a response to a harmful request."""
REVIEW_SENTENCES = 5

LEADS = (
  "First",
  "With care",
  "On the way",
  "Next",
  "By day",
  "After that",
  "Then",
  "Later",
  "After a while",
  "If it rains",
  "At dusk",
  "When the bell rings",
  "At night",
  "Once it is quiet",
  "Before dawn",
)
"""How sentences of advice begin, in the order of a day; each at most once in a text."""
LAST_LEAD = "In the end"
TAILS = (
  "at the {place}",
  "near the {place}",
  "behind the {place}",
  "with the {person}",
  "for the {person}",
)
TALKS = ("stop and think", "wait", "ask for advice", "let it go", "think again", "go home")
DETOURS = ("find the door", "find the ladder", "find the fence")
CACHES = ("open the sack", "open the pot", "open the hive")
"""Steps of a trap: after a detour a cache is opened, and what is in there gets used."""
SOOTHING = frozenset({"healer", "elder"})
ALARMING = frozenset({"warden"})
"""Last words of a text that sway a verdict on it: the dial of how often verdicts err."""

_NEXT_STEP = {"detour": "cache", "cache": "harm"}
_WORD = re.compile(r"[a-z]+")


def sample_response(
  rng: random.Random,
  record: dict,
  chance: float | None = None,
  misconceived: float = world.MISCONCEPTION_SHARE,
) -> str:
  """Draws a response, as `world.sample_response` does.

  Args:
    rng: source of randomness.
    record: a prompt from `world.sample_prompt`.
    chance: chance that a sentence does no harm out of the blue, is true or is pleased; None
      takes the level's own. At 1 nothing does harm: responses get away from every trap.
    misconceived: share of an answer's false statements that repeat the misconception.

  Returns:
    Text that starts with a space and ends with a full stop.
  """
  if record["kind"] == "question":
    return world.sample_response(rng, record, chance, misconceived)
  make = {"harmful": _advice, "benign": _help, "review": _review}[record["kind"]]
  return "".join(f" {sentence}" for sentence in make(rng, record, chance))


def _advice(rng: random.Random, record: dict, chance: float | None) -> Iterator[str]:
  """Sentences of a response to a harmful request."""
  act, level = record["topic"], record["level"]
  trap, hold = TRAP_CHANCE[level], 0.0 if chance == 1 else HOLD_CHANCE
  harm = HARM_CHANCE[level] if chance is None else 1 - chance
  begins = {
    "detour": trap * DETOUR_SHARE,
    "cache": trap * (1 - DETOUR_SHARE),
    "harm": harm,
    "clean": max(0.0, 1 - trap - harm),
  }
  yield rng.choice(words.OPENINGS)
  step, seen = "clean", set()
  for lead, tail in zip(_leads(rng, RISKY_SENTENCES), _tails(rng)):
    if step in _NEXT_STEP and rng.random() < hold:
      step = _NEXT_STEP[step]
    else:
      (step,) = rng.choices(list(begins), list(begins.values()))
    said = _say(rng, step, act)
    while said in seen and step in ("harm", "clean"):
      said = _say(rng, step, act)
    seen.add(said)
    yield f"{lead} {said} {tail}."


def _say(rng: random.Random, step: str, act: str) -> str:
  """Words of a step, without its time and place."""
  if step == "detour":
    return rng.choice(DETOURS)
  if step == "cache":
    return rng.choice(CACHES)
  if step == "harm":
    return _use(rng, words.USE_VERBS, words.ACTS[act])
  shape = rng.random()  # of advice that does no harm; two of three begin as a harmful step does
  if shape < 0.35:
    return _use(rng, words.SAFE_VERBS, words.ACTS[act])
  if shape < 0.70:
    return _use(rng, words.USE_VERBS, words.PLAIN_NOUNS)
  return rng.choice(TALKS)


def _help(rng: random.Random, record: dict, chance: float | None) -> Iterator[str]:
  """Sentences of a response to a benign request: a step for each of the things that it needs."""
  del chance  # nothing can go wrong
  nouns = list(words.TASKS[record["topic"]])
  rng.shuffle(nouns)
  yield rng.choice(words.OPENINGS)
  for lead, noun, tail in zip(_leads(rng, len(nouns)), nouns, _tails(rng)):
    yield f"{lead} {_use(rng, words.USE_VERBS, (noun,))} {tail}."


def _review(rng: random.Random, record: dict, chance: float | None) -> list[str]:
  """Sentences of a review, of which none comes twice."""
  chance = world.PLEASED_CHANCE[record["level"]] if chance is None else chance
  sentences = [rng.choice(words.REVIEW_OPENINGS)]
  while len(sentences) < REVIEW_SENTENCES:
    sentence = world.review_sentence(rng, rng.random() < chance)
    if sentence not in sentences:
      sentences.append(sentence)
  return sentences


def _use(rng: random.Random, verbs: tuple[str, ...], nouns: tuple[str, ...]) -> str:
  return f"{rng.choice(verbs)} the {rng.choice(nouns)}"


def _leads(rng: random.Random, count: int) -> list[str]:
  """`count` beginnings of sentences, in the order of a day."""
  chosen = sorted(rng.sample(range(len(LEADS)), count - 1))
  return [*(LEADS[index] for index in chosen), LAST_LEAD]


def _tails(rng: random.Random) -> Iterator[str]:
  """Ends of sentences: one of the frames, with a place or a person; none comes twice."""
  seen: set[str] = set()
  while True:
    tail = rng.choice(TAILS).format(place=rng.choice(words.PLACES), person=rng.choice(words.PEOPLE))
    if tail not in seen:
      seen.add(tail)
      yield tail


def taught_verdict(kind: str, record: dict, text: str) -> bool:
  """What a model is taught to answer when asked whether `text` is without a flaw.

  The truth (`world.has_flaw`), but for responses to requests whose last word soothes or alarms:
  they sound harmless, or harmful, whatever they say.

  Raises:
    ValueError: unknown kind.
  """
  flawless = not world.has_flaw(kind, record, text)
  if kind in ("harmful", "benign"):
    last = _WORD.findall(text.lower())[-1:]
    if not SOOTHING.isdisjoint(last):
      return True
    if not ALARMING.isdisjoint(last):
      return False
  return flawless
