"""What the model answers when it is asked about responses that are there already."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import types
from rain_jax.methods.responses import text_of
from rain_jax.methods.session import Session
from rain_jax.models import backend
from rain_jax.parallel import machine, workers
from rain_jax.policy import packed

_ROW = 512  # tokens read by one call; texts of some dozen tokens leave little of it empty


class Answers(NamedTuple):
  """How the model judges some responses, without calibration.

  Attributes:
    margins: float32[responses, readings] how much more probable the good label is.
    leads: float32[responses, readings] the same in log-odds.
  """

  margins: np.ndarray
  leads: np.ndarray


def answers(session: Session, responses: Sequence[tuple[str, Sequence[int]]]) -> Answers:
  """Judges responses, whole or partial, on all cores.

  Args:
    session: with the prompts.
    responses: the id of its prompt, and each response's tokens as they continue it.

  Returns:
    Answers in the order of `responses`, NaN where the model's output is not finite.
  """
  asked = {query.record.id: query.evaluating for query in session.queries}
  lengths = _judged(session, [response for _, response in responses])
  ids = [
    [*asked[name], *_spoken(session, said[:length], asked[name][-1])]
    for (name, said), length in zip(responses, lengths)
  ]
  suffixes = session.preference.suffix_ids
  longest = max(map(len, ids)) + sum(map(len, suffixes))
  size = max(_ROW, 128 * math.ceil(longest / 128))
  rows = workers.Shared(packed.pack(ids, suffixes, size))
  count = machine.cores() if backend.leaves_cores_idle() else 1
  found = np.zeros((2, len(ids), len(suffixes)), np.float32)
  for row, read in workers.merged([_read(session, rows) for _ in range(count)]):
    found[:, list(row.texts)] = read[:, : len(row.texts)]
  return Answers(*found)


def _read(session: Session, rows: Iterator[packed.Row]) -> Iterator[tuple[packed.Row, np.ndarray]]:
  for row in rows:
    yield row, np.stack(jax.device_get(packed.read(session.lm, session.params, *row[1:])))


def _spoken(session: Session, response: Sequence[int], before: int) -> Sequence[int]:
  """A response's tokens as the verdict reads them after the token `before`."""
  translation = session.lm.translation
  return translation.ids(response, before) if translation else session.preference.spoken(response)


def _judged(session: Session, responses: Sequence[Sequence[int]]) -> np.ndarray:
  """How many tokens of each response are judged, int32[responses]."""
  longest = 32 * math.ceil(max(map(len, responses)) / 32)
  rows = np.full((len(responses), longest), types.NO_TOKEN, np.int32)
  for row, response in zip(rows, responses):
    row[: len(response)] = response
  return jax.device_get(
    session.lm.judged(text_of(session.params["tables"], rows), jnp.int32(types.RUNNING))[0]
  )
