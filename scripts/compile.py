"""Compiles the programs of a benchmark or a run for chips that are not there, and prices them.

python scripts/compile.py --config=configs/benchmark.py:8b --topology=v5e:2x4
python scripts/compile.py --config=configs/demo.py --topology=v5e:2x2
python scripts/compile.py --config=configs/demo.py --topology=h100
"""

import dataclasses

import cli
import jax
from absl import flags

from rain_jax.experiments import compiled
from rain_jax.experiments.compiled import report
from rain_jax.types import DataError

_CONFIG = cli.define_config("What is compiled, see configs/.")
_TOPOLOGY = flags.DEFINE_string(
  "topology",
  None,
  "Chips of a slice, such as v5e:2x4, or cards of a host, such as h100 or h100:8.",
  required=True,
)
_TENSOR = flags.DEFINE_integer(
  "tensor", None, "Chips that hold a model; a run's mesh.tensor, or as few as it needs."
)
_BATCH = flags.DEFINE_integer(
  "batch", None, "Prompts side by side; the most of the config's that fit."
)
_LARGEST = flags.DEFINE_integer("largest", 0, "How many of the largest movements to list.")


def main() -> None:
  """Compiles what the flags describe; the host's processor does all of the work."""
  compiled.chip_of(_TOPOLOGY.value)
  jax.config.update("jax_platforms", "cpu")
  given: dict = {}
  if _BATCH.value is not None:
    if _BATCH.value < 1:
      raise DataError(f"--batch={_BATCH.value}: expected 1 prompt or more.")
    given["batches"] = (_BATCH.value,)
  if _TENSOR.value is not None:
    given["tensor"] = _TENSOR.value
  for asked in compiled.asked_of(_CONFIG.value.to_dict(), _TOPOLOGY.value):
    asked = dataclasses.replace(asked, **given)
    target = asked.target(_TOPOLOGY.value)
    print(report.head(target), flush=True)
    done = []
    for one in compiled.programs(target, asked.methods):
      print(f"{one.method} {one.program}: compiled in {one.compiling:.0f} s", flush=True)
      if one.refused:
        print(f"{one.method} {one.program} does not fit: {one.refused}", flush=True)
      done.append(one)
    print(report.compiling(done))
    print(report.phases(target, done))
    if _LARGEST.value:
      print(report.movements(done, _LARGEST.value))
    print(report.speeds(target, done, asked.verdicts, asked.mixed_share))


if __name__ == "__main__":
  cli.run(main)
