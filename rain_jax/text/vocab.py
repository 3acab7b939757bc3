"""What tokens mean as text, as tables that jitted code can look up.

The search has to know, token by token, whether a text ends in punctuation, whether a
stop string is complete, and whether two texts are the same. Each of these is a small
automaton over the bytes of the decoded text. `build_tables` runs the automata over every
piece of the vocabulary once; `advance` then reads one token per row with a few gathers.
The answers equal those of string operations on `decode_response`.

How a tokenizer turns tokens into text is read from its decoder. Two families are known:

* Byte-level BPE (LLaMA 3, Qwen, GPT-2): a piece is a string of bytes; the bytes of all
  pieces are joined and decoded with U+FFFD for what is not UTF-8. A decoder that meets
  a lead byte always starts a new character there, and lead bytes open every character
  of a stop string, so a stop string occurs in the text exactly where its bytes occur.
  Text ends are ASCII, and no byte of a longer character is.
* SentencePiece with byte fallback (LLaMA 1 and 2, Gemma, Mistral): a piece is text, or
  one byte `<0xNN>`. A run of byte tokens is decoded as a whole: if it is not UTF-8,
  *every* byte of it turns into U+FFFD, the well-formed ones too. `TextState.utf8` keeps
  the validity of the run, so that bytes of a broken run never count as text.

Special tokens, and ids without a piece (padding rows of a model's output layer), are
left out before decoding: they neither add text nor end a run of bytes.
"""

import json
import re
from collections.abc import Callable, Sequence

import flax
import jax
import jax.numpy as jnp
import numpy as np

TEXT_ENDS = ",.?:;\n"  # a rollout pauses after these (RAIN, section 3.2)
FULL_STOP = "."  # where the truthful variant cuts an answer

_REPLACEMENT = "\ufffd"

_NEAR = 32  # bits of `TextState.inside`

# How a token enters the text (`TextTables.kind`).
_SKIPPED, _BYTE, _TEXT = 0, 1, 2

# The hashes are polynomials over GF(2^31 - 1), each byte b a coefficient b + 1. Two texts
# of n bytes or less collide in one of them with probability n / 2^31 over its base.
_PRIME = (1 << 31) - 1
_BASES = (1_493_786_677, 803_914_261)

# Text that `encode_continuation` tries as the text before; the first is what templates
# are usually joined by.
_ANCHORS = ("\n", "a", ":", ".", "0", ")")


@flax.struct.dataclass
class TextTables:
  """Per token of the vocabulary, what it does to a text; made by `build_tables`.

  `vocab` below is the width of the model's logits.

  Attributes:
    transitions: int16[states, vocab] state of the stop-string automaton after the whole
      piece; 0 is the start, the last state is "a stop string is complete" and keeps.
    before: uint8[states, vocab] how many bytes before the token belong to what the automaton has
      found of a stop string after it, `_NEAR` for as many or more.
    kind: int8[vocab]; skipped, a byte of a byte-fallback run, or text.
    byte: uint8[vocab]; the byte of a byte token, else 0.
    size: int32[vocab] bytes of the piece.
    ends: bool[vocab]; the piece ends in a text end.
    full_stop: bool[vocab]; the piece contains a full stop.
    hash: uint32[vocab, 2] hashes of the piece.
    shift: uint32[vocab, 2] what the hash of the text before is multiplied by.
    text_ends: the characters that end a text (static).
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
  text_ends: str = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class TextState:
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
      the real one and held a special token, or more than `_NEAR` bytes).
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


def build_tables(
  tokenizer,
  stop_strings: Sequence[str] = (),
  text_ends: str = TEXT_ENDS,
  vocab_size: int | None = None,
) -> TextTables:
  """Reads a tokenizer's vocabulary into tables.

  Args:
    tokenizer: a fast tokenizer of transformers.
    stop_strings: a response ends when it contains one of them (design section 2).
    text_ends: ASCII characters that end a text.
    vocab_size: width of the model's logits; ids the tokenizer does not know add no
      text. By default the tokenizer's own size.

  Raises:
    ValueError: for a tokenizer without a fast backend, or with a decoder whose pieces
      cannot be read one by one; for stop strings that are empty, are not valid text or
      contain U+FFFD; for text ends that are not ASCII.
  """
  if not text_ends.isascii():
    raise ValueError(f"text_ends={text_ends!r}: expected ASCII characters only.")
  for stop in stop_strings:
    if not isinstance(stop, str) or not stop or _REPLACEMENT in stop:
      raise ValueError(f"Stop string {stop!r}: expected text without U+FFFD, not empty.")
  pieces, kind = _read_pieces(tokenizer, vocab_size)

  size = np.array([len(piece) for piece in pieces], np.int32)
  order = np.argsort(-size, kind="stable")  # longest first: those still being read lead
  flat = np.frombuffer(b"".join(pieces), np.uint8)
  first = np.concatenate([[0], np.cumsum(size)[:-1]])[order]
  counts = [int((size > position).sum()) for position in range(int(size.max(initial=0)))]

  delta, found = _stop_automaton([stop.encode() for stop in stop_strings])
  states = np.tile(np.arange(len(delta), dtype=np.int16)[:, None], (1, len(pieces)))
  before = np.tile(_depths(delta, found)[:, None], (1, len(pieces)))
  hashes = np.zeros((len(pieces), 2), np.uint64)
  shifts = np.ones((len(pieces), 2), np.uint64)
  bases = np.array(_BASES, np.uint64)
  for position, count in enumerate(counts):
    data = flat[first[:count] + position]
    now = states[:, :count]
    reaches = found[now, data] - np.int16(position + 1)
    before[:, :count] = np.where(now == len(delta) - 1, before[:, :count], reaches)
    states[:, :count] = delta[now, data]
    coefficients = data[:, None].astype(np.uint64) + np.uint64(1)
    hashes[:count] = (hashes[:count] * bases + coefficients) % _PRIME
    shifts[:count] = shifts[:count] * bases % _PRIME

  rank = np.argsort(order)
  enders, stop_byte = text_ends.encode(), FULL_STOP.encode()
  byte = [piece[0] if k == _BYTE else 0 for piece, k in zip(pieces, kind)]
  ends = [piece != b"" and piece[-1] in enders for piece in pieces]
  full_stop = [stop_byte in piece for piece in pieces]
  return TextTables(
    transitions=jnp.asarray(states[:, rank]),
    before=jnp.asarray(before[:, rank].clip(0, _NEAR).astype(np.uint8)),
    kind=jnp.asarray(kind),
    byte=jnp.asarray(np.array(byte, np.uint8)),
    size=jnp.asarray(size),
    ends=jnp.asarray(np.array(ends)),
    full_stop=jnp.asarray(np.array(full_stop)),
    hash=jnp.asarray(hashes[rank].astype(np.uint32)),
    shift=jnp.asarray(shifts[rank].astype(np.uint32)),
    text_ends=text_ends,
  )


def initial_state(tables: TextTables, prompt_text: str) -> TextState:
  """The state before the first token of a response (0-d arrays).

  A stop string must lie wholly within the response, so of the prompt only its last
  character counts: whether it is a text end.
  """
  return TextState(
    automaton=np.int32(0),
    utf8=np.int32(0),
    ends=np.bool_(prompt_text != "" and prompt_text[-1] in tables.text_ends),
    stopped=np.bool_(False),
    hash=np.zeros(2, np.uint32),
    tokens_before_stop=np.int32(0),
    inside=np.uint32(0),
    tokens_at_full_stop=np.int32(0),
    hash_at_full_stop=np.zeros(2, np.uint32),
    length=np.int32(0),
  )


def advance(tables: TextTables, state: TextState, tokens: jax.Array) -> TextState:
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
  is_byte, is_text = kind == _BYTE, kind == _TEXT
  utf8 = jnp.where(is_byte, jnp.asarray(_UTF8)[state.utf8, tables.byte[tokens]], state.utf8)
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
  after = TextState(
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

  def keep(old, new):
    rows = padding if new.ndim == padding.ndim else padding[..., None]
    return jnp.where(rows, old, new)

  return jax.tree.map(keep, state, after)


def _shifted(shift, bits: jax.Array, count: jax.Array) -> jax.Array:
  """Bits shifted by any count; all are gone after the last one."""
  return jnp.where(count < _NEAR, shift(bits, jnp.minimum(count, _NEAR - 1)), 0).astype(jnp.uint32)


def decode_response(tokenizer, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
  """The text of response tokens, as it continues the prompt.

  That is the text of prompt and response without the text of the prompt. Where the
  prompt has no text, or its last bytes read differently together with the response's,
  a letter takes its place.
  """
  head = _decode(tokenizer, prompt_ids)
  whole = _decode(tokenizer, [*prompt_ids, *ids])
  if not head or not whole.startswith(head):
    head = "a"
    whole = _decode(tokenizer, [*_encode(tokenizer, head), *ids])
  return whole[len(head) :]


def encode_continuation(tokenizer, text: str) -> list[int]:
  """Tokens of a piece of text as it continues other text.

  No token for the beginning of a text, and no space that a tokenizer puts before the
  first word. Text that spells a special token is read as plain text: what a user wrote
  can never become a control token.

  Raises:
    ValueError: if the text joins with whatever is put before it.
  """
  if not text:
    return []
  # What the tokenizer itself makes of the text, e.g. after Unicode normalisation.
  known = {text, _decode(tokenizer, _encode(tokenizer, text))}
  for anchor in _ANCHORS:
    before = _encode(tokenizer, anchor)
    whole = _encode(tokenizer, anchor + text)
    rest = whole[len(before) :]
    if before and whole[: len(before)] == before:
      if decode_response(tokenizer, before, rest) in known:
        return rest
  raise ValueError(
    f"Text {text[:40]!r} has no tokens of its own after any of {_ANCHORS}; expected text"
    " that can stand apart, e.g. begin with a newline."
  )


def _encode(tokenizer, text: str) -> list[int]:
  return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def _decode(tokenizer, ids: Sequence[int]) -> str:
  return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _read_pieces(tokenizer, vocab_size: int | None) -> tuple[list[bytes], np.ndarray]:
  """Bytes and kind (int8[vocab]) of every token."""
  if not getattr(tokenizer, "is_fast", False):
    raise ValueError(f"{type(tokenizer).__name__} has no fast backend; load a fast tokenizer.")
  spec = json.loads(tokenizer.backend_tokenizer.to_str())
  read, byte_fallback = _piece_reader(spec["decoder"])
  special = {token["content"] for token in spec["added_tokens"] if token["special"]}
  names = {index: name for name, index in tokenizer.get_vocab().items()}
  if vocab_size is None:
    vocab_size = max(names) + 1

  pieces, kinds = [], np.full(vocab_size, _TEXT, np.int8)
  for index in range(vocab_size):
    name = names.get(index)
    if name is None or name in special:
      piece, kinds[index] = b"", _SKIPPED
    else:
      piece = read(name)
      if byte_fallback and (match := _BYTE_TOKEN.fullmatch(piece)):
        piece, kinds[index] = bytes([int(match[1], 16)]), _BYTE
    pieces.append(piece)
  return pieces, kinds


_BYTE_TOKEN = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


def _piece_reader(decoder: dict | None) -> tuple[Callable[[str], bytes], bool]:
  """From a decoder's description: token name -> bytes, and whether bytes fall back."""
  if decoder is None:
    raise ValueError("The tokenizer has no decoder; expected ByteLevel or a SentencePiece one.")
  steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
  if [step["type"] for step in steps] == ["ByteLevel"]:
    return _byte_level_piece, False

  replaced, byte_fallback, fused = [], False, False
  for step in steps:
    late = byte_fallback or fused
    match step:
      # Word separators: Metaspace and Replace act on each token by itself.
      case {"type": "Replace", "pattern": {"String": old}, "content": new} if not late:
        replaced.append((old, new))
      case {"type": "Metaspace", "replacement": old} if not late:
        replaced.append((old, " "))
      case {"type": "ByteFallback"} if not fused:
        byte_fallback = True
      case {"type": "Fuse"}:
        fused = True
      # Takes spaces off the beginning of all text, where a prompt stands.
      case {"type": "Strip", "stop": 0} if fused:
        pass
      case _:
        raise ValueError(
          f"Decoder step {json.dumps(step)[:80]} is not supported; expected ByteLevel, or"
          " Replace/Metaspace, ByteFallback, Fuse and Strip (left) in this order."
        )

  def read(name: str) -> bytes:
    for old, new in replaced:
      name = name.replace(old, new)
    return name.encode()

  return read, byte_fallback


def _byte_level_names() -> dict[int, int]:
  """Code point -> byte, as byte-level BPE spells bytes: printable Latin-1 as itself,
  every other byte, in order, as the next code point from 256."""
  printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in printable]
  return {byte: byte for byte in printable} | {256 + i: byte for i, byte in enumerate(others)}


_BYTE_LEVEL = _byte_level_names()
_BYTE_LEVEL_CHARACTERS = frozenset(map(chr, _BYTE_LEVEL))


def _byte_level_piece(name: str) -> bytes:
  # Added tokens are spelled as plain text; a character outside the byte alphabet tells.
  if not _BYTE_LEVEL_CHARACTERS.issuperset(name):
    return name.encode()
  return name.translate(_BYTE_LEVEL).encode("latin-1")


def _stop_automaton(stops: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
  """Aho-Corasick automaton: int16[states, 256], state 0 first, "complete" last.

  All accepting states are one, and it is absorbing: the first complete stop string ends
  a response, so what would follow is of no interest.

  Returns:
    The next states, and int16[states, 256] how many bytes of a stop string they stand for.
  """
  children, accepts, depth = [{}], [False], [0]
  for stop in stops:
    state = 0
    for byte in stop:
      if byte not in children[state]:
        children[state][byte] = len(children)
        children.append({})
        accepts.append(False)
        depth.append(depth[state] + 1)
      state = children[state][byte]
    accepts[state] = True

  count = len(children)
  if count >= np.iinfo(np.int16).max:
    raise ValueError(f"Stop strings of {count - 1} bytes in all: expected 32765 or fewer.")
  delta = np.zeros((count, 256), np.int64)
  fallback = [0] * count
  queue = [0]
  for state in queue:  # breadth first: a state's fallback is complete before the state
    if state:
      if accepts[fallback[state]] and not accepts[state]:
        accepts[state], depth[state] = True, depth[fallback[state]]
      delta[state] = delta[fallback[state]]
    for byte, child in children[state].items():
      fallback[child] = int(delta[fallback[state], byte]) if state else 0
      delta[state, byte] = child
      queue.append(child)

  running = [state for state in range(count) if not accepts[state]]
  number = np.full(count, len(running), np.int16)
  number[running] = np.arange(len(running))
  absorbing = np.full((1, 256), len(running), np.int16)
  found = np.array(depth, np.int16)[delta[running]]
  return np.concatenate([number[delta[running]], absorbing]), np.concatenate([found, absorbing])


def _depths(delta: np.ndarray, found: np.ndarray) -> np.ndarray:
  """int16[states] how many bytes of a stop string each state but the last stands for."""
  depths = np.zeros(len(delta), np.int16)
  np.maximum.at(depths, delta[:-1], found[:-1])
  depths[-1] = 0
  return depths


def _utf8_automaton() -> np.ndarray:
  """int32[9, 256]: validity of a run of bytes as UTF-8 (Unicode, table 3-7).

  State 0: a whole number of characters. 1, 2, 3: that many continuation bytes are
  missing. 4 to 7: after E0, ED, F0 and F4, whose next byte is restricted. 8: broken.
  """
  table = np.full((9, 256), 8, np.int32)
  table[0, :0x80] = 0
  table[0, 0xC2:0xE0] = 1
  table[0, 0xE0:0xF0] = 2
  table[0, 0xF0:0xF5] = 3
  table[0, [0xE0, 0xED, 0xF0, 0xF4]] = [4, 5, 6, 7]
  for state in (1, 2, 3):
    table[state, 0x80:0xC0] = state - 1
  table[4, 0xA0:0xC0] = 1
  table[5, 0x80:0xA0] = 1
  table[6, 0x90:0xC0] = 2
  table[7, 0x80:0x90] = 2
  return table


_UTF8 = _utf8_automaton()


def _reduce(x: jax.Array) -> jax.Array:
  """uint32 -> a number of the same residue, below `_PRIME`."""
  x = (x >> 31) + (x & _PRIME)
  return jnp.where(x >= _PRIME, x - _PRIME, x)


def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
  """a * b modulo `_PRIME` for uint32 below it, without a 64-bit product.

  With a = a1 * 2^16 + a0 and b likewise, and 2^31 = 1: 2^32 = 2, and a number m splits
  so that m * 2^16 = (m >> 15) + (m mod 2^15) * 2^16. No sum below exceeds 32 bits.
  """
  a1, a0 = a >> 16, a & 0xFFFF
  b1, b0 = b >> 16, b & 0xFFFF
  high = 2 * a1 * b1
  middle = a1 * b0 + a0 * b1
  middle = (middle >> 15) + ((middle & 0x7FFF) << 16)
  return _reduce(_reduce(high + middle) + _reduce(a0 * b0))
