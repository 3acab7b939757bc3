"""Measures what RAIN costs: a table, plots and benchmark.json; see docs/performance.md.

python scripts/benchmark.py --config=configs/benchmark.py:demo --workdir=runs/benchmark
"""

import contextlib
import json
import pathlib

import cli
import jax
import side_by_side
from absl import flags

from rain_jax import types
from rain_jax.experiments import benchmark
from rain_jax.experiments.benchmark import roofline
from rain_jax.models import arrays, backend
from rain_jax.parallel import workers
from rain_jax.policy import memory_plan
from rain_jax.runs.files import replace_text
from rain_jax.types import DataError

_CONFIG = cli.define_config("What is measured, see configs/benchmark.py.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/benchmark", "Where the results go.")
_PLAN = flags.DEFINE_bool("plan", False, "Print the memory that is needed, and stop.")
_TRACE = flags.DEFINE_string("trace", None, "Folder for a profile of the whole measurement.")


def main() -> None:
  """Measures what the flags describe."""
  config = _CONFIG.value.to_dict()
  for name, least in (("batches", min(config["batches"])), ("repeats", config["repeats"])):
    if least < 1:
      raise DataError(f"{name}={config[name]}: expected 1 or more.")
  search = types.SearchConfig(**config["search"])
  leaf_parallel = types.SearchConfig(**{**config["search"], **config["leaf_parallel"]})
  if _PLAN.value:
    _print_plans(config, leaf_parallel)
    return
  trace = jax.profiler.trace(_TRACE.value) if _TRACE.value else contextlib.nullcontext()
  with trace:
    results = {
      "rows": _rows,
      "scaling": _scaling,
      "side_by_side": _side_by_side,
      "memory": _memory,
    }[config["mode"]](config, search, leaf_parallel)
  folder = _save(config, results)
  _plot(results, folder)
  print(f"results in {folder}")


def _print_plans(config, search) -> None:
  """The largest batch of every model; stops at the first that does not fit."""
  for name in config["models"]:
    needed = _planned(name, max(config["batches"]), config, search)
    print(f"{name}, {config['dtype']}, batch {max(config['batches'])}\n{needed.table()}\n")
    memory_plan.check(needed, arrays.bytes_available(), memory_plan.BENCHMARK)


def _rows(config, search, leaf_parallel) -> dict:
  machine = roofline.measure_machine(config["dtype"])
  print(
    f"copy {machine.bytes_per_second / 1e9:.1f} GB/s, matrices {machine.flops_per_second / 1e9:.0f} GFLOP/s"
  )
  rows, phases = [], []
  for name in config["models"]:
    workload = benchmark.Workload(**config["workload"])
    subject = benchmark.find_subject(name, config["dtype"], workload, search)
    for batch in config["batches"]:
      methods = _fitting(name, batch, config, search, leaf_parallel)
      found = benchmark.rows(
        subject,
        batch,
        methods,
        config["verdicts"],
        search,
        leaf_parallel,
        config["repeats"],
        config["mixed_share"],
      )
      print(benchmark.table(found), flush=True)
      rows += found
      phases += roofline.phases(subject, batch, machine)
      _save(config, {"rows": rows, "machine": vars(machine), "phases": phases})
    print(roofline.table([p for p in phases if p["model"] == name]), flush=True)
  return {"rows": rows, "machine": vars(machine), "phases": phases}


def _fitting(name, batch, config, search, leaf_parallel) -> list[str]:
  """The methods whose memory there is; says which are left out, and why."""
  # Best-of-N searches, too: it is given what the exact search forwards.
  needs = {**benchmark.searches(search, leaf_parallel), "best_of_n": search}
  methods = []
  for method in config["methods"]:
    try:
      if method in needs:
        needed = _planned(name, batch, config, needs[method])
        memory_plan.check(needed, arrays.bytes_available(), memory_plan.BENCHMARK)
      methods.append(method)
    except ValueError as error:
      print(f"{name}, batch {batch}: {method} is left out: {error}", flush=True)
  return methods


def _planned(name, batch, config, search) -> memory_plan.Plan:
  shape = benchmark.shape_of("demo_shape" if name == "demo" else name)
  workload = benchmark.Workload(**config["workload"])
  model, lm = benchmark.abstract_subject(shape, config["dtype"], workload, search)
  count, slots = workers.layout(backend.in_caches(model.params), batch)
  return memory_plan.plan(model, lm, count * slots, benchmark.abstract_tables(model))


def _scaling(config, search, _) -> dict:
  points = benchmark.scaling(
    config["models"][0],
    config["dtype"],
    benchmark.Workload(**config["workload"]),
    search,
    {k: v for k, v in config["scaling"].items() if k != "steps"},
    config["scaling"]["steps"],
    config["repeats"],
  )
  for point in points:
    print(f"{point['varied']} {point['size']}: {1000 * point['seconds_per_step']:.1f} ms per step")
  return {"rows": [], "scaling": points}


def _memory(config, search, leaf_parallel) -> dict:
  workload = benchmark.Workload(**config["workload"])
  searches = (search, leaf_parallel)
  found = []
  for row in benchmark.memory_rows(
    config["models"], config["dtype"], config["batches"], workload, searches
  ):
    print(benchmark.memory_line(row), flush=True)
    found.append(row)
  return {"rows": [], "memory": found}


def _side_by_side(config, search, _) -> dict:
  workload = benchmark.Workload(**config["workload"])
  rows = []
  for name in config["models"]:
    rows += side_by_side.rows(name, config["batches"], workload, search, config["repeats"])
  print(benchmark.table(rows))
  return {"rows": rows}


def _save(config, results) -> pathlib.Path:
  """Writes what has been measured so far; returns the folder."""
  folder = pathlib.Path(_WORKDIR.value)
  folder.mkdir(parents=True, exist_ok=True)
  whole = {**benchmark.hardware(), "dtype": config["dtype"], **results, "config": config}
  replace_text(folder / "benchmark.json", json.dumps(whole, indent=1) + "\n")
  return folder


def _plot(results, folder: pathlib.Path) -> None:
  """One picture per sweep, and one of the rows; nothing where matplotlib is not installed."""
  try:
    from matplotlib import pyplot
  except ImportError:
    print("no plots: pip install matplotlib")
    return
  if results["rows"]:
    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(results["rows"]) + 1))
    labels = [f"{r['model']} {r['mode']} {r['verdicts']} b{r['batch']}" for r in results["rows"]]
    axes.barh(labels, [1000 * r["seconds_per_token"] for r in results["rows"]])
    axes.set(xlabel="ms per response token", xscale="log")
    axes.invert_yaxis()
    figure.savefig(folder / "rows.png", bbox_inches="tight")
  for varied in sorted({p["varied"] for p in results.get("scaling", ())}):
    points = [p for p in results["scaling"] if p["varied"] == varied]
    figure, axes = pyplot.subplots(figsize=(5, 3.5))
    axes.plot([p["size"] for p in points], [1000 * p["seconds_per_step"] for p in points], "o-")
    axes.set(xlabel=varied, ylabel="ms per step", ylim=(0, None))
    figure.savefig(folder / f"scaling_{varied}.png", bbox_inches="tight")


if __name__ == "__main__":
  cli.run(main)
