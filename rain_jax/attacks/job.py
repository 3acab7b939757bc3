"""An attack on the prompts of a task, into a working directory; `scripts/attack.py` is its command.

The directory gets `attack.json` (see `rain_jax.attacks`; written anew after each improvement),
`results.jsonl` (one line per improvement) and `manifest.json`. The same command goes on from the best
controls found.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tqdm

from rain_jax import judges
from rain_jax.attacks import AttackError, Behaviour, behaviours_of, best_of_n, gcg, write_attack
from rain_jax.methods.session import Session
from rain_jax.models.loading import load
from rain_jax.policy.embedders import find_embedder
from rain_jax.runs import config_check, directory, from_config, manifest
from rain_jax.tasks import Record

FILE = "attack.json"
METHODS = ("gcg", "best_of_n")


def run(
  config: Mapping[str, Any], workdir: str, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
  """Attacks the task's prompts, or those that the configuration names.

  Args:
    config: see `configs/attack.py` and `configs/common.py`.
    workdir: where everything goes.
    say: where the closing line goes.

  Returns:
    What `attack.json` holds of each behaviour beside the behaviour itself.

  Raises:
    AttackError, tasks.DataError, directory.RunError, models.hf.CheckpointError,
    preferences.PreferenceError: one line each, saying what to do.
  """
  config_check.check(config)
  settings = config["attack"]
  if settings["method"] not in METHODS:
    raise AttackError(
      f"attack.method={settings['method']!r}: expected one of {', '.join(METHODS)}."
    )
  if len(config["tasks"]) != 1:
    raise AttackError(f"tasks={config['tasks']}: expected one task, whose prompts are attacked.")
  if config.get("verdict", {}).get("model"):
    raise AttackError(
      "verdict.model: attacks are made against a model's own verdicts; leave it away."
    )
  # Goals as they are: suffixes are what is sought.
  task = dataclasses.replace(from_config.task_of(config, config["tasks"][0]), suffixes="")
  records = from_config.records_of(config, task)
  _check_requests(records)
  if task.format.thinking and settings["method"] == "gcg":
    raise AttackError(
      "format.thinking: gcg looks for answers that begin at once; leave it away, or attack by"
      " best_of_n."
    )
  others = [load(path, config["model"]["dtype"]) for path in settings["models"]]
  models = [from_config.load_on(config), *others]
  embedder = find_embedder(**config["embedder"], tokenizer=models[0].tokenizer)
  session_config = from_config.make_session_config(
    config, task, embedder, models[0].judging.tokenizer
  )
  name = config["tasks"][0]
  made = manifest.make(config, models, {name: session_config}, {name: records})
  out = directory.Run.open(workdir, made, check=lambda line: _fault(line, settings))
  session_config = manifest.dated({name: session_config}, out.manifest)[name]
  try:
    if settings["method"] == "gcg":
      behaviours = behaviours_of(records, settings["target"])
      found = _gcg([Session(m, session_config, []) for m in models], behaviours, config, out)
      won = sum(one["won"] for one in found)
    else:
      rule = judges.rule_of(judges.panel(task.judge, config))
      found = best_of_n.run(models[0], session_config, records, rule, config, out)
      won = sum(one["broken"] for one in found)
  finally:
    out.close()
  say(f"{settings['method']}: {won} of {len(found)} won; {pathlib.Path(workdir) / FILE}")
  return found


def _check_requests(records: Sequence[Record]) -> None:
  """An attack file has a place for a request alone."""
  for record in records:
    if record.history or record.system or record.prefill:
      raise AttackError(
        f"Prompt {record.id!r} is a dialogue with more than one message; expected requests alone."
      )


def _fault(line: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
  """What is wrong with a line of an attack's results; "" if nothing is."""
  kinds: dict[str, Any] = {"behaviour": str}
  if settings["method"] == "best_of_n":
    kinds |= {"round": int, "prompt": str, "response": str, "broken": bool}
    most: dict[str, float] = {"round": settings["best_of_n"]["samples"] - 1}
  else:
    number = (int, float, type(None))
    kinds |= {
      "controls": str,
      "loss": number,
      "step": int,
      "active": int,
      "won": bool,
      "done": bool,
    }
    most = {"step": settings["gcg"]["steps"], "active": math.inf}
  for name, kind in kinds.items():
    value: Any = line.get(name)
    odd = isinstance(value, bool) != (kind is bool) or not isinstance(value, kind)
    if name not in line or odd or (name in most and not 0 <= value <= most[name]):
      return f"{name}={value!r:.40} is not of this attack"
  return ""


def _gcg(
  sessions: Sequence[Session],
  behaviours: Sequence[Behaviour],
  config: Mapping[str, Any],
  out: directory.Run,
) -> list[dict[str, Any]]:
  """One control for each behaviour, or one for all of them."""
  settings = config["attack"]
  numbers = gcg.Config(**settings["gcg"])
  first = {"controls": settings["control"], "loss": None, "step": 0, "active": 0, "won": False}
  if settings["universal"]:
    groups = {"*": behaviours[: settings["train"] or None]}
  else:
    groups = {behaviour.id: [behaviour] for behaviour in behaviours}
  best = {name: dict(first) for name in groups}
  finished = set()
  for line in out.results:
    best[line["behaviour"]] = {key: line[key] for key in first}
    if line["done"]:
      finished.add(line["behaviour"])

  def found() -> list[dict[str, Any]]:
    return [best["*"] if settings["universal"] else best[b.id] for b in behaviours]

  total = numbers.steps * len(groups)
  with tqdm.tqdm(total=total, desc="gcg", unit="step") as bar:
    for name, group in groups.items():
      if name not in finished:
        attack = gcg.Attack(sessions, group, best[name]["controls"], numbers)
        for now in attack.run(config["seed"], best[name]["step"], best[name]["active"]):
          bar.update(now.step > 0)
          bar.set_postfix(loss=f"{now.loss:.3f}", active=now.active)
          if _better(now, best[name]):
            best[name] = {
              "controls": now.control,
              "loss": now.loss,
              "step": now.step,
              "active": now.active,
              "won": now.won,
            }
            out.append({"behaviour": name, **best[name], "done": False})
            write_attack(out.path / FILE, behaviours, found())
        out.append({"behaviour": name, **best[name], "done": True})
  write_attack(out.path / FILE, behaviours, found())
  return found()


def _better(now: gcg.Found, best: Mapping[str, Any]) -> bool:
  """More behaviours taken up, else won, else a smaller loss."""
  if best["loss"] is None or now.active != best["active"]:
    return best["loss"] is None or now.active > best["active"]
  return (now.won, -now.loss) > (best["won"], -best["loss"])
