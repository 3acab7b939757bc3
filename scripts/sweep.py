"""Runs a configuration with many changes, and puts what came out into one table.

  python scripts/sweep.py --config=configs/demo.py --sweep=configs/sweeps/visits.py --jobs=2
  python scripts/sweep.py --config=... --sweep=... --slurm=print     the array job, to be read
  python scripts/sweep.py --config=... --sweep=... --slurm=submit    the same, handed to sbatch
  python scripts/sweep.py --config=... --sweep=... --table           what is done by now

Started again, it does what is missing.
"""

import os
import pathlib
import shlex
import subprocess
import sys

import cli
from absl import flags
from ml_collections import config_flags

from rain_jax.runs import sweeps

_CONFIG = cli.define_config("Configuration that all runs start from.")
_SWEEP = flags.DEFINE_string(
  "sweep", None, "Sweep file, see rain_jax/runs/sweeps.py.", required=True
)
_DIR = flags.DEFINE_string("dir", None, "Where runs go; runs/sweep-<name> by default.")
_SET = flags.DEFINE_multi_string("set", [], "key=value of the configuration, for every run.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)
_ONLY = flags.DEFINE_integer("only", None, "Number of the one run to make (array tasks).")
_SLURM = flags.DEFINE_enum("slurm", "", ["", "print", "submit"], "Runs as a SLURM array.")
_TABLE = flags.DEFINE_bool("table", False, "Only the table of what is done.")
_PLOT = flags.DEFINE_bool("plot", False, "A plot beside the table (needs matplotlib).")


def main() -> None:
  """Runs, submits or sums up the sweep that the flags describe."""
  changes = sweeps.load_sweep(_SWEEP.value)
  directory = _DIR.value or f"runs/sweep-{pathlib.Path(_SWEEP.value).stem}"
  config = config_flags.get_config_filename(flags.FLAGS["config"])
  for name, value in config_flags.get_override_values(flags.FLAGS["config"]).items():
    raise sweeps.SweepError(f"--config.{name}={value}: a sweep takes --set={name}={value}.")
  always = [f"--config.{one}" for one in _SET.value]
  sweep = sweeps.Sweep.open(
    directory, " ".join([config, *always]), _CONFIG.value.to_dict(), changes
  )
  generate = [sys.executable, str(cli.REPOSITORY / "scripts" / "generate.py")]

  def command(number: int) -> list[str]:
    return [*generate, f"--config={config}", *always, *sweep.flags(number)]

  if _SLURM.value:
    _slurm(sweep, directory, config)
    return
  if _ONLY.value is not None:
    if not 0 <= _ONLY.value < len(changes):
      raise sweeps.SweepError(f"--only={_ONLY.value}: expected 0 to {len(changes) - 1}.")
    if not sweep.done(_ONLY.value):
      # In place of this process: the scheduler's signals and the run's exit code pass as they are.
      os.execv(sys.executable, command(_ONLY.value))
    return
  failed = (
    []
    if _TABLE.value
    else sweeps.run_locally(sweep, command, _JOBS.value, stopping=cli.on_sigterm())
  )
  rows = sweep.collect()
  if rows:
    print(sweeps.table(rows) + f"\n\ntable in {sweep.path / sweeps.TABLE}")
  if _PLOT.value:
    sweeps.plot(rows, sweep.path / sweeps.PLOT)
  missing = [n for n in range(len(changes)) if not sweep.done(n)]
  if failed or missing:
    raise sweeps.SweepError(f"{len(missing)} of {len(changes)} runs have no results: {missing}.")


def _slurm(sweep: sweeps.Sweep, directory: str, config: str) -> None:
  """Prints or submits the array that makes the missing runs, `--jobs` at a time."""
  missing = [str(n) for n in range(len(sweep.changes)) if not sweep.done(n)]
  if not missing:
    raise sweeps.SweepError(f"{sweep.path}: nothing is missing.")
  batch = str(cli.REPOSITORY / "scripts" / "launch" / "slurm_sweep.sbatch")
  own = [f"--config={config}", f"--sweep={_SWEEP.value}", f"--dir={directory}"]
  own += [f"--set={one}" for one in _SET.value]
  command = ["sbatch", f"--array={','.join(missing)}%{_JOBS.value}", batch, *own]
  print(shlex.join(command))
  if _SLURM.value == "submit":
    try:
      subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
      raise sweeps.SweepError(f"sbatch: {error}; is this a SLURM login node?") from None


if __name__ == "__main__":
  cli.run(main, resumes=True)
