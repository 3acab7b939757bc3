"""Texts scanned token by token, in jitted code.

`advance` reads one token of every row by the tables of `vocab`: a `ScanState` knows
whether the text ends in punctuation, whether a stop string is complete, where it began,
and a hash that is equal for equal texts.
"""

from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp

from rain_jax.text.automata import UTF8
from rain_jax.text.pieces import BYTE, TEXT
from rain_jax.text.vocab import NEAR, PRIME, TokenTables


class ScanState(flax.struct.PyTreeNode):
  """What is known of a response's text so far; every field has any batch shape [...].

  Attributes:
    automaton: int32[...] state of the stop-string automaton.
    utf8: int32[...] state of the current run of byte tokens, 0 if there is none or it
      is well formed and complete.
    ends: bool[...]; the text (prompt and response) ends in a text end.
    stopped: bool[...]; the response contained a stop string after one of its tokens.
    hash: uint32[..., 2] of the response's bytes: equal for equal texts, however they
      are cut into tokens.
    tokens_before_stop: int32[...] tokens that are surely no part of a stop string; once
      `stopped`, those before the stop string (too few only if a false start of it ran into
      the real one and held a special token, or more than `NEAR` bytes).
    inside: uint32[...] where tokens ended within the stop string that may have begun: bit i
      stands for i bytes ago.
    tokens_at_full_stop: int32[...] tokens up to and including the last one that put a
      full stop into the response, 0 if none did.
    hash_at_full_stop: uint32[..., 2] `hash` after that token, or of the empty text.
    length: int32[...] tokens read, special ones included.
  """

  automaton: jax.Array
  utf8: jax.Array
  ends: jax.Array
  stopped: jax.Array
  hash: jax.Array
  tokens_before_stop: jax.Array
  inside: jax.Array
  tokens_at_full_stop: jax.Array
  hash_at_full_stop: jax.Array
  length: jax.Array


def empty(shape: tuple[int, ...]) -> ScanState:
  """States of texts without a token yet, of any batch shape.

  A stop string must lie wholly within the response, so of the prompt only its last
  character counts: whether it is a text end, `ends`.
  """
  zeros = jnp.zeros(shape, jnp.int32)
  off = jnp.zeros(shape, bool)
  hashed = jnp.zeros(shape + (2,), jnp.uint32)
  return ScanState(
    automaton=zeros,
    utf8=zeros,
    ends=off,
    stopped=off,
    hash=hashed,
    tokens_before_stop=zeros,
    inside=jnp.zeros(shape, jnp.uint32),
    tokens_at_full_stop=zeros,
    hash_at_full_stop=hashed,
    length=zeros,
  )


def advance(tables: TokenTables, state: ScanState, tokens: jax.Array) -> ScanState:
  """Reads one token per row.

  Args:
    tables: of the vocabulary.
    state: of the batch shape [...] of `tokens`.
    tokens: int32[...] below the vocabulary's size; a row with a negative one
      (`NO_TOKEN`) keeps its state.

  A byte counts as text only while its run is well formed and complete. What was true of
  the text after a token stays recorded (`stopped`, the last full stop) even if later
  byte tokens break the run that it was part of.
  """
  complete = tables.transitions.shape[0] - 1
  kind = tables.kind[tokens]
  is_byte, is_text = kind == BYTE, kind == TEXT
  utf8 = jnp.where(is_byte, jnp.asarray(UTF8)[state.utf8, tables.byte[tokens]], state.utf8)
  utf8 = jnp.where(is_text, 0, utf8)
  shown = ~is_byte | (utf8 == 0)

  # Text after a broken run follows a U+FFFD, which no stop string contains.
  start = jnp.where(is_text & (state.utf8 != 0) & ~state.stopped, 0, state.automaton)
  automaton = tables.transitions[start, tokens].astype(jnp.int32)
  automaton = jnp.where((automaton == complete) & ~shown & ~state.stopped, 0, automaton)

  text_hash = _multiply(state.hash, tables.shift[tokens])
  text_hash = _reduce(text_hash + tables.hash[tokens])
  length = state.length + 1
  full_stop = tables.full_stop[tokens] & shown
  # The stop string that may have begun did so this many bytes before the token: tokens that
  # ended there or earlier belonged to a false start.
  reach = tables.before[start, tokens].astype(jnp.uint32)
  passed = jax.lax.population_count(_shifted(jnp.right_shift, state.inside, reach))
  begun = state.tokens_before_stop + passed.astype(jnp.int32)
  before_stop = jnp.where(reach > 0, begun, state.length)
  before_stop = jnp.where(automaton == 0, length, before_stop)
  size = tables.size[tokens].astype(jnp.uint32)
  kept = state.inside & (_shifted(jnp.left_shift, jnp.uint32(1), reach) - 1)
  inside = _shifted(jnp.left_shift, kept, size) | (size > 0)
  after = ScanState(
    automaton=automaton,
    utf8=utf8,
    ends=jnp.where(tables.size[tokens] > 0, tables.ends[tokens] & shown, state.ends),
    stopped=automaton == complete,
    hash=text_hash,
    tokens_before_stop=jnp.where(state.stopped, state.tokens_before_stop, before_stop),
    inside=jnp.where(automaton == 0, 0, inside),
    tokens_at_full_stop=jnp.where(full_stop, length, state.tokens_at_full_stop),
    hash_at_full_stop=jnp.where(full_stop[..., None], text_hash, state.hash_at_full_stop),
    length=length,
  )
  padding = tokens < 0

  def keep(old: jax.Array, new: jax.Array) -> jax.Array:
    rows = padding if new.ndim == padding.ndim else padding[..., None]
    return jnp.where(rows, old, new)

  return jax.tree.map(keep, state, after)


def advance_all(tables: TokenTables, state: ScanState, tokens: jax.Array) -> ScanState:
  """Reads the tokens int32[..., L] of each row in turn."""
  step = lambda state, token: (advance(tables, state, token), None)
  return jax.lax.scan(step, state, jnp.moveaxis(tokens, -1, 0))[0]


def _shifted(shift: Callable[..., jax.Array], bits: jax.Array, count: jax.Array) -> jax.Array:
  """Bits shifted by any count; all are gone after the last one."""
  return jnp.where(count < NEAR, shift(bits, jnp.minimum(count, NEAR - 1)), 0).astype(jnp.uint32)


def _reduce(x: jax.Array) -> jax.Array:
  """uint32 -> a number of the same residue, below `PRIME`."""
  x = (x >> 31) + (x & PRIME)
  return jnp.where(x >= PRIME, x - PRIME, x)


def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
  """a * b modulo `PRIME` for uint32 below it, without a 64-bit product.

  With a = a1 * 2^16 + a0 and b likewise, and 2^31 = 1: 2^32 = 2, and a number m splits
  so that m * 2^16 = (m >> 15) + (m mod 2^15) * 2^16. No sum below exceeds 32 bits.
  """
  a1, a0 = a >> 16, a & 0xFFFF
  b1, b0 = b >> 16, b & 0xFFFF
  high = 2 * a1 * b1
  middle = a1 * b0 + a0 * b1
  middle = (middle >> 15) + ((middle & 0x7FFF) << 16)
  return _reduce(_reduce(high + middle) + _reduce(a0 * b0))
