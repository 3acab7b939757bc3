"""The memory plan against what the compiler reports."""

import gc

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from rain_jax import api
from rain_jax.experiments import benchmark
from rain_jax.methods.registry import METHODS
from rain_jax.methods.session import Session
from rain_jax.models import arrays, backend, loading
from rain_jax.policy import memory_plan
from rain_jax.tasks import Record
from rain_jax.types import SearchConfig

WORKLOAD = benchmark.Workload(prompt=96, response=64, verdict_prefix=300, verdict_suffix=20)


def planned(name: str, batch: int, dtype: str = "float32", **search):
  model, lm = benchmark.abstract_subject(
    benchmark.shape_of(name), dtype, WORKLOAD, SearchConfig(**search)
  )
  return model, lm, memory_plan.plan(model, lm, batch, benchmark.abstract_tables(model))


def test_total_is_within_a_tenth_of_the_compiled_program():
  model, lm, needed = planned("demo_shape", 8)
  assert needed.total == pytest.approx(benchmark.compiled_bytes(model, lm, 8), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["segments", "adaptive"])
def test_total_with_drafts_is_within_a_tenth_of_the_compiled_program(mode):
  search = METHODS[mode].search(SearchConfig())
  model, lm = benchmark.abstract_subject(
    benchmark.shape_of("demo_shape"), "float32", WORKLOAD, search
  )
  needed = memory_plan.plan(model, lm, 8, benchmark.abstract_tables(model))
  assert needed.total == pytest.approx(benchmark.compiled_bytes(model, lm, 8), rel=0.1)


@pytest.mark.parametrize(
  "shape,leaves,batch,data,tensor,compiled",  # MiB on each chip by libtpu 0.0.42.1
  [
    ("1b", 1, 32, 4, 1, 5_084),
    ("1b", 16, 32, 4, 1, 13_819),
    ("8b", 1, 32, 4, 2, 11_817),
    ("8b", 1, 16, 4, 2, 10_229),
    ("8b", 16, 16, 4, 2, 13_325),
  ],
)
def test_total_is_within_a_tenth_of_what_compile_py_says_of_tpus(
  shape, leaves, batch, data, tensor, compiled
):
  """`python scripts/compile.py --config=configs/benchmark.py:8b --topology=v5e:2x4 --batch=16`."""
  axes = (AxisType.Auto,) * 2
  mesh = AbstractMesh((data, tensor), ("data", "tensor"), axis_types=axes)
  workload = benchmark.Workload(512, 48, 700, 24)  # as in the config
  search = SearchConfig(max_nodes=1024, max_visited=96, leaves=leaves, early_commit=leaves > 1)
  with backend.target("tpu"):
    model, lm = benchmark.abstract_subject(benchmark.shape_of(shape), "bfloat16", workload, search)
    tables = benchmark.abstract_tables(model)
    found = memory_plan.plan(model, lm, batch, tables, mesh=mesh).total
  assert found / 2**20 == pytest.approx(compiled, rel=0.1)


def test_drafts_are_planned_for():
  _, _, exact = planned("demo_shape", 4)
  _, lm, adaptive = planned("demo_shape", 4, mode="adaptive", root_rows=16)
  _, _, wide = planned("demo_shape", 4, mode="adaptive", root_rows=64)
  token = 2 * 4 * lm.config.num_layers * lm.config.num_kv_heads * lm.config.head_size
  held = adaptive.parts["best drafts"]
  assert 2 * 4 * token * lm.max_response <= held < 2.1 * 4 * token * lm.max_response
  assert exact.parts.keys() == adaptive.parts.keys() - {"best drafts"}
  same = adaptive.parts.keys() - {"best drafts", "temporaries of a step"}
  assert all(wide.parts[name] == adaptive.parts[name] for name in same)
  passing = "temporaries of a step"
  assert wide.parts[passing] > 3.5 * adaptive.parts[passing] > exact.parts[passing]
  _, _, short = planned("demo_shape", 4, mode="adaptive", root_rows=64, draft_length=4)
  assert short.parts["best drafts"] < 0.1 * held and lm.max_response >= 48
  assert short.parts[passing] < 0.9 * wide.parts[passing]


def test_weights_are_held_once_however_many_sessions_there_are(checkpoint):
  gc.collect()
  before = _live()
  loaded = loading.load(str(checkpoint))
  weights = arrays.nbytes(loaded.model.params)
  assert isinstance(loaded.model.params["layers"], tuple) == (jax.default_backend() == "cpu")
  assert weights <= _live() - before < 1.01 * weights
  session_config = api.make_session_config(
    "harmless", api.Config(search=dict(max_nodes=64, max_visited=8))
  )
  one, two = (Session(loaded, session_config, [Record("0", "the cat")]) for _ in range(2))
  added = _live() - before - weights
  parts = two.plan().parts
  kept = parts["weights"] + parts["prefixes"] + parts["vocabulary tables"]
  assert added / 2 + weights == pytest.approx(kept, rel=0.1)
  del one


def _live() -> int:
  return sum(array.nbytes for array in jax.live_arrays())


def test_weights_are_exact_in_every_dtype():
  full = planned("7b", 1)[2].parts["weights"]
  assert full == 4 * 6_738_415_616  # parameters of LLaMA 7B
  assert planned("7b", 1, "bfloat16")[2].parts["weights"] == full // 2
  eight = planned("7b", 1, "int8")[2].parts["weights"]
  assert full / 4 < eight < 1.01 * full / 4  # scales and norms stay float32


def test_one_tree_costs_at_most_twice_its_live_tokens_in_keys_and_values():
  workload = benchmark.Workload(prompt=512, response=256)
  model, lm = benchmark.abstract_subject(
    benchmark.shape_of("7b"), "bfloat16", workload, SearchConfig()
  )
  parts = memory_plan.plan(model, lm, 1, benchmark.abstract_tables(model)).parts
  token = 2 * 2 * 32 * 4096
  # In both caches prompt and response, and half of the slots for visited nodes.
  live = 2 * (512 + 256 + 96 * 10 // 2)
  shared = ("weights", "prefixes", "vocabulary tables")
  assert sum(parts[name] for name in parts if name not in shared) <= 2 * live * token


def test_every_part_grows_with_what_it_is_for():
  few, many = planned("demo_shape", 1)[2].parts, planned("demo_shape", 4)[2].parts
  for name in few:
    fixed = name in ("weights", "prefixes", "vocabulary tables")
    assert (many[name] == few[name]) if fixed else (many[name] > 3 * few[name]), name
  deep = planned("demo_shape", 1, max_visited=192)[2].parts
  assert deep["visited nodes of both caches"] == 2 * few["visited nodes of both caches"]


def test_a_run_that_cannot_fit_says_what_to_lower():
  needed = planned("demo_shape", 8)[2]
  memory_plan.check(needed, needed.total)
  with pytest.raises(ValueError, match="batch_size to 7, or limits.max_prompt"):
    memory_plan.check(needed, needed.total - 1)
  with pytest.raises(ValueError, match="batches to 7, or workload.prompt"):
    memory_plan.check(needed, needed.total - 1, memory_plan.BENCHMARK)
  with pytest.raises(ValueError, match="model.dtype"):
    memory_plan.check(needed, needed.parts["weights"] - 1)
  assert arrays.bytes_available() > 2**28


def test_table_names_every_part_and_the_total():
  needed = planned("demo_shape", 1)[2]
  text = needed.table()
  assert all(name in text for name in needed.parts)
  assert f"{needed.total / 2**20:,.1f} MiB" in text.splitlines()[-1]
