"""A program compiled for chips that are not there; run by compiled_programs_test.py.

Arguments: a topology; sampling, search or drafts (of the adaptive mode); chips that hold the model; small, or large for one that the chips'
own memory does not hold, so that bytes count.
"""

import math
import sys

import jax

from rain_jax.experiments import benchmark, compiled
from rain_jax.experiments.compiled import hlo, pricing
from rain_jax.methods.adaptive import with_drafts
from rain_jax.models import ModelConfig, backend
from rain_jax.parallel.batch_sharding import DATA
from rain_jax.types import SearchConfig

SHAPES = {
  "small": ModelConfig(4096, 256, 512, 2, 4, 4, 64, eos_ids=(2,)),
  "large": ModelConfig(32768, 2048, 8192, 4, 32, 8, 64, eos_ids=(2,)),
}
ROWS = 8
# Rows of logits in a call for each prompt, and tokens drawn from the whole vocabulary in it.
CALLS = {
  "sampling": (1, 1),
  "context": (1, 0),
  "candidates": (11, 1),
  "rollout": (1, 1),
  "verdict": (2, 0),
}
# Calls of each kind in a step, about; the rest of the step once.
STEP = {"context": 1, "candidates": 5, "rollout": 8, "verdict": 1, "step": 1}


def check_collectives(name, cost, config, rows):
  """Two sums in a layer and one of the embedding's parts; of the logits, what was found in each part."""
  logits, drawn = CALLS[name]
  kinds = {kind for kind, _ in cost.exchanged}
  assert kinds <= {"all-reduce", "all-gather"}, (name, cost.exchanged)
  total = lambda kind, place: sum(v[place] for k, v in cost.exchanged.items() if k[0] == kind)
  assert total("all-reduce", 0) <= 2 * config.num_layers + 1 + drawn, (name, cost.exchanged)
  assert total("all-gather", 0) <= 2, (name, cost.exchanged)
  # A few numbers of each row, padded to 128; all of the logits are more even in a vocabulary this small.
  assert total("all-gather", 1) < 4 * rows * logits * config.vocab_size / 2, (name, cost.exchanged)


def check_copies(program, priced, config, chips, slots):
  """No call writes as much as a layer's smallest matrix has; no keys of several segments are joined."""
  weight = config.hidden_size * config.num_kv_heads * config.head_size // chips
  for one in priced.largest:
    for shape in one.instruction.shapes:
      assert math.prod(shape.dims) < weight, one
  for computation in program.computations.values():
    for one in computation.instructions.values():
      joined = one.opcode == "concatenate" and any(slots in shape.dims for shape in one.shapes)
      assert not joined, one


def main():
  topology, program, tensor, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
  jax.config.update("jax_platforms", "cpu")
  config = SHAPES[size]
  workload = benchmark.Workload(prompt=64, response=32, verdict_prefix=64)
  search = SearchConfig(search_below=-1.0, draft_length=8, root_rows=4)
  search = with_drafts(search) if program == "drafts" else search
  searches = {"rain": search}
  target = compiled.target(size, config, "bfloat16", workload, [ROWS], searches, topology, tensor)
  with backend.target(target.chip.backend):
    lowering = target.lowering(search)
    lowered = lowering.sampling() if program == "sampling" else lowering.search()
    done = lowered.compile(target.chip.options)
  mesh = target.mesh.shape
  parsed = hlo.parse(done.as_text())
  for one in hlo.collectives(parsed, target.mesh.size):
    assert DATA not in one.axes(mesh), one
  priced = pricing.price(done, mesh, sampling=program == "sampling")
  phases = priced.phases
  expected = {
    "sampling": {"sampling"},
    "search": {*CALLS, "step"} - {"sampling"},
    "drafts": {"step", "draft context", "draft", "draft verdict"},
  }[program]
  assert phases.keys() == expected, phases
  floor = target.floor(search)
  for name, cost in phases.items():
    print(f"{name}: {cost.moved / floor:.2f} of its floor, {dict(cost.exchanged)}")
    if target.chips == 1:
      assert not cost.exchanged, (name, cost.exchanged)
    elif name in CALLS:
      check_collectives(name, cost, config, ROWS // mesh[DATA])
  if size == "large":
    # Weights that stay on the chip from call to call are not read again.
    if program == "sampling":
      assert 0.5 < phases["sampling"].moved / floor < 1.15, phases
      if target.chip.backend == "gpu":
        slots = workload.prompt + workload.response
        check_copies(parsed, priced, config, target.chips, slots)
    else:
      calls = sum(times for name, times in STEP.items() if name != "step")
      moved = sum(times * phases[name].moved for name, times in STEP.items())
      # A card's program writes the attention's scores and reads them again.
      most = 1.5 if target.chip.backend == "tpu" else 1.6
      assert 0.5 < moved / (calls * floor) < most, moved / (calls * floor)
  print("all checks passed")


if __name__ == "__main__":
  main()
