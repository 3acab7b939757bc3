"""Answers prompts by RAIN and the methods it is compared with, and judges the answers.

  python scripts/generate.py --config=configs/demo.py --workdir=runs/demo
  python scripts/generate.py --config=configs/demo.py --prompt="How do I rob the ferry?" --live

Several processes, on one machine or many: docs/scale_out.md.
"""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import cli
from absl import flags
from ml_collections import config_flags

from rain_jax.experiments import compiled
from rain_jax.models import arrays
from rain_jax.parallel import hosts
from rain_jax.policy import memory_plan
from rain_jax.runs import directory, job
from rain_jax.text.printable import printable
from rain_jax.types import DataError
from rain_jax.views import live, run_page

_CONFIG = cli.define_config("Configuration, see configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results go; runs/<config> by default.")
_PROMPT = flags.DEFINE_string("prompt", None, "One prompt, instead of the task's.")
_PROFILE = flags.DEFINE_bool(
  "profile", False, "Recording a few steps, into profile/ of the workdir."
)
_PLAN = flags.DEFINE_bool("plan", False, "Print the memory that is needed, and stop.")
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "With --plan: chips that are not at hand, such as v5e:2x4 or h100."
)
_LIVE = flags.DEFINE_bool("live", False, "Show RAIN's responses as they grow, one at a time.")
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Join the processes of this run by jax.distributed."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0; left away, all three come from the environment."
)
_START_TIMEOUT = flags.DEFINE_float(
  "start_timeout", hosts.START_TIMEOUT, "Seconds that --distributed waits for all processes."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes this run has.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")


def _default_workdir() -> str:
  """`configs/demo.py:full` -> `runs/demo-full`; a prompt of one's own and --live add to that."""
  file, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
  name = pathlib.Path(file).stem + (f"-{argument}" if argument else "")
  if _PROMPT.value is not None:
    name += f"-{hashlib.sha256(_PROMPT.value.encode(errors='backslashreplace')).hexdigest()[:8]}"
  if _LIVE.value:
    name += "-live"  # one prompt at a time is another configuration
  return str(pathlib.Path("runs") / name)


def _join_processes() -> tuple[int, int, bool]:
  """Joins the processes of a run, as the flags say: number, count, connected or not."""
  count, number = _PROCESSES.value, _PROCESS.value
  mesh, coordinator = _CONFIG.value.mesh, _COORDINATOR.value
  if _DISTRIBUTED.value:
    if coordinator and count is not None and number is not None:
      hosts.take_device(number, count, mesh, coordinator)
    return (*hosts.connect(coordinator, count, number, _START_TIMEOUT.value), True)
  if coordinator:
    raise hosts.HostsError("--coordinator is for --distributed, which is not set.")
  if (count is None) != (number is None) or not 0 <= (number or 0) < (count or 1):
    raise hosts.HostsError(
      f"--process={number} of --processes={count}: expected both, the first from 0 to below the other."
    )
  hosts.take_device(number or 0, count or 1, mesh)
  return number or 0, count or 1, False


def main() -> None:
  """Runs the job that the flags describe."""
  process, processes, connected = _join_processes()
  config = _CONFIG.value
  if _PROMPT.value is not None:
    if not _PROMPT.value.strip():
      raise DataError("--prompt= is empty: give a prompt, or leave it away to run the task's own.")
    config.prompts.text = _PROMPT.value
  if _TOPOLOGY.value and not _PLAN.value:
    raise DataError(f"--topology={_TOPOLOGY.value} is for --plan, which is not set.")
  if _PLAN.value:
    _print_plans(config.to_dict())
    return
  if _LIVE.value:
    if "rain" not in config.methods:
      raise DataError("--live shows RAIN's searches: add rain to config.methods.")
    config.batch_size = 1
  workdir = _WORKDIR.value or _default_workdir()
  plain = config.to_dict()
  follower = live.Follower() if _LIVE.value else None
  done = job.run(
    plain,
    workdir,
    on_step=follower,
    stopping=cli.on_sigterm(),
    hosts=hosts.of_config(plain["mesh"], process, processes, connected),
    profile=_PROFILE.value,
  )
  if done is None:  # others have results to make; the last one writes the report
    return
  if follower and not follower.followed:
    print(
      f"nothing to show: all is answered in {workdir}; choose another --workdir to search again"
    )
  report = run_page.write(workdir)
  _show(workdir)
  print(f"\nresults in {workdir}, report in {report}")


def _print_plans(config: Mapping[str, Any]) -> None:
  """What each task needs, on the devices at hand or on the chips that --topology names."""
  if _TOPOLOGY.value:
    chip, chips = compiled.chip_of(_TOPOLOGY.value), compiled.size_of(_TOPOLOGY.value)
    where, memory = f", on each chip of {_TOPOLOGY.value}", int(chip.memory)
    plans = job.plans_for_chips(config, chip.backend, chips, memory)
  else:
    where, memory = "", arrays.bytes_available()
    plans = job.plans(config)
  for task, needed in plans.items():
    print(f"{task}, {needed.batch} prompts side by side{where}:\n{needed.table()}\n")
    memory_plan.check(needed, memory)


def _show(workdir: str) -> None:
  """Prints the answers to a prompt, side by side: one where the methods differ, if any."""
  by_prompt: dict[tuple, dict] = {}
  for result in directory.read_results(workdir):
    by_prompt.setdefault((result["task"], result["id"]), {})[result["method"]] = result
  differing = [
    answers
    for answers in by_prompt.values()
    if len({str(a.get("judged")) for a in answers.values()}) > 1
  ]
  for answers in (differing or list(by_prompt.values()))[:1]:
    print("\nprompt: " + printable(next(iter(answers.values()))["prompt"]))
    for method, result in answers.items():
      shown = result.get("error") or f"{printable(result['response'])}  {result.get('judged', '')}"
      print(f"\n{method}: {shown}")


if __name__ == "__main__":
  cli.run(main, resumes=True)
