"""Loops over a batch that end when no row of it goes on."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

Carry = TypeVar("Carry")


def while_any(
    goes_on: Callable[[Carry], jax.Array], body: Callable[[Carry], Carry], carry: Carry
) -> Carry:
  """`body` applied to `carry` while any row of `goes_on(carry)`, bool[...], is true.

  The loop's condition compares two integers that it carries, a count of turns and a bound.
  With a reduction of the rows as its condition, the same loop is not compiled for a TPU mesh
  that splits a model: the compiler does not end.
  """
  more = lambda carry: jnp.any(goes_on(carry)).astype(jnp.int32)

  def turn(state):
    turns, _, carry = state
    carry = body(carry)
    turns = turns + 1
    return turns, turns + more(carry), carry

  unfinished = lambda state: state[0] < state[1]
  return jax.lax.while_loop(unfinished, turn, (jnp.int32(0), more(carry), carry))[2]
