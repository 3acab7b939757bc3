"""The search compiled for four chips of a TPU that is not there; run by tpu_search_test.py."""

import sys

import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from rain_jax.experiments import benchmark
from rain_jax.models import ModelConfig, backend
from rain_jax.models.sharding import mesh_shape
from rain_jax.parallel.batch_sharding import DATA
from rain_jax.types import SearchConfig
from tests.helpers.collectives import collectives

SHAPE = ModelConfig(4096, 256, 512, 2, 4, 4, 64, eos_ids=(2,))
CALLS = 4  # places where a step calls the model, each with one loop over the layers


def main():
  tensor = int(sys.argv[1])
  devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
  workload = benchmark.Workload(prompt=64, response=32, verdict_prefix=64)
  benchmark.SHAPES["small"] = SHAPE
  with backend.target("tpu"):
    model, lm = benchmark.abstract_subject("small", "bfloat16", workload, SearchConfig())
    shape = mesh_shape(len(devices), tensor=tensor, kv_heads=model.config.num_kv_heads)
    axes = (AxisType.Auto,) * len(shape)
    mesh = Mesh(np.array(devices).reshape(*shape.values()), tuple(shape), axis_types=axes)
    kv_dtype = benchmark.model_dtype("bfloat16")
    program = benchmark.lower_search(model, lm, 4, kv_dtype, mesh, "tpu").compile()
  found = collectives(program.as_text(), len(devices))
  assert all(one.within(mesh, DATA) for one in found), found
  kinds = [one.kind for one in found]
  # Two sums in a layer, one of the embedding's parts; the logits' parts once.
  assert kinds.count("all-reduce") <= 3 * CALLS, kinds
  assert kinds.count("all-gather") <= CALLS and len(kinds) <= 4 * CALLS, kinds
  assert bool(kinds) == (tensor > 1)
  print("all checks passed")


if __name__ == "__main__":
  main()
