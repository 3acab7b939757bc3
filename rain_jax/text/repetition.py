"""How much a text repeats itself: what aligned decoding costs in variety.

A search that is rewarded sentence by sentence likes to say again what was good once, and no
verdict on harm or mood notices. These counts need no model.
"""

import itertools
import re
from collections.abc import Sequence

_RUN = 8  # words: as long a run does not come twice by chance


def repeats(text: str) -> bool:
  """Whether a text repeats a sentence or a run of words, see `repeated_spans`."""
  return bool(repeated_spans(text))


def repeated_spans(text: str) -> list[tuple[int, int]]:
  """Where a text says again what it has said: a sentence of two words or more, or eight words.

  Case and white space do not count; a sentence ends with a line, or with one of `. ! ?`.

  Returns:
    Begin and end of each stretch of words that are said for the second time or more, in order.
  """
  found = list(re.finditer(r"\S+", text))
  words = [match[0].casefold() for match in found]
  repeated = [False] * len(words)
  for parts in (_sentences(text, found), [(i, i + _RUN) for i in range(len(words) - _RUN + 1)]):
    said: set[tuple[str, ...]] = set()
    for begin, end in parts:
      part = tuple(words[begin:end])
      if part in said:
        repeated[begin:end] = [True] * (end - begin)
      said.add(part)
  spans: list[tuple[int, int]] = []
  for place, match in enumerate(found):
    if repeated[place]:
      begin = spans.pop()[0] if place and repeated[place - 1] else match.start()
      spans.append((begin, match.end()))
  return spans


def distinct_2(text: str) -> float | None:
  """Share of a text's word pairs that are distinct, in (0, 1]; None below two words.

  distinct-2 of Li et al., arXiv 1510.03055, of each text by itself.
  """
  pairs = list(itertools.pairwise(text.casefold().split()))
  return len(set(pairs)) / len(pairs) if pairs else None


def _sentences(text: str, words: Sequence[re.Match[str]]) -> list[tuple[int, int]]:
  """First word and the one after the last of each sentence of two words or more."""
  ends = [
    i
    for i, (word, following) in enumerate(itertools.pairwise(words), 1)
    if word[0][-1] in ".!?" or "\n" in text[word.end() : following.start()]
  ]
  parts = itertools.pairwise([0, *ends, len(words)])
  return [(begin, end) for begin, end in parts if end - begin > 1]
