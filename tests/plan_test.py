"""The memory plan against what the compiler reports."""

import jax
import jax.numpy as jnp
import pytest

from rain_jax import benchmark, decode, plan
from rain_jax.policy import make_params
from rain_jax.types import SearchConfig

WORKLOAD = benchmark.Workload(prompt=96, response=64, verdict_prefix=300, verdict_suffix=20)


def planned(name: str, batch: int, dtype: str = "float32", **search):
  model, lm = benchmark.abstract_subject(name, dtype, WORKLOAD, SearchConfig(**search))
  return model, lm, plan.plan(model, lm, batch)


def test_total_is_within_a_tenth_of_the_compiled_program():
  batch = 8
  model, lm, needed = planned("demo_shape", batch)
  tables = jax.eval_shape(lambda: benchmark.synthetic_tables(model.config.vocab_size, 0.1))
  params = jax.eval_shape(lambda p, t: make_params(p, t, lm, []), model.params, tables)
  state = jax.eval_shape(
      lambda: decode.init(
          batch, lm.init(batch, jnp.float32), lm.search, lm.embedding_size, lm.max_response
      )
  )
  steps = jax.ShapeDtypeStruct((), jnp.int32)
  memory = decode.advance.lower(state, lm, params, lm.search, steps).compile().memory_analysis()
  peak = (
      memory.argument_size_in_bytes + memory.output_size_in_bytes
      + memory.temp_size_in_bytes - memory.alias_size_in_bytes
  )
  assert needed.total == pytest.approx(peak, rel=0.1)


def test_weights_are_exact_in_every_dtype():
  full = planned("7b", 1)[2].parts["weights"]
  assert full == 4 * 6_738_415_616  # parameters of LLaMA 7B
  assert planned("7b", 1, "bfloat16")[2].parts["weights"] == full // 2
  eight = planned("7b", 1, "int8")[2].parts["weights"]
  assert full / 4 < eight < 1.01 * full / 4  # scales and norms stay float32


def test_one_tree_costs_at_most_twice_its_live_tokens_in_keys_and_values():
  workload = benchmark.Workload(prompt=512, response=256)
  model, lm = benchmark.abstract_subject("7b", "bfloat16", workload, SearchConfig())
  parts = plan.plan(model, lm, 1).parts
  token = 2 * 2 * 32 * 4096
  live = 2 * (512 + 256 + 96 * 10)  # both caches: prompt, response, every visited node
  stored = parts["contexts of both caches"] + parts["visited nodes of both caches"]
  assert stored <= 2 * live * token


def test_every_part_grows_with_what_it_is_for():
  few, many = planned("demo_shape", 1)[2].parts, planned("demo_shape", 4)[2].parts
  for name in few:
    fixed = name in ("weights", "prefixes", "vocabulary tables")
    assert (many[name] == few[name]) if fixed else (many[name] > 3.5 * few[name]), name
  deep = planned("demo_shape", 1, max_visited=192)[2].parts
  assert deep["visited nodes of both caches"] == 2 * few["visited nodes of both caches"]


def test_a_run_that_cannot_fit_says_what_to_lower():
  needed = planned("demo_shape", 8)[2]
  plan.check(needed, needed.total)
  with pytest.raises(ValueError, match="batch_size to 7"):
    plan.check(needed, needed.total - 1)
  with pytest.raises(ValueError, match="model.dtype"):
    plan.check(needed, needed.parts["weights"] - 1)
  assert plan.bytes_available() > 2**28


def test_table_names_every_part_and_the_total():
  needed = planned("demo_shape", 1)[2]
  text = needed.table()
  assert all(name in text for name in needed.parts)
  assert f"{needed.total / 2**20:,.1f} MiB" in text.splitlines()[-1]
