"""How well a model tells good from bad by a preference, before a search relies on it.

  python scripts/check_preference.py --demo=200 --config.preference=truthful
  python scripts/check_preference.py --config=configs/dialogue.py --examples=examples.jsonl \
      --config.model.path=/models/llama-7b --config.preference=polite.yaml
  python scripts/check_preference.py --examples=examples.jsonl --forms=all ...   which form to take
  python scripts/check_preference.py --examples=examples.jsonl --fit=offsets.yaml ...
                                     fits a calibration on a half, for config.calibration
  python scripts/check_preference.py --config.prompts.path=prompts.jsonl --fit=offsets.yaml ...
                                     without labels, on responses of the model's own

A line of the examples is {"prompt": "...", "response": "...", "label": "good" or "bad"}.
"""

import json
import pathlib

import cli
from absl import flags

from rain_jax import preferences
from rain_jax.methods import preference_check
from rain_jax.runs import check, config_check, directory, from_config, versions
from rain_jax.views import check_page

_CONFIG = cli.define_config("Configuration, see configs/.", "demo")
_EXAMPLES = flags.DEFINE_string("examples", None, "Labelled examples, .jsonl, .json or .csv.")
_DEMO = flags.DEFINE_integer("demo", 0, "Draw so many from the demo world instead.", lower_bound=0)
_FORMS = flags.DEFINE_enum("forms", "one", ["one", "all"], "Check one form, or compare all.")
_FIT = flags.DEFINE_string(
  "fit", None, "Write a calibration here; without examples it needs prompts."
)
_LABELS = flags.DEFINE_bool(
  "labels", True, "Fit on half of the examples, or without labels on none."
)
_OUT = flags.DEFINE_string("out", "runs/check", "Folder for check.json and check.html.")


def main() -> None:
  """Judges the examples and says what the verdicts are worth."""
  named = bool(_EXAMPLES.value) + bool(_DEMO.value)
  if named != 1 and not (_FIT.value and not named):
    raise ValueError("what to judge? Give either --examples=FILE or --demo=COUNT.")
  if _FORMS.value == "all" and (_FIT.value or not named):
    raise ValueError("--forms=all compares, --fit=FILE fits one form; give one of them at a time.")
  config = _CONFIG.value.to_dict()
  config_check.check(config, fitting=True)
  if _FIT.value:
    config["calibration"] = ""
  examples = preference_check.load_examples(_EXAMPLES.value) if _EXAMPLES.value else []
  loaded = from_config.load_on(config)
  if _DEMO.value:
    task = from_config.task_of(config, config["tasks"][0])
    preference = preferences.load_preference(task.preference, loaded.judging.tokenizer)
    examples = preference_check.demo_examples(
      preference.name, _DEMO.value, config["seed"], loaded.name
    )
  if not named:
    _write_fit(check.fit(config, loaded))
  elif _FORMS.value == "all":
    print(check.comparison(check.compare(config, loaded, examples)))
  else:
    _check(config, loaded, examples)


def _check(config, loaded, examples) -> None:
  session_config = check.session_config_of(config, loaded)
  found = preference_check.check(loaded, session_config, examples, _LABELS.value, config["seed"])
  table = check.table(found)
  print(table)
  title = f"{found.preference}, judged by {loaded.judging.name}"
  folder = pathlib.Path(_OUT.value)
  folder.mkdir(parents=True, exist_ok=True)
  numbers = {"what": title, "versions": versions.versions(), **check.as_json(found)}
  directory.replace_text(folder / "check.json", json.dumps(numbers, indent=1) + "\n")
  directory.replace_text(folder / "check.html", check_page.render(title, table, found, examples))
  print(f"\n{folder / 'check.html'} shows the calibration, and what was misjudged")
  if _FIT.value:
    _write_fit(found.calibration)


def _write_fit(calibration) -> None:
  assert _FIT.value, "nobody asked for a fit"
  if calibration is None:
    raise ValueError("--fit: the examples are of one label only; expected good and bad ones.")
  directory.replace_text(pathlib.Path(_FIT.value), calibration.as_yaml())
  print(f"{_FIT.value}: {calibration.preference} {calibration.described()}")


if __name__ == "__main__":
  cli.run(main)
