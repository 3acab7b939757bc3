"""Compiles a benchmark's programs for a TPU that is not there, and prices them.

python scripts/compile.py --config=configs/benchmark.py:8b --topology=v5e:2x4
"""

import cli
import jax
from absl import flags

from rain_jax import types
from rain_jax.experiments import benchmark, compiled
from rain_jax.experiments.compiled import report
from rain_jax.types import DataError

_CONFIG = cli.define_config("What is compiled, see configs/benchmark.py.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Chips of a slice, such as v5e:2x4 or v5p:2x2x1.")
_TENSOR = flags.DEFINE_integer("tensor", None, "Chips that hold a model; as few as it needs.")
_BATCH = flags.DEFINE_integer(
  "batch", None, "Prompts side by side; the most of the config's that fit."
)
_LARGEST = flags.DEFINE_integer("largest", 0, "How many of the largest movements to list.")
flags.mark_flags_as_required(["config", "topology"])


def main() -> None:
  """Compiles what the flags describe; the host's processor does all of the work."""
  compiled.chip_of(_TOPOLOGY.value)
  jax.config.update("jax_platforms", "cpu")
  config = _CONFIG.value.to_dict()
  methods = [name for name in config["methods"] if name in compiled.METHODS]
  batches = config["batches"] if _BATCH.value is None else (_BATCH.value,)
  if not methods or min(batches) < 1:
    raise DataError(
      f"methods={config['methods']} with {batches} prompts side by side: expected some of"
      f" {', '.join(compiled.METHODS)}, and 1 prompt or more."
    )
  search = types.SearchConfig(**config["search"])
  leaf_parallel = types.SearchConfig(**{**config["search"], **config["leaf_parallel"]})
  searches = {"rain": search, "leaf_parallel": leaf_parallel}
  verdicts = [name for name in config["verdicts"] if name != "model"]  # a small model's say nothing
  for name in config["models"]:
    target = compiled.target(
      name,
      config["dtype"],
      benchmark.Workload(**config["workload"]),
      batches,
      {k: v for k, v in searches.items() if k in methods} or {"rain": search},
      _TOPOLOGY.value,
      _TENSOR.value,
    )
    print(report.head(target), flush=True)
    done = []
    for one in compiled.programs(target, methods):
      print(f"{one.method} {one.program}: compiled in {one.compiling:.0f} s", flush=True)
      if one.refused:
        print(f"{one.method} {one.program} does not fit: {one.refused}", flush=True)
      done.append(one)
    print(report.compiling(done))
    print(report.phases(target, done))
    if _LARGEST.value:
      print(report.movements(done, _LARGEST.value))
    print(report.speeds(target, done, verdicts, config["mixed_share"]))


if __name__ == "__main__":
  cli.run(main)
