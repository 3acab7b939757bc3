"""Where parameters live on a mesh, stacked or with their layers taken apart."""

import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from rain_jax.models import ModelConfig, backend
from rain_jax.models.llama import abstract_model
from rain_jax.models.loading import laid_out
from rain_jax.models.sharding import flatten, shardings

# No two axes have one size, so that an axis is known by it, and the mesh divides all but the layers.
SIZES = dict(
  vocab_size=256,
  hidden_size=96,
  intermediate_size=192,
  num_layers=3,
  num_heads=8,
  num_kv_heads=4,
  head_size=32,
)
MESH = AbstractMesh((2, 2, 2), ("data", "tensor", "queries"), axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8])
@pytest.mark.parametrize(
  "more",
  [
    dict(attention_bias=True, attention_output_bias=True, mlp_bias=True, norms="both"),
    dict(qk_norm=True, qk_norm_whole=True, tie_embeddings=True),
  ],
)
def test_layers_taken_apart_are_split_as_their_stacks(more, dtype):
  model = abstract_model(
    ModelConfig(**SIZES, **more), param_dtype=dtype, compute_dtype=jnp.bfloat16
  )
  with backend.target("gpu"):
    apart = laid_out(model, MESH)

  def by_size(params, places):
    params, places = flatten(params), flatten(places)
    assert params.keys() == places.keys()
    return {path: dict(zip(params[path].shape, places[path].spec, strict=True)) for path in params}

  stacked, found = shardings(model, MESH), shardings(apart, MESH)
  others = lambda params: {name: params[name] for name in params if name != "layers"}
  assert by_size(others(apart.params), others(found)) == by_size(
    others(model.params), others(stacked)
  )
  expected = by_size(model.params["layers"], stacked["layers"])
  assert expected["q/weight"] == {3: None, 96: None, 8: ("tensor", "queries"), 32: None}
  for split in expected.values():
    del split[SIZES["num_layers"]]
  assert len(found["layers"]) == SIZES["num_layers"]
  for params, places in zip(apart.params["layers"], found["layers"], strict=True):
    assert by_size(params, places) == expected
