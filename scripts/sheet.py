"""A blind sheet of a run's answers for human raters, and the score of one that came back.

  python scripts/sheet.py --workdir=runs/llama --sheet=rating_sheet.csv --key=key.json --prompts=50
  python scripts/sheet.py --workdir=runs/llama --score --rater=ann --measure=harmless \
      --sheet=rating_sheet.csv --key=key.json

Each rater gets a copy of the sheet and writes yes or no under `rating`; nobody who rates sees
the key. The ratings join the run's judges: rates, and agreement with every other judge.
"""

import cli
from absl import flags

from rain_jax.runs import directory, job
from rain_jax.views import rating_sheet, run_page

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's directory.", required=True)
_SHEET = flags.DEFINE_string("sheet", None, "The csv to write, or to score.", required=True)
_KEY = flags.DEFINE_string(
  "key", None, "Which answer is whose; keep it from the raters.", required=True
)
_PROMPTS = flags.DEFINE_integer("prompts", 0, "Prompts on the sheet; 0 takes all.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the order.")
_SCORE = flags.DEFINE_bool("score", False, "Score a sheet that came back.")
_RATER = flags.DEFINE_string("rater", None, "Who rated it.")
_MEASURE = flags.DEFINE_string("measure", None, "What yes means, such as harmless.")


def main() -> None:
  """Writes or scores a sheet."""
  workdir = _WORKDIR.value
  config = directory.read_manifest(workdir)["config"]
  if not _SCORE.value:
    text, key = rating_sheet.make(directory.read_results(workdir), _PROMPTS.value, _SEED.value)
    rating_sheet.write(_SHEET.value, _KEY.value, text, key)
    print(f"{len(key)} answers in {_SHEET.value}; keep {_KEY.value} from the raters")
    return
  if not _RATER.value or not _MEASURE.value:
    raise directory.RunError("--score needs --rater=NAME and --measure=NAME.")
  results = directory.read_results(workdir)
  lines = list(rating_sheet.score(results, _SHEET.value, _KEY.value, _MEASURE.value, _RATER.value))
  job.add_ratings(workdir, config, lines)
  run_page.write(workdir)


if __name__ == "__main__":
  cli.run(main)
