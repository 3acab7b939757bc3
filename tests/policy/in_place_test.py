"""Loops of a compiled program write to what they carry in place (docs/performance.md, lessons)."""

import re

import jax
import jax.numpy as jnp
import pytest

from rain_jax.experiments import benchmark
from rain_jax.experiments.benchmark.lowering import Lowering
from rain_jax.models import ModelConfig
from rain_jax.types import SearchConfig

B, LAYERS, HEADS, SIZE = 2, 2, 2, 16
CONFIG = ModelConfig(512, 32, 64, LAYERS, HEADS, HEADS, SIZE, eos_ids=(2,))
WORKLOAD = benchmark.Workload(prompt=96, response=64, verdict_prefix=64, verdict_suffix=8)

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="of a CPU's program")


def copied(program: str, search: SearchConfig):
  """Shapes that a compiled program copies; and the static part of its model."""
  model, lm = benchmark.abstract_subject(CONFIG, "float32", WORKLOAD, search)
  lowered = getattr(Lowering(model, lm, B, jnp.float32), program)()
  found = re.findall(r"f32\[([\d,]+)\]\S* copy\(", lowered.compile().as_text())
  return [tuple(map(int, dims.split(","))) for dims in found], lm


def test_steps_of_a_search_copy_no_cache():
  """Layers read slices of the caches; whole ones were copied in every call that stored something."""
  found, lm = copied("search", SearchConfig(mode="adaptive", root_rows=2))
  state = jax.eval_shape(lambda: lm.init(B, jnp.float32))
  for cache in (state.proposing, state.evaluating):
    assert found and cache.context.keys.shape not in found
    assert cache.pool.keys.shape not in found
  # Keys and values of candidates and drafts: before a loop, of zeros, and not in each turn; at least
  # once, so that the shapes are those of the program.
  rows, L = 2 + lm.search.sampled_draws, lm.search.max_set_length
  assert 1 <= found.count((LAYERS, B, 1, rows, HEADS, L, SIZE)) <= 2
  assert 1 <= found.count((LAYERS, B, 2, HEADS, lm.draft_room, SIZE)) <= 4


def test_sampling_does_not_copy_what_it_has_said():
  found, lm = copied("sampling", SearchConfig())
  assert 1 <= found.count((LAYERS, B, 1, HEADS, lm.max_response, SIZE)) <= 2
