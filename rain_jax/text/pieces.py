"""How a tokenizer spells its tokens: the bytes of every piece of its vocabulary.

How tokens become text is read from the tokenizer's decoder. Two families are known:

* Byte-level BPE (LLaMA 3, Qwen, GPT-2): a piece is a string of bytes; the bytes of all
  pieces are joined and decoded with U+FFFD for what is not UTF-8. A decoder that meets
  a lead byte always starts a new character there, and lead bytes open every character
  of a stop string, so a stop string occurs in the text exactly where its bytes occur.
  Text ends are ASCII, and no byte of a longer character is.
* SentencePiece with byte fallback (LLaMA 1 and 2, Gemma, Mistral): a piece is text, or
  one byte `<0xNN>`. A run of byte tokens is decoded as a whole: if it is not UTF-8,
  *every* byte of it turns into U+FFFD, the well-formed ones too. `ScanState.utf8` keeps
  the validity of the run, so that bytes of a broken run never count as text.

Special tokens, and ids without a piece (padding rows of a model's output layer), are
left out before decoding: they neither add text nor end a run of bytes.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

# How a token enters the text (`TokenTables.kind`).
SKIPPED, BYTE, TEXT = 0, 1, 2

_BYTE_TOKEN = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


def read_pieces(tokenizer: Any, vocab_size: int | None) -> tuple[list[bytes], np.ndarray]:
  """Bytes and kind (int8[vocab]) of every token."""
  if not getattr(tokenizer, "is_fast", False):
    raise ValueError(f"{type(tokenizer).__name__} has no fast backend; load a fast tokenizer.")
  spec = json.loads(tokenizer.backend_tokenizer.to_str())
  read, byte_fallback = _piece_reader(spec["decoder"])
  special = {token["content"] for token in spec["added_tokens"] if token["special"]}
  names = {index: name for name, index in tokenizer.get_vocab().items()}
  if vocab_size is None:
    vocab_size = max(names) + 1

  pieces, kinds = [], np.full(vocab_size, TEXT, np.int8)
  for index in range(vocab_size):
    name = names.get(index)
    if name is None or name in special:
      piece, kinds[index] = b"", SKIPPED
    else:
      piece = read(name)
      if byte_fallback and (match := _BYTE_TOKEN.fullmatch(piece)):
        piece, kinds[index] = bytes([int(match[1], 16)]), BYTE
    pieces.append(piece)
  return pieces, kinds


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
