"""Binary choice: the more probable of a few labels answers a prompt, without sampling."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from rain_jax.methods.session import Response, Session
from rain_jax.methods.thoughts import check_labels
from rain_jax.policy.labels import label_ids, probabilities
from rain_jax.tasks.readers import LABELS
from rain_jax.types import NOT_FINITE


def choose(
  session: Session,
  seed: int,
  skip: frozenset[str] = frozenset(),
  on_progress: Callable[[None], None] | None = None,
  *,
  labels: Sequence[str] = LABELS,
) -> Iterator[Response]:
  """Answers the session's prompts with the more probable of a few labels, without sampling.

  `on_progress` is called after each batch, with None; nothing depends on `seed`.

  Raises:
    DataError: a model that thinks before it answers.
  """
  check_labels(session)
  ids = [label_ids(session.loaded.tokenizer, (label,)) for label in labels]
  queries = [query for query in session.queries if query.record.id not in skip]
  prefix, size = session.prefix_ids, session.config.batch_size
  for start in range(0, len(queries), size):
    batch = queries[start : start + size]
    texts = [[*prefix, *query.proposing] for query in batch]
    read = probabilities(session.loaded.model, texts, ids, min(size, len(session.queries)))
    for query, text, row in zip(batch, texts, read):
      work = {"response_tokens": 1, "model_calls": 1, "tokens_forwarded": len(text)}
      if np.isfinite(row).all():
        best = int(row.argmax())
        yield Response(query.record, labels[best], list(ids[best][:1]), "length", None, work)
      else:
        yield Response(query.record, "", [], "failed", None, work, NOT_FINITE)
    if on_progress:
      on_progress(None)
