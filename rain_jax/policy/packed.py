"""Verdicts on many texts in one row of tokens: no padding but at its end, one program for all.

Texts of a few dozen tokens, each with its own suffixes, would be padded to the longest of a batch.
Here they stand one after the other, each at the positions that it has by itself, and none sees
another. What a verdict reads is what `whole_responses.self_evaluate` reads of the same text.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax.models import NO_POSITION, forward
from rain_jax.policy import context, decoding, self_evaluation
from rain_jax.policy.language_model import LanguageModel
from rain_jax.policy.params import Params
from rain_jax.types import Array

_SHORT = 16  # tokens; a row of texts shorter than that is not filled


class Row(NamedTuple):
  """Texts packed into T tokens, M of them at most.

  Attributes:
    texts: which texts, in their order in the row.
    tokens: int32[T].
    positions: int32[T] after the prefix; `NO_POSITION` where nothing is.
    text: int32[T] which text of the row a token belongs to.
    reading: int32[T] which suffix it belongs to; -1 for the text itself.
    last: int32[M, readings] where each suffix ends.
  """

  texts: tuple[int, ...]
  tokens: np.ndarray
  positions: np.ndarray
  text: np.ndarray
  reading: np.ndarray
  last: np.ndarray


def pack(
  texts: Sequence[Sequence[int]], suffixes: Sequence[Sequence[int]], size: int
) -> Iterator[Row]:
  """Rows that hold all texts in their order, each with every suffix after it.

  Args:
    texts: tokens of the conversations with the judged responses, see `CompiledPreference.spoken`.
    suffixes: tokens of each reading's suffix.
    size: tokens of a row (T), as many as the longest text with its suffixes at least.
  """
  asked = sum(map(len, suffixes))
  most = max(1, size // (asked + _SHORT))
  begin = 0
  while begin < len(texts):
    end, used = begin, 0
    while end < len(texts) and end - begin < most and used + len(texts[end]) + asked <= size:
      used += len(texts[end]) + asked
      end += 1
    yield _row(range(begin, end), texts, suffixes, size, most)
    begin = end


def _row(
  places: range,
  texts: Sequence[Sequence[int]],
  suffixes: Sequence[Sequence[int]],
  size: int,
  most: int,
) -> Row:
  tokens, reading, text = (np.zeros(size, np.int32) for _ in range(3))
  positions = np.full(size, NO_POSITION, np.int32)
  last = np.zeros((most, len(suffixes)), np.int32)
  at = 0
  for number, place in enumerate(places):
    length = len(texts[place])
    for which, part in enumerate((texts[place], *suffixes), -1):
      span = slice(at, at + len(part))
      tokens[span], reading[span], text[span] = part, which, number
      positions[span] = np.arange(len(part)) + (0 if which < 0 else length)
      at += len(part)
      if which >= 0:
        last[number, which] = at - 1
  return Row(tuple(places), tokens, positions, text, reading, last)


@functools.partial(jax.jit, static_argnames="lm")
def read(
  lm: LanguageModel,
  params: Params,
  tokens: Array,
  positions: Array,
  text: Array,
  reading: Array,
  last: Array,
) -> tuple[Array, Array]:
  """The model's answers on the texts of a row, its arrays as in `Row`.

  Returns:
    `self_evaluation.margins`, without correction, and `self_evaluation.leads`, float32[M, readings]
    each.
  """
  prefix, shift = context.prefix(params, "evaluating")
  own = text[:, None] == text
  sees = own & ((reading < 0) | (reading[:, None] == reading))
  filled = positions != NO_POSITION
  hidden, _ = forward(
    *context.reader(lm, params, "evaluating"),
    tokens,
    jnp.where(filled, positions + shift, NO_POSITION),
    prefix,
    sees,
  )
  logits = decoding.logits(lm, params, hidden[last], "evaluating")
  preference = lm.preference
  return self_evaluation.margins(preference, logits), self_evaluation.leads(preference, logits)
