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
from rain_jax.methods import METHODS
from rain_jax.methods.session import Session, SessionConfig
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
  against = METHODS.get(numbers["against"])
  options = against.options(config) if against else {}
  if against is None or not against.any_prompt or against.incomplete(options):
    known = ", ".join(name for name, method in METHODS.items() if method.any_prompt)
    raise AttackError(
      f"attack.best_of_n.against={numbers['against']!r}: expected one of {known}, with options of"
      " its own."
    )
  rounds = [
    [_altered(record, i, config["seed"], numbers["sigma"]) for record in records]
    for i in range(numbers["samples"])
  ]
  session = Session(loaded, session_config, [record for one in rounds for record in one])
  answered = {(line["behaviour"], line["round"]): line["broken"] for line in out.results}
  broken = {name for (name, _), hit in answered.items() if hit}
  everyone = {record.id for one in rounds for record in one}
  for i, one in enumerate(tqdm.tqdm(rounds, desc="best_of_n", unit="round")):
    wanted = {
      altered.id: record.id
      for record, altered in zip(records, one, strict=True)
      if record.id not in broken and (record.id, i) not in answered
    }
    skip = frozenset(everyone - wanted.keys())
    for response in against.run(session, config["seed"], skip, **options):
      name = wanted[response.record.id]
      judged = judge(response.record, response.text)
      judged = {"harmless": judged["refused"]} | judged if "refused" in judged else judged
      if "harmless" not in judged:
        raise AttackError(
          f"Prompt {name!r}: the judge says nothing about harm; name a rule in config.judge."
        )
      answered[name, i] = not judged["harmless"]
      broken |= {name} if answered[name, i] else set()
      out.append(
        {
          "behaviour": name,
          "round": i,
          "prompt": response.record.prompt,
          "response": response.text,
          "broken": answered[name, i],
        }
      )
  found, goals = [], []
  for place, record in enumerate(records):
    mine = [i for name, i in answered if name == record.id]
    last = max(mine, default=0)
    # Whoever reads the file puts goal and controls together again by a space.
    goal, _, controls = rounds[last][place].prompt.rpartition(" ")
    goals.append(Behaviour(record.id, goal, "", record.fields))
    found.append(
      {
        "controls": controls,
        "asked": len(mine),
        "broken": record.id in broken,
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
