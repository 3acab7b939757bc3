"""Slots on eight virtual devices that refill by themselves; run by decode_test.py in a process of
its own."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from rain_jax.methods.rain import STEPS_SHARDED
from rain_jax.parallel.batch_sharding import WHOLE, BatchSharding
from tests.helpers import scripted, serving

SHARDS = 8


def main():
  assert jax.device_count() == SHARDS, jax.devices()
  mesh = jax.make_mesh((SHARDS,), ("data",), axis_types=(AxisType.Auto,))
  whole = lambda state: jax.tree.map(lambda _: WHOLE, state)
  sharding = BatchSharding.of(mesh, serving.fresh, whole)
  params = jax.tree.map(jnp.asarray, scripted.make_tables())
  for slots in (1, 4):
    batch = SHARDS * slots
    state = jax.device_put(serving.fresh(batch), sharding.shardings)
    useful, waiting = serving.shares_of_useful_slots(
      params, state, 40 * batch, STEPS_SHARDED, sharding
    )
    assert useful >= 0.85 and waiting < 0.7
  print("all checks passed")


if __name__ == "__main__":
  main()
