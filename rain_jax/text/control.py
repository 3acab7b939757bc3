"""Text that somebody said, as tokens: whatever it spells, no control token comes out of it.

A fast tokenizer cuts its added tokens out of every text before it does anything else: the special
ones (`</s>`) unless it is told not to, all others (`<|User|>`, `<tool_call>`) always. Some models
would find them in their vocabulary even then. So text is read by a copy of the tokenizer that knows
its control tokens by other names, each one character that the text does not have. Where a frame
around what was said means a control token, that character stands in its place; what was said is
left as it is, and the copy finds in it what the model's own pieces can spell.
"""

import bisect
import dataclasses
import json
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tokenizers

from rain_jax.types import DataError, is_unicode

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACE = "▁"  # of SentencePiece


def control_tokens(tokenizer: Any) -> dict[str, int]:
  """Name -> id of the tokens by which a tokenizer marks turns, ends, calls of tools and the like.

  All added tokens count, also those that are not special; but runs of white space are text.
  """
  return {
    token.content: index
    for index, token in tokenizer.added_tokens_decoder.items()
    if token.special or token.content.replace(_SPACE, " ").strip()
  }


def control_ids(tokenizer: Any) -> list[int]:
  """The ids of `control_tokens` and of what else the tokenizer calls special."""
  return sorted({*tokenizer.all_special_ids, *control_tokens(tokenizer).values()})


def begin_ids(tokenizer: Any) -> list[int]:
  """What the tokenizer puts before any text: a token for its beginning, or nothing.

  What it may put after a text is left out: a response follows.
  """
  plain = tokenizer("a", add_special_tokens=False).input_ids
  whole = tokenizer("a").input_ids
  starts = (i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
  return list(whole[: next(starts, 0)])


def plain_ids(tokenizer: Any, text: str) -> list[int]:
  """Tokens of a text in which no name of a control token stands for the token.

  As `tokenizer(text, add_special_tokens=False)` gives them for texts without such names.

  Raises:
    ValueError: half a character (a surrogate without its pair), or a tokenizer that cannot do it.
  """
  return _ids(tokenizer, [text])


def split_at(names: Sequence[str], text: str, unless_after: str = "") -> list[str]:
  """The text in pieces: text, name, text, name, ..., text; of two names the longer one counts.

  Args:
    names: what to split at.
    text: what to split.
    unless_after: a character after which a name is text.
  """
  if not names:
    return [text]
  longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
  guard = f"(?<!{re.escape(unless_after)})" if unless_after else ""
  return re.split(f"{guard}({longest_first})", text)


def encode_around(
  tokenizer: Any, render: Callable[[Sequence[str]], str], said: Sequence[str], begin: bool
) -> list[int]:
  """Tokens of a rendered text in which control tokens count, but not in what was said.

  Args:
    tokenizer: fast tokenizer of transformers.
    render: puts what was said into its frame.
    said: the turns.
    begin: put the tokenizer's own beginning of a text before it.

  Raises:
    DataError: the frame changes what was said where that spells a control token.
    ValueError: as `plain_ids`.
  """
  names = list(control_tokens(tokenizer))
  text = render(said)
  unused = _unused({*text, *"".join(said)})
  mark, edge = next(unused), next(unused)
  for ends in (edge, ""):
    marked = render([_marked(one, names, mark, ends) for one in said])
    if marked.replace(mark, "").replace(edge, "") == text:
      break
  else:
    raise DataError("the chat template rewrites control tokens' names in what was said")
  pieces = [
    piece.replace(mark, "").replace(edge, "")
    for piece in split_at(names, marked, unless_after=mark)
  ]
  return (begin_ids(tokenizer) if begin else []) + _ids(tokenizer, pieces)


def _marked(text: str, names: Sequence[str], mark: str, edge: str) -> str:
  """A text with `mark` before every name, and `edge` around all but its outer white space.

  The edges keep what was said from spelling a name together with the frame, which has names right
  beside it. Frames that look at the first characters of a turn need an empty `edge`.
  """
  if names:
    text = re.sub(f"(?={'|'.join(map(re.escape, names))})", mark, text)
  core = text.strip()
  return text.replace(core, edge + core + edge, 1) if core else text


def _unused(taken: set[str]) -> Iterator[str]:
  """Characters of private use that a text does not have."""
  areas = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
  return (chr(code) for area in areas for code in area if chr(code) not in taken)


@dataclasses.dataclass(frozen=True)
class _Copy:
  """A tokenizer that knows its control tokens by other names.

  Attributes:
    names: those it was made for, with their ids.
    backend: the copy.
    marks: its name for each control token.
    ids: id there -> id here, of each control token.
    banned: ids that no text becomes.
  """

  names: Mapping[str, int]
  backend: tokenizers.Tokenizer
  marks: Mapping[str, str]
  ids: Mapping[int, int]
  banned: frozenset[int]


_copies: "weakref.WeakKeyDictionary[Any, _Copy]" = weakref.WeakKeyDictionary()


def _copy_for(tokenizer: Any, text: str) -> _Copy:
  """The tokenizer's copy; another one if the text has a character that stands for a token."""
  names, copy = control_tokens(tokenizer), _copies.get(tokenizer)
  if copy is None or copy.names != names or any(mark in text for mark in copy.marks.values()):
    copy = _copies[tokenizer] = _make_copy(tokenizer, names, set(text))
  return copy


def _make_copy(tokenizer: Any, names: Mapping[str, int], taken: set[str]) -> _Copy:
  if not getattr(tokenizer, "is_fast", False):
    raise ValueError(f"{type(tokenizer).__name__} has no fast backend; load a fast tokenizer.")
  spec = json.loads(tokenizer.backend_tokenizer.to_str())
  taken = taken | set("".join(tokenizer.get_vocab()))
  marks = dict(zip(names, _unused(taken)))
  for token in spec["added_tokens"]:
    token["content"] = marks.get(token["content"], token["content"])
  by_id = {index: marks[name] for name, index in names.items()}
  _rename(spec["model"], by_id)
  backend = tokenizers.Tokenizer.from_str(json.dumps(spec | {"truncation": None, "padding": None}))
  ids = {
    mark_id: index
    for name, index in names.items()
    if (mark_id := backend.token_to_id(marks[name])) is not None
  }
  unknown = {getattr(tokenizer, "unk_token_id", None)}
  return _Copy(dict(names), backend, marks, ids, frozenset({*names.values()} - unknown))


def _rename(model: dict[str, Any], by_id: Mapping[int, str]) -> None:
  """Gives tokens of a model's vocabulary other names, and takes away what leads to the old ones."""
  vocab = model.get("vocab", {})
  entries = vocab.items() if isinstance(vocab, dict) else ((p[0], i) for i, p in enumerate(vocab))
  new = {
    name: by_id[index]
    for name, index in entries
    if index in by_id and not (model.get("byte_fallback") and _BYTE.fullmatch(name))
  }
  if isinstance(vocab, dict):
    model["vocab"] = {new.get(name, name): index for name, index in vocab.items()}
  else:
    model["vocab"] = [[new.get(name, name), score] for name, score in vocab]
  if model.get("unk_token") in new:
    model["unk_token"] = new[model["unk_token"]]
  if new and "merges" in model:
    pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    model["merges"] = [p for p in pairs if not {*p, "".join(p)} & new.keys()]


def _ids(tokenizer: Any, pieces: Sequence[str]) -> list[int]:
  """Tokens of text, name, text, name, ..., text: each name is its token, no text is any."""
  whole = "".join(pieces)
  if not is_unicode(whole):
    raise ValueError("half of a character (a surrogate without its pair); expected text")
  copy = _copy_for(tokenizer, whole)
  ids, placed = _read(copy, [copy.marks[p] if i % 2 else p for i, p in enumerate(pieces)])
  if missing := {i for i in range(1, len(pieces), 2) if i not in placed}:
    # Flags of the token keep the tokenizer itself from seeing it there: then it is text.
    ids, placed = _read(
      copy,
      [copy.marks[p] if i % 2 and i not in missing else p for i, p in enumerate(pieces)],
      missing,
    )
  ids, meant = [copy.ids.get(index, index) for index in ids], set(placed.values())
  for place, index in enumerate(ids):
    if index in copy.banned and place not in meant:
      name = tokenizer.convert_ids_to_tokens([index])[0]
      raise ValueError(f"the tokenizer makes its control token {name!r} of plain text")
  return ids


def _read(
  copy: _Copy, pieces: Sequence[str], text: frozenset[int] | set[int] = frozenset()
) -> tuple[list[int], dict[int, int]]:
  """The copy's ids of a joined text, and where the marks, at odd places of `pieces`, became tokens.

  Args:
    copy: see above.
    pieces: text and marks in turn.
    text: places of what is text after all.
  """
  encoding = copy.backend.encode("".join(pieces), add_special_tokens=False)
  at, starts = 0, []
  for piece in pieces:
    starts.append(at)
    at += len(piece)
  placed = {}
  for index, (token, (begin, end)) in enumerate(zip(encoding.ids, encoding.offsets)):
    if token not in copy.ids:
      continue
    # The token may have taken white space around it along.
    for place in range(bisect.bisect_left(starts, begin), len(pieces)):
      if starts[place] >= end:
        break
      if place % 2 and place not in text:
        placed[place] = index
  return encoding.ids, placed
