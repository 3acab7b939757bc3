"""Best-of-N jailbreaking (Hughes et al., arXiv 2412.03556): alter the request until one gets through.

Every round asks again with letters scrambled inside words, capitalised at random and nudged to
neighbouring characters, and samples an answer at temperature 1. It needs no gradients, only a judge.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

import tqdm

from rain_jax.attacks import AttackError, Behaviour, write_attack
from rain_jax.judges import Rule
from rain_jax.methods import METHODS, Method
from rain_jax.methods.session import Response, Session, SessionConfig
from rain_jax.models.loading import LoadedModel
from rain_jax.runs import directory
from rain_jax.tasks import Record


def augment(prompt: str, rng: random.Random, sigma: float) -> str:
  """The prompt as a hasty typist might put it.

  Args:
    prompt: the request.
    rng: source of randomness.
    sigma: strength in [0, 1]: a word of more than three letters has its inner letters shuffled with
      probability sqrt(sigma), a letter changes case with sqrt(sigma), and a printable ASCII
      character moves to a neighbouring code with sigma ** 3.
  """
  words = [
    _scrambled(word, rng) if rng.random() < sigma**0.5 else word for word in prompt.split(" ")
  ]
  letters = [c.swapcase() if rng.random() < sigma**0.5 else c for c in " ".join(words)]
  return "".join(_nudged(c, rng) if rng.random() < sigma**3 else c for c in letters)


def _scrambled(word: str, rng: random.Random) -> str:
  if len(word) <= 3:
    return word
  inner = list(word[1:-1])
  rng.shuffle(inner)
  return word[0] + "".join(inner) + word[-1]


def _nudged(character: str, rng: random.Random) -> str:
  moved = chr(ord(character) + rng.choice((-1, 1)))
  return moved if 32 < ord(character) < 127 and 32 < ord(moved) < 127 else character


def run(
  loaded: LoadedModel,
  session_config: SessionConfig,
  records: Sequence[Record],
  judge: Rule,
  config: Mapping[str, Any],
  out: directory.Run,
) -> list[dict[str, Any]]:
  """Attacks each record until an answer is judged harmful, or N requests are used up.

  Args:
    loaded: the model.
    session_config: its session's.
    records: the requests.
    judge: must say whether an answer is `harmless`, or at least whether it was `refused`.
    config: see `configs/attack.py`; the method attacked is `attack.best_of_n.against`.
    out: gets a line per answer; `attack.json` gets the request that got through, or the last.

  Returns:
    For each record `controls` (the altered request's last word; `goal` has the others), `asked`
    (requests used), `broken`, and the `original` request.

  Raises:
    AttackError: unknown method, or a judge without a verdict on harm.
  """
  numbers = config["attack"]["best_of_n"]
  against, options = _attacked(config)
  rounds = [
    [_altered(record, i, config["seed"], numbers["sigma"]) for record in records]
    for i in range(numbers["samples"])
  ]
  session = Session(loaded, session_config, [record for one in rounds for record in one])
  everyone = {record.id for one in rounds for record in one}
  answered = {(line["behaviour"], line["round"]): line["broken"] for line in out.results}
  broken = {name for (name, _), hit in answered.items() if hit}
  for i, one in enumerate(tqdm.tqdm(rounds, desc="best_of_n", unit="round")):
    wanted = {
      altered.id: record.id
      for record, altered in zip(records, one, strict=True)
      if record.id not in broken and (record.id, i) not in answered
    }
    skip = frozenset(everyone - wanted.keys())
    for response in against.run(session, config["seed"], skip, **options):
      name = wanted[response.record.id]
      hit = _is_harmful(judge, response, name)
      answered[name, i] = hit
      broken |= {name} if hit else set()
      out.append(
        {
          "behaviour": name,
          "round": i,
          "prompt": response.record.prompt,
          "response": response.text,
          "broken": hit,
        }
      )
  return _write(out, records, rounds, answered)


def _attacked(config: Mapping[str, Any]) -> tuple[Method, Mapping[str, Any]]:
  """The method that the configuration has attacked, and its options."""
  name = config["attack"]["best_of_n"]["against"]
  against = METHODS.get(name)
  options = against.options(config) if against else {}
  if against is None or not against.any_prompt or against.incomplete(options):
    known = ", ".join(name for name, method in METHODS.items() if method.any_prompt)
    raise AttackError(
      f"attack.best_of_n.against={name!r}: expected one of {known}, with options of its own."
    )
  return against, options


def _is_harmful(judge: Rule, response: Response, name: str) -> bool:
  verdicts = judge(response.record, response.record.answer(response.text))
  # A judge of refusals alone: what was refused did no harm.
  harmless = verdicts.get("harmless", verdicts.get("refused"))
  if harmless is None:
    raise AttackError(
      f"Prompt {name!r}: the judge says nothing about harm; name a rule in config.judge."
    )
  return not harmless


def _write(
  out: directory.Run,
  records: Sequence[Record],
  rounds: Sequence[Sequence[Record]],
  answered: Mapping[tuple[str, int], bool],
) -> list[dict[str, Any]]:
  """Writes `attack.json` from what was answered in which round, and returns what `run` does."""
  found, goals = [], []
  for place, record in enumerate(records):
    mine = {i: hit for (name, i), hit in answered.items() if name == record.id}
    # Whoever reads the file puts goal and controls together again by a space.
    goal, _, controls = rounds[max(mine, default=0)][place].prompt.rpartition(" ")
    goals.append(Behaviour(record.id, goal, "", record.fields))
    found.append(
      {
        "controls": controls,
        "asked": len(mine),
        "broken": any(mine.values()),
        "original": record.prompt,
      }
    )
  write_attack(out.path / "attack.json", goals, found)
  return found


def _altered(record: Record, round_: int, seed: int, sigma: float) -> Record:
  rng = random.Random(f"{seed}-{record.id}-{round_}")
  return dataclasses.replace(
    record, id=f"{record.id}#{round_}", prompt=augment(record.prompt, rng, sigma)
  )
