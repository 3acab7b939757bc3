"""Attacks the prompts of a task, and writes what `configs/attack.py` describes.

  python scripts/attack.py --config=configs/attack.py --workdir=runs/gcg \
      --config.model.path=/models/vicuna-7b --config.prompts.path=harmful_behaviors.csv
"""

import cli
from absl import flags

from rain_jax.attacks import job

_CONFIG = cli.define_config("Configuration, see configs/attack.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the attack goes.", required=True)


def main() -> None:
  """Runs the attack that the flags describe."""
  job.run(_CONFIG.value.to_dict(), _WORKDIR.value)


if __name__ == "__main__":
  cli.run(main, resumes=True)
