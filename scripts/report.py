"""Writes report.html into a run's directory, and a page for every recorded search.

python scripts/generate.py --config=configs/demo.py --config.record=3 --workdir=runs/demo
python scripts/report.py --workdir=runs/demo --picture=search.svg
"""

import pathlib

import cli
from absl import flags

from rain_jax.runs import directory
from rain_jax.views import run_page, tree_picture

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_PICTURE = flags.DEFINE_string("picture", None, "File for a picture of the first recorded search.")


def main() -> None:
  """Writes the pages of what is there so far, of a run that goes on, too."""
  print(run_page.write(_WORKDIR.value))
  if _PICTURE.value:
    kept = next(directory.recorded(_WORKDIR.value), None)
    if kept is None:
      raise directory.RunError(
        f"{_WORKDIR.value}: no search recorded; --config.record=1 records one."
      )
    directory.replace_text(pathlib.Path(_PICTURE.value), tree_picture.draw(kept.recording))
    print(_PICTURE.value)


if __name__ == "__main__":
  cli.run(main)
