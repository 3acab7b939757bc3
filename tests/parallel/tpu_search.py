"""The search compiled for four chips of a TPU that is not there; run by tpu_search_test.py."""

import sys

import jax

from rain_jax.experiments import benchmark, compiled
from rain_jax.experiments.compiled import hlo, pricing
from rain_jax.models import ModelConfig, backend
from rain_jax.parallel.batch_sharding import DATA
from rain_jax.types import SearchConfig

SHAPE = ModelConfig(4096, 256, 512, 2, 4, 4, 64, eos_ids=(2,))
ROWS = 8


def main():
  jax.config.update("jax_platforms", "cpu")
  benchmark.SHAPES["small"] = SHAPE
  workload = benchmark.Workload(prompt=64, response=32, verdict_prefix=64)
  search = SearchConfig()
  target = compiled.target(
    "small", "bfloat16", workload, [ROWS], {"rain": search}, "v5e:2x2", int(sys.argv[1])
  )
  with backend.target("tpu"):
    program = target.lowering(search).search().compile()
  mesh, tensor = target.mesh.shape, target.chips
  for one in hlo.collectives(hlo.parse(program.as_text()), target.mesh.size):
    assert DATA not in one.axes(mesh), one
  phases = pricing.price(program, mesh, sampling=False).phases
  assert {"step", "context", "candidates", "rollout", "verdict"} <= phases.keys(), phases
  logits = {"context": 1, "candidates": 11, "rollout": 1, "verdict": 2}  # rows of each prompt
  for name, rows in logits.items():
    numbers = {kind: n for (kind, _), (n, _) in phases[name].exchanged.items()}
    sizes = {kind: size for (kind, _), (_, size) in phases[name].exchanged.items()}
    if tensor == 1:
      assert not numbers, (name, numbers)
      continue
    # Two sums in a layer, one of the embedding's parts; the logits' parts once.
    assert numbers.keys() <= {"all-reduce", "all-gather"}, (name, numbers)
    assert numbers["all-reduce"] <= 2 * SHAPE.num_layers + 1, (name, numbers)
    assert numbers.get("all-gather", 0) <= 1, (name, numbers)
    whole = 4 * ROWS // mesh[DATA] * rows * SHAPE.vocab_size
    assert sizes.get("all-gather", 0) <= whole, (name, sizes, whole)
  print("all checks passed")


if __name__ == "__main__":
  main()
