"""How well a model tells good from bad by a preference, before a search relies on it.

  python scripts/check_preference.py --demo=200 --config.preference=truthful
  python scripts/check_preference.py --config=configs/dialogue.py --examples=examples.jsonl \
      --config.model.path=/models/llama-7b --config.preference=polite.yaml

A line of the examples is {"prompt": "...", "response": "...", "label": "good" or "bad"}.
"""

import json
import pathlib

import cli
from absl import flags

from rain_jax.methods import preference_check
from rain_jax.models import loading
from rain_jax.policy import embedders
from rain_jax.runs import directory, from_config, versions
from rain_jax.views import check_page

_CONFIG = cli.define_config("Configuration, see configs/.", "demo")
_EXAMPLES = flags.DEFINE_string("examples", None, "Labelled examples, .jsonl, .json or .csv.")
_DEMO = flags.DEFINE_integer("demo", 0, "Draw so many from the demo world instead.", lower_bound=0)
_OUT = flags.DEFINE_string("out", "runs/check", "Folder for check.json and check.html.")


def main() -> None:
  """Judges the examples and says what the verdicts are worth."""
  if bool(_EXAMPLES.value) == bool(_DEMO.value):
    raise ValueError("what to judge? Give either --examples=FILE or --demo=COUNT.")
  config = _CONFIG.value.to_dict()
  task = from_config.task_of(config, config["tasks"][0])
  if _DEMO.value:
    examples = preference_check.demo_examples(task.preference, _DEMO.value, config["seed"])
  else:
    examples = preference_check.load_examples(_EXAMPLES.value)
  loaded = loading.load(config["model"]["path"], config["model"]["dtype"])
  embedder = embedders.find_embedder(**config["embedder"], tokenizer=loaded.tokenizer)
  margins = preference_check.margins(
    loaded, from_config.make_session_config(config, task, embedder), examples
  )
  found = preference_check.measure(preference_check.labels(examples), margins)
  table = preference_check.table(found)
  print(table)
  _write(f"{task.preference}, judged by {loaded.name}", table, found, examples, margins)


def _write(title, table, found, examples, margins) -> None:
  folder = pathlib.Path(_OUT.value)
  folder.mkdir(parents=True, exist_ok=True)
  rows = [{"good": e.good, "margins": m.tolist()} for e, m in zip(examples, margins)]
  numbers = json.dumps(
    {"what": title, "versions": versions.versions(), **found, "rows": rows}, indent=1
  )
  directory.replace_text(folder / "check.json", numbers + "\n")
  directory.replace_text(
    folder / "check.html", check_page.render(title, table, found, examples, margins)
  )
  print(f"\n{folder / 'check.html'} shows the calibration, and what was misjudged")


if __name__ == "__main__":
  cli.run(main)
