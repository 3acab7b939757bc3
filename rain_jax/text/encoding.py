"""Tokens to text and text to tokens, as pieces that continue other text."""

from collections.abc import Sequence
from typing import Any

from rain_jax.text import control

REPLACEMENT = "\ufffd"  # what decoders put for bytes that are not UTF-8

# Text that `encode_continuation` tries as the text before; the first is what templates
# are usually joined by.
_ANCHORS = ("\n", "a", ":", ".", "0", ")")


def decode_response(tokenizer: Any, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
  """The text of response tokens, as it continues the prompt.

  That is the text of prompt and response without the text of the prompt. Where the
  prompt has no text, or its last bytes read differently together with the response's,
  a letter takes its place.
  """
  head = _decode(tokenizer, prompt_ids)
  whole = _decode(tokenizer, [*prompt_ids, *ids])
  if not head or not whole.startswith(head):
    head = "a"
    whole = _decode(tokenizer, [*control.plain_ids(tokenizer, head), *ids])
  return whole[len(head) :]


def encode_continuation(tokenizer: Any, text: str) -> list[int]:
  """Tokens of a piece of text as it continues other text.

  No token for the beginning of a text, and no space that a tokenizer puts before the
  first word. Text that spells a control token stays text, see `control.plain_ids`.

  Raises:
    ValueError: if the text joins with whatever is put before it.
  """
  if not text:
    return []
  # What the tokenizer itself makes of the text, e.g. after Unicode normalisation.
  known = {text, _decode(tokenizer, control.plain_ids(tokenizer, text))}
  for anchor in _ANCHORS:
    before = control.plain_ids(tokenizer, anchor)
    whole = control.plain_ids(tokenizer, anchor + text)
    rest = whole[len(before) :]
    if before and whole[: len(before)] == before:
      if decode_response(tokenizer, before, rest) in known:
        return rest
  raise ValueError(
    f"Text {text[:40]!r} has no tokens of its own after any of {_ANCHORS}; expected text"
    " that can stand apart, e.g. begin with a newline."
  )


def single_token(tokenizer: Any, text: str, before: str = "") -> int | None:
  """The one known token that a text is after another; None if it is none or several.

  Raises:
    ValueError: as `encode_continuation`.
  """
  start = encode_continuation(tokenizer, before)
  whole = encode_continuation(tokenizer, before + text)
  ids = whole[len(start) :] if whole[: len(start)] == start else []
  return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


def encode_frame(tokenizer: Any, text: str) -> list[int]:
  """Tokens of a template's own text after other text; names of control tokens stand for them.

  Raises:
    ValueError: a piece has no tokens of its own, see `encode_continuation`.
  """
  names, ids = control.control_tokens(tokenizer), []
  for place, piece in enumerate(control.split_at(list(names), text)):
    ids += [names[piece]] if place % 2 else encode_continuation(tokenizer, piece)
  return ids


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
  return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
