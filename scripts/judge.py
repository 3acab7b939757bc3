"""Judges the responses of a run that is there already; nothing is generated again.

  python scripts/judge.py --workdir=runs/llama --config.judge=harmbench=/models/harmbench,llama_guard
  python scripts/judge.py --workdir=runs/llama --config.judge=endpoint:harmless \
      --config.endpoint.url=https://api.openai.com/v1 --config.endpoint.model=gpt-4

Verdicts that are there from the same judge are kept; what it left unjudged is tried again.
"""

import cli
from absl import flags

from rain_jax.runs import directory, job
from rain_jax.runs.summary import table
from rain_jax.views import run_page

_CONFIG = cli.define_config("Judges, see configs/judge.py.", "judge")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's directory.", required=True)


def main() -> None:
  """Judges what the flags name."""
  workdir = _WORKDIR.value
  config = directory.read_manifest(workdir)["config"]
  print(table(job.judge_again(workdir, config, _CONFIG.value.to_dict())))
  print(f"\nreport in {run_page.write(workdir)}")


if __name__ == "__main__":
  cli.run(main, resumes=True)
