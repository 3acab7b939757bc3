"""Tables over the vocabulary: what each token does to a text.

The search has to know, token by token, whether a text ends in punctuation, whether a
stop string is complete, and whether two texts are the same. Each of these is a small
automaton over the bytes of the decoded text. `build_tables` runs the automata over every
piece of the vocabulary once; `scanner.advance` then reads one token per row with a few
gathers. The answers equal those of string operations on `encoding.decode_response`.
"""

from collections.abc import Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from rain_jax.text import automata, encoding, pieces
from rain_jax.types import DataError

TEXT_ENDS = ",.?:;\n"  # a rollout pauses after these (RAIN, section 3.2)
FULL_STOP = "."  # where the truthful variant cuts an answer

NEAR = 32  # bits of `ScanState.inside`

# The hashes are polynomials over GF(2^31 - 1), each byte b a coefficient b + 1. Two texts
# of n bytes or less collide in one of them with probability n / 2^31 over its base.
PRIME = (1 << 31) - 1
BASES = (1_493_786_677, 803_914_261)


class TokenTables(flax.struct.PyTreeNode):
  """Per token of the vocabulary, what it does to a text; made by `build_tables`.

  `vocab` below is the width of the model's logits.

  Attributes:
    transitions: int16[states, vocab] state of the stop-string automaton after the whole
      piece; 0 is the start, the last state is "a stop string is complete" and keeps.
    before: uint8[states, vocab] how many bytes before the token belong to what the automaton has
      found of a stop string after it, `NEAR` for as many or more.
    kind: int8[vocab]; skipped, a byte of a byte-fallback run, or text.
    byte: uint8[vocab]; the byte of a byte token, else 0.
    size: int32[vocab] bytes of the piece.
    ends: bool[vocab]; the piece ends in a text end.
    full_stop: bool[vocab]; the piece contains a full stop.
    hash: uint32[vocab, 2] hashes of the piece.
    shift: uint32[vocab, 2] what the hash of the text before is multiplied by.
    suppressed: bool[vocab]; the token is never drawn. None where every token may be.
  """

  transitions: jax.Array
  before: jax.Array
  kind: jax.Array
  byte: jax.Array
  size: jax.Array
  ends: jax.Array
  full_stop: jax.Array
  hash: jax.Array
  shift: jax.Array
  suppressed: jax.Array | None = None


def build_tables(
  tokenizer: Any,
  stop_strings: Sequence[str] = (),
  suppress: Sequence[str] = (),
  vocab_size: int | None = None,
  text_ends: str = TEXT_ENDS,
) -> TokenTables:
  """Reads a tokenizer's vocabulary into tables.

  Args:
    tokenizer: a fast tokenizer of transformers.
    stop_strings: a response ends when it contains one of them (docs/architecture.md, section 2).
    suppress: a token whose piece contains one of them is never drawn.
    vocab_size: width of the model's logits; ids the tokenizer does not know add no
      text. By default the tokenizer's own size.
    text_ends: ASCII characters that end a text.

  Raises:
    DataError: no token contains one of `suppress`.
    ValueError: for a tokenizer without a fast backend, or with a decoder whose pieces
      cannot be read one by one; for stop strings that are empty, are not valid text or
      contain U+FFFD; for text ends that are not ASCII.
  """
  if not text_ends.isascii():
    raise ValueError(f"text_ends={text_ends!r}: expected ASCII characters only.")
  for stop in stop_strings:
    if not isinstance(stop, str) or not stop or encoding.REPLACEMENT in stop:
      raise ValueError(f"Stop string {stop!r}: expected text without U+FFFD, not empty.")
  spelled, kind = pieces.read_pieces(tokenizer, vocab_size)

  size = np.array([len(piece) for piece in spelled], np.int32)
  order = np.argsort(-size, kind="stable")  # longest first: those still being read lead
  flat = np.frombuffer(b"".join(spelled), np.uint8)
  first = np.concatenate([[0], np.cumsum(size)[:-1]])[order]
  counts = [int((size > position).sum()) for position in range(int(size.max(initial=0)))]

  delta, found = automata.stop_automaton([stop.encode() for stop in stop_strings])
  states = np.tile(np.arange(len(delta), dtype=np.int16)[:, None], (1, len(spelled)))
  before = np.tile(automata.depths(delta, found)[:, None], (1, len(spelled)))
  hashes = np.zeros((len(spelled), 2), np.uint64)
  shifts = np.ones((len(spelled), 2), np.uint64)
  bases = np.array(BASES, np.uint64)
  for position, count in enumerate(counts):
    data = flat[first[:count] + position]
    now = states[:, :count]
    reaches = found[now, data] - np.int16(position + 1)
    before[:, :count] = np.where(now == len(delta) - 1, before[:, :count], reaches)
    states[:, :count] = delta[now, data]
    coefficients = data[:, None].astype(np.uint64) + np.uint64(1)
    hashes[:count] = (hashes[:count] * bases + coefficients) % PRIME
    shifts[:count] = shifts[:count] * bases % PRIME

  suppressed = np.zeros(len(spelled), bool)
  for text in suppress:
    contains = np.array([text.encode() in piece for piece in spelled])
    if not contains.any():
      raise DataError(
        f"format.suppress: no single token of the vocabulary contains {text!r:.40}; expected texts"
        " of one token, such as '\\n'. format.stop is for longer ones."
      )
    suppressed |= contains

  rank = np.argsort(order)
  enders, stop_byte = text_ends.encode(), FULL_STOP.encode()
  byte = [piece[0] if k == pieces.BYTE else 0 for piece, k in zip(spelled, kind)]
  ends = [piece != b"" and piece[-1] in enders for piece in spelled]
  full_stop = [stop_byte in piece for piece in spelled]
  return TokenTables(
    transitions=jnp.asarray(states[:, rank]),
    before=jnp.asarray(before[:, rank].clip(0, NEAR).astype(np.uint8)),
    kind=jnp.asarray(kind),
    byte=jnp.asarray(np.array(byte, np.uint8)),
    size=jnp.asarray(size),
    ends=jnp.asarray(np.array(ends)),
    full_stop=jnp.asarray(np.array(full_stop)),
    hash=jnp.asarray(hashes[rank].astype(np.uint32)),
    shift=jnp.asarray(shifts[rank].astype(np.uint32)),
    suppressed=jnp.asarray(suppressed) if suppress else None,
  )
