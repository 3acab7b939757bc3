"""Verdicts by a model of another tokenizer, which reads responses in its own tokens.

The writer's tokens are decoded, and the text is tokenised anew, on the host: while a search runs in a
callback of its program. A text whose tokens change has no prefix in common with an earlier one that
could be relied on, so the model reads each response whole, after the conversation that its cache
holds; `self_evaluation.read_verdicts` takes it as a tail after the root.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax.models import cache as caches
from rain_jax.models.cache import Paths
from rain_jax.policy import self_evaluation
from rain_jax.policy.params import Params
from rain_jax.policy.self_evaluation import Verdicts
from rain_jax.policy.usage import Usage
from rain_jax.text import control, encoding
from rain_jax.types import Array

if TYPE_CHECKING:
  from rain_jax.policy.language_model import LanguageModel, PolicyState

_ROOM = 4  # tokens of the other tokenizer for one of the writer's, on average over a response
_SHORTEST = 32  # tokens; whole responses are padded to this times a power of two, to compile little
UNREADABLE = -1


@dataclasses.dataclass(frozen=True)
class Translation:
  """From one tokenizer's tokens to another's; static.

  Attributes:
    writer: tokenizer of the model that writes.
    reader: tokenizer of the model that gives the verdicts.
    opening: see `CompiledPreference`.
  """

  writer: Any
  reader: Any
  opening: tuple[int, str] | None = None

  def room(self, size: int) -> int:
    """Tokens that are kept free for a response of `size` tokens; what needs more has no verdict."""
    return _ROOM * size

  def ids(self, tokens: Sequence[int], before: int) -> list[int]:
    """A response's tokens as the reader has them after its token `before`.

    White space around the response is left out. After the reader's own opening of an answer, it
    follows the white space that its template puts there, and after a colon, which opens a turn, a
    space; after other text, such as a prefill, it goes on as it was written.

    Raises:
      ValueError: the text has no tokens.
    """
    text = encoding.decode_response(self.writer, (), tokens).rstrip()
    last = encoding.decode_response(self.reader, (), [before])
    if self.opening is not None and before == self.opening[0]:
      text = self.opening[1] + text.lstrip() if text else ""
    elif not last or last[-1:].isspace():
      text = text.lstrip()
    elif last.endswith(":") and text:
      text = " " + text.lstrip()
    try:
      return encoding.encode_continuation(self.reader, text)
    except ValueError:  # it joins with what is put before it
      return control.plain_ids(self.reader, text)

  def prefix_ids(self, ids: Sequence[int]) -> list[int]:
    """The writer's tokens of a text that the reader has as `ids`."""
    return control.plain_ids(self.writer, encoding.decode_response(self.reader, (), ids))

  def texts(self, tokens: Any, length: Any, before: Sequence[int]) -> tuple[Any, Any]:
    """Whole responses in the reader's tokens.

    Args:
      tokens: int32[B, N, R].
      length: int32[B, N] how many of them are judged.
      before: the reader's token after which the responses of each prompt stand.

    Returns:
      int32[B, N, T], and int32[B, N] how many tokens each has, `UNREADABLE` where it has none.
    """
    lists = self._lists(tokens, length, before, np.ones(length.shape, bool))
    longest = max((len(ids) for row in lists for ids in row if ids is not None), default=1)
    width = _SHORTEST * 2 ** max(0, math.ceil(math.log2(max(longest, 1) / _SHORTEST)))
    return _padded(lists, width)

  def traced(
    self, tokens: Array, length: Array, before: Array, asked: Array
  ) -> tuple[Array, Array]:
    """As `texts`, within a compiled program, of the responses asked for: bool[B, W]."""
    width = self.room(tokens.shape[-1])
    shapes = (
      jax.ShapeDtypeStruct((*length.shape, width), jnp.int32),
      jax.ShapeDtypeStruct(length.shape, jnp.int32),
    )

    def on_host(tokens: Any, length: Any, before: Any, asked: Any) -> tuple[Any, Any]:
      lists = self._lists(*map(np.asarray, (tokens, length, before, asked)))
      return _padded(lists, width)

    return jax.pure_callback(on_host, shapes, tokens, length, before, asked)

  def _lists(
    self, tokens: Any, length: Any, before: Any, asked: Any
  ) -> list[list[list[int] | None]]:
    def read(b: int, w: int) -> list[int] | None:
      if not asked[b, w]:
        return []
      try:
        return self.ids(tokens[b, w, : length[b, w]].tolist(), int(before[b]))
      except ValueError:
        return None

    B, W = length.shape
    return [[read(b, w) for w in range(W)] for b in range(B)]


def _padded(lists: Sequence[Sequence[list[int] | None]], width: int) -> tuple[Any, Any]:
  """Lists of tokens as int32[B, W, width], and int32[B, W] their lengths or `UNREADABLE`."""
  shape = len(lists), len(lists[0])
  tokens, length = np.zeros((*shape, width), np.int32), np.full(shape, UNREADABLE, np.int32)
  for b, row in enumerate(lists):
    for w, ids in enumerate(row):
      if ids is not None and len(ids) <= width:
        tokens[b, w, : len(ids)] = ids
        length[b, w] = len(ids)
  return tokens, length


def read_verdicts(
  lm: "LanguageModel",
  params: Params,
  state: "PolicyState",
  paths: Paths,
  judged: Array,
  asked: Array,
  usage: Usage,
) -> Verdicts:
  """`self_evaluation.read_verdicts` of responses, by a model of whichever tokenizer.

  Args:
    lm: the language model.
    params: its arrays.
    state: the caches, and the committed texts.
    paths: of the leaves, with rollouts as tails.
    judged: int32[B, W] how many tokens of each response, as written, are judged.
    asked: bool[B, W].
    usage: work counters.

  Returns:
    Margins NaN where a text has no tokens; no `tail` where the tokens are another tokenizer's.
  """
  cache = state.evaluating
  if lm.translation is None:
    limit = (cache.length - state.text.length)[:, None] + judged
    return self_evaluation.read_verdicts(lm, params, cache, paths, limit, asked, usage)
  L, written = lm.search.max_set_length, state.proposing
  begin = (written.length - state.text.length)[:, None, None]
  at = jnp.broadcast_to(
    begin + jnp.arange(lm.max_response + L), (*judged.shape, lm.max_response + L)
  )
  tokens = caches.locate(written, paths, at).token
  last = jnp.take_along_axis(cache.tokens, cache.length[:, None] - 1, axis=1)[:, 0]
  ids, count = lm.translation.traced(tokens, judged, last, asked)
  readable = count != UNREADABLE
  nodes = jnp.zeros((*judged.shape, 0), jnp.int32)  # none
  whole = Paths(pages=nodes, tokens=nodes[..., None], lengths=nodes, tail=ids)
  limit = cache.length[:, None] + jnp.maximum(count, 0)
  found = self_evaluation.read_verdicts(lm, params, cache, whole, limit, asked & readable, usage)
  margins = jnp.where(readable[..., None], found.margins, jnp.nan)
  return found._replace(margins=margins, tail=None)
