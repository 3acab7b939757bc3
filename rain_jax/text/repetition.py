"""How much a text repeats itself: what aligned decoding costs in variety.

A search that is rewarded sentence by sentence likes to say again what was good once, and no
verdict on harm or mood notices. These counts need no model.
"""

import re
from collections.abc import Sequence

_RUN = 8  # words: as long a run does not come twice by chance
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def repeats(text: str) -> bool:
  """Whether a text repeats a sentence (of two words or more) or a run of eight words.

  Case and white space do not count; a sentence ends with a line, or with one of `. ! ?`.
  """
  sentences = [tuple(part.casefold().split()) for part in _SENTENCE.split(text)]
  sentences = [words for words in sentences if len(words) > 1]
  return _repeated(sentences) or _repeated(_runs(text.casefold().split(), _RUN))


def distinct_2(text: str) -> float | None:
  """Share of a text's word pairs that are distinct, in (0, 1]; None below two words.

  distinct-2 of Li et al., arXiv 1510.03055, of each text by itself.
  """
  pairs = _runs(text.casefold().split(), 2)
  return len(set(pairs)) / len(pairs) if pairs else None


def _runs(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
  return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]


def _repeated(parts: Sequence[tuple[str, ...]]) -> bool:
  return len(set(parts)) < len(parts)
