"""Searches over meshes of eight virtual devices, and what of them goes into which memory."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from rain_jax import types
from rain_jax.experiments.benchmark import Lowering, abstract_tables
from rain_jax.models import arrays
from rain_jax.models.config import ModelConfig
from rain_jax.models.llama import abstract_model
from rain_jax.models.sharding import flatten, mesh_shape, shardings
from rain_jax.parallel.batch_sharding import BatchSharding
from rain_jax.policy import memory_plan
from rain_jax.policy.embedders import HiddenStates
from rain_jax.policy.language_model import LanguageModel
from rain_jax.policy.params import make_params
from rain_jax.preferences import CompiledPreference
from tests.helpers import checkpoints, scripts
from tests.helpers.thinking import QWEN, with_template


def test_a_mesh_gives_the_responses_of_one_device(checkpoint):
  meshes = "4x2", "4x2:gpu"
  scripts.on_eight_devices("parallel/batch_sharded.py", str(checkpoint), "12", "rain", *meshes)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["8x1", "4x2", "2x4", "1x8"])
def test_every_mesh_gives_the_responses_of_one_device_by_every_method(mesh):
  scripts.on_eight_devices(
    "parallel/batch_sharded.py", "demo", "100", "rain,vanilla,best", mesh, limit=3600
  )


@pytest.mark.slow
def test_a_mesh_gives_the_adaptive_responses_of_one_device(checkpoint):
  scripts.on_eight_devices("parallel/batch_sharded.py", str(checkpoint), "16", "adaptive", "8x1")


@pytest.mark.slow
def test_a_mesh_gives_the_thoughts_and_answers_of_one_device(bpe_tokenizer, tmp_path):
  checkpoints.write_thinker(tmp_path, with_template(bpe_tokenizer, QWEN))
  scripts.on_eight_devices("parallel/thoughts_sharded.py", str(tmp_path), "8x1", "4x2")


LLAMA_70B = {
  "model_type": "llama",
  "vocab_size": 128256,
  "hidden_size": 8192,
  "intermediate_size": 28672,
  "num_hidden_layers": 80,
  "num_attention_heads": 64,
  "num_key_value_heads": 8,
  "max_position_embeddings": 8192,
  "rms_norm_eps": 1e-5,
  "rope_theta": 500000.0,
  "bos_token_id": 128000,
  "eos_token_id": 128001,
  "tie_word_embeddings": False,
}
PREFIX, BATCH, GIB = 1400, 256, 2**30


def test_70b_shapes_fit_256_devices_that_do_not_exist():
  """Nothing is allocated: shapes are evaluated, and the loop's program is lowered for the mesh."""
  config = ModelConfig.from_hf(LLAMA_70B)
  shape = mesh_shape(256, tensor=16, data=16, kv_heads=config.num_kv_heads)
  assert shape == {"data": 16, "tensor": 8, "queries": 2}
  mesh = AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape))
  model = abstract_model(config, param_dtype=jnp.bfloat16, compute_dtype=jnp.bfloat16)
  preference = CompiledPreference(
    **{f.name: None for f in dataclasses.fields(CompiledPreference)}
    | dict(
      prefix_ids=tuple(range(PREFIX)),
      suffix_ids=((5,) * 20,) * 2,
      good_ids=((1,), (2,)),
      bad_ids=((2,), (1,)),
      cut=False,
    )
  )
  lm = LanguageModel(
    model.graphdef,
    config,
    types.SearchConfig(),
    preference,
    HiddenStates(),
    max_prompt=512,
    max_response=256,
  )

  # Every matrix has a 16th of its elements on each device, or an 8th where there are 8 heads.
  places = flatten(shardings(model, mesh))
  for path, leaf in flatten(model.params).items():
    part = leaf.size / math.prod(places[path].shard_shape(leaf.shape))
    expected = 1 if "norm" in path else 8 if path.startswith(("layers/k/", "layers/v/")) else 16
    assert part == expected, (path, part)

  tables = abstract_tables(model)
  read = lambda params, tables: make_params(params, tables, lm, [])
  make = functools.partial(lm.empty_slots, params=jax.eval_shape(read, model.params, tables))
  sharding = BatchSharding.of(mesh, make, lambda state: lm.head_specs(state, mesh))
  state = jax.eval_shape(lambda: make(BATCH))
  parts = jax.tree.map(
    lambda a, s: a.size / math.prod(s.shard_shape(a.shape)), state, sharding.shardings
  )
  assert set(jax.tree.leaves(parts)) == {16.0, 128.0}  # by tree; caches also by head
  assert parts.model.proposing.context.keys == parts.model.evaluating.pool.values == 128

  needed = memory_plan.plan(model, lm, BATCH, tables, mesh=mesh)
  assert needed.parts["weights"] == arrays.nbytes(model.params, shardings(model, mesh))
  assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) > 70e9
  assert needed.total < 14 * GIB  # a TPU v5e has 16

  lowered = Lowering(model, lm, BATCH, mesh, "tpu").search()
  # Every large array goes in split, and the program says over which axes.
  large = 0
  for sizes, kind, where in re.findall(
    r"%arg\d+: tensor<((?:\d+x)+)(\w+)> \{([^\n]*?sdy\.sharding = [^\n]*?>)", lowered.as_text()
  ):
    if math.prod(map(int, sizes.rstrip("x").split("x"))) > 1e7:
      assert '{"' in where, (sizes, kind, where)
      large += 1
  assert large > 15


@pytest.mark.parametrize(
  "sizes,shape",
  [
    (dict(count=8), {"data": 8, "tensor": 1}),
    (dict(count=8, tensor=-1, data=2), {"data": 2, "tensor": 4}),
    (dict(count=8, tensor=8, kv_heads=2), {"data": 1, "tensor": 2, "queries": 4}),
    (dict(count=8, tensor=4, kv_heads=6), {"data": 2, "tensor": 2, "queries": 2}),
  ],
)
def test_a_mesh_fills_up_and_splits_off_what_key_value_heads_do_not_divide(sizes, shape):
  assert mesh_shape(**sizes) == shape


@pytest.mark.parametrize(
  "sizes",
  [
    dict(count=8, tensor=3),
    dict(count=8, data=3),
    dict(count=8, tensor=-1),
    dict(count=8, tensor=0),
    dict(count=8, data=2, tensor=2),
  ],
)
def test_a_mesh_that_cannot_be_is_one_line(sizes):
  with pytest.raises(ValueError, match="the 8 devices"):
    mesh_shape(**sizes)
