"""What a CPU's programs do without: copies of what loops carry, and products that nothing reads.

See docs/performance.md, lessons.
"""

import re

import jax
import pytest

from rain_jax.experiments import benchmark
from rain_jax.experiments.benchmark.lowering import Lowering
from rain_jax.models import ModelConfig
from rain_jax.types import SearchConfig

B, LAYERS, HEADS, SIZE = 2, 2, 2, 16
CONFIG = ModelConfig(512, 32, 64, LAYERS, HEADS, HEADS, SIZE, eos_ids=(2,))
WORKLOAD = benchmark.Workload(prompt=96, response=64, verdict_prefix=64, verdict_suffix=8)
ARRAYS = 2 * LAYERS  # keys and values of each layer

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="of a CPU's program")


def copied(program: str, search: SearchConfig):
  """Shapes that a compiled program copies, its text, and the static part of its model."""
  model, lm = benchmark.abstract_subject(CONFIG, "float32", WORKLOAD, search)
  lowered = getattr(Lowering(model, lm, B), program)()
  # As users compile it: the older emitters, which tests have, do not copy paths.
  text = lowered.compile({"xla_cpu_use_fusion_emitters": True}).as_text()
  found = re.findall(r"f32\[([\d,]+)\]\S* copy\(", text)
  return [tuple(map(int, dims.split(","))) for dims in found], text, lm


def test_steps_of_a_search_copy_no_cache():
  found, text, lm = copied("search", SearchConfig(mode="adaptive", root_rows=2))
  search, L = lm.search, lm.search.max_set_length
  context = (1, B, HEADS, lm.max_prompt + lm.max_response + L, SIZE)
  pool = (1, B, search.max_visited, HEADS, L, SIZE)
  for cache in (context, pool):
    # So that the shapes are those of the program.
    assert f"f32[{','.join(map(str, cache))}]" in text
    assert cache not in found and cache[1:] not in found
  # Paths are put in order once they are gathered, for each of three calls, but not for each layer and
  # token again.
  path = search.max_path
  assert 1 <= found.count((1, B, 1, HEADS, path, L, SIZE)) <= 3 * ARRAYS
  assert not [shape for shape in found if shape[-2:] == (path * L, SIZE)]
  # Keys and values of candidates and drafts: before a loop, of zeros, and not in each turn.
  rows = 2 + search.sampled_draws
  assert 1 <= found.count((1, B, 1, rows, HEADS, L, SIZE)) <= ARRAYS
  assert 1 <= found.count((1, B, 2, HEADS, lm.draft_room, SIZE)) <= 2 * ARRAYS


def test_sampling_does_not_copy_what_it_has_said():
  found, _, lm = copied("sampling", SearchConfig())
  assert 1 <= found.count((1, B, 1, HEADS, lm.max_response, SIZE)) <= ARRAYS


@pytest.mark.parametrize("mode,hidden", [("exact", 0), ("adaptive", 1)])
def test_prompts_are_read_no_further_than_to_what_is_kept_of_them(mode, hidden):
  """Of the last layer keys and values, and of a prompt that drafts follow its hidden state."""
  _, text, lm = copied("begin", SearchConfig(mode=mode))
  inner = rf"f32\[{lm.max_prompt},{CONFIG.intermediate_size}\]\S* dot\("  # gate, and up
  assert len(re.findall(inner, text)) == 2 * (2 * (LAYERS - 1) + hidden)
