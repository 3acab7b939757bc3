"""Loops over a batch that end when no row of it goes on."""

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
