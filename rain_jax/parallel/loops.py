"""Loops over a batch that end when no row of it goes on, and write to what they carry in place."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

Carry = TypeVar("Carry")


def while_any(
  goes_on: Callable[[Carry], jax.Array], body: Callable[[Carry], Carry], carry: Carry
) -> Carry:
  """`jax.lax.while_loop` while any row of `goes_on(carry)`, bool[...], is true.

  The loop's condition compares two integers that it carries: a count of turns, and a bound that
  lies one turn ahead until no row goes on. With the reduction over rows as its condition, libtpu
  0.0.42 was seen not to finish compiling a search for a mesh that splits the model, though not
  every time.
  """
  ahead = lambda carry: jnp.any(goes_on(carry)).astype(jnp.int32)

  def turn(state):
    turns, _, carry = state
    carry = body(carry)
    turns = turns + 1
    return turns, turns + ahead(carry), carry

  start = (jnp.int32(0), ahead(carry), carry)
  return jax.lax.while_loop(lambda state: state[0] < state[1], turn, start)[2]


def at_most_once(condition: jax.Array, body: Callable[[Carry], Carry], carry: Carry) -> Carry:
  """`body(carry)` where `condition`, bool[], is true, and otherwise the carry.

  As a loop of one turn or none, which writes into arrays in place. XLA of jax 0.10.2 gave a
  conditional copies of what it writes to: of all visited nodes' keys and values, twice.
  """
  never = jnp.zeros_like(condition)
  turn = lambda at: (never, body(at[1]))
  return while_any(lambda at: at[0], turn, (condition, carry))[1]


def ordered_after(first: jax.Array, values: Carry) -> Carry:
  """`values` as they are, computed after `first`.

  A loop's body writes to an array that it carries without copying it only where all that it reads of
  the array comes before. A layer's keys and values do not wait for its attention, which reads the
  cache: XLA of jax 0.10.2 copied whole caches for it, twice a turn. On a CPU it drops
  `jax.lax.optimization_barrier` before it plans copies, so a comparison that always holds keeps the order.
  """
  if not jax.sharding.get_abstract_mesh().empty:
    # One element of a sharded array would be exchanged for it. It is not needed: layers are a loop, for
    # whose end the writes wait; or they are a GPU's, whose compiled programs copy no cache without this.
    return values
  always = jnp.isnan(first[(0,) * first.ndim]).astype(jnp.int32) >= 0
  # Jitted, so that arrays of equal shapes, such as those of all layers, are traced and lowered once.
  return jax.tree.map(jax.jit(lambda a: jnp.where(always, a, jnp.zeros_like(a))), values)
