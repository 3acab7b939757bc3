"""One place decides what differs between backends, and can be told which one to decide for."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from rain_jax.models import attention, backend, testing
from rain_jax.models.loading import laid_out

SLOTS = 256  # enough for attention by blocks


def loops(name: str | None) -> int:
  """Loops in a program of attention over mostly empty slots, traced for a backend."""
  shape = lambda *axes: jax.ShapeDtypeStruct(axes, jnp.float32)
  seen = lambda slots: jax.ShapeDtypeStruct((1, 1, slots), bool)

  def call(query, keys, own, mask, own_mask, used):
    return attention.attend(query, [(keys, keys), (own, own)], [mask, own_mask], [used, None])

  args = (
    shape(1, 2, 1, 8),
    shape(1, 2, SLOTS, 8),
    shape(1, 2, 1, 8),
    seen(SLOTS),
    seen(1),
    jax.ShapeDtypeStruct((), jnp.int32),
  )
  if name is None:
    return str(jax.make_jaxpr(call)(*args)).count("while[")
  with backend.target(name):
    return str(jax.make_jaxpr(call)(*args)).count("while[")


def test_programs_are_traced_for_the_backend_that_is_asked_for():
  assert backend.name() == jax.default_backend() == "cpu"
  assert [loops(name) for name in (None, "cpu", "gpu", "tpu")] == [1, 1, 0, 0]
  assert backend.name() == "cpu"


def test_what_was_traced_for_one_backend_is_not_used_for_another():
  traced = []

  @jax.jit
  def call(x):
    traced.append(backend.name())
    return x + backend.prompt_chunk()

  found = [int(call(0))]
  for name in ("tpu", "cpu", "tpu"):
    with backend.target(name):
      found.append(int(call(0)))
  assert found == [128, 512, 128, 512]
  assert sorted(set(traced)) == ["cpu", "tpu"]


def test_a_target_holds_for_its_thread_alone():
  seen = []
  with backend.target("tpu"):
    other = threading.Thread(target=lambda: seen.append(backend.name()))
    other.start()
    other.join()
    seen.append(backend.name())
  assert seen == ["cpu", "tpu"]


@pytest.mark.parametrize(
  "name,alone,spread", [("cpu", True, False), ("gpu", True, True), ("tpu", False, False)]
)
def test_layers_are_taken_apart_where_that_is_faster(name, alone, spread):
  model = testing.random_model("llama2")
  shapes = dataclasses.replace(model, params=jax.eval_shape(lambda: model.params))
  with backend.target(name):
    for mesh, apart in ((None, alone), (AbstractMesh((2,), ("tensor",)), spread)):
      found = laid_out(shapes, mesh)
      assert isinstance(found.params["layers"], tuple) == apart
    assert backend.in_caches(model.params) == (name == "cpu")
