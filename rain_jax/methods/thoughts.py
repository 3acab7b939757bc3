"""Models that think before they answer: the thought first, by plain sampling, then the answer.

With `format.thinking` "strip" every prompt's thought is sampled once, at temperature 1 as vanilla
sampling does it, up to the mark that ends it. From then on it is context, as the prompt is: whichever
method answers begins after it. A thought is no part of the answer, so no verdict and no judge reads
it, and no search rewinds it.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from rain_jax import types
from rain_jax.methods.responses import work_of
from rain_jax.methods.session import Query, Response, Session, Thought
from rain_jax.parallel.batch_sharding import fetch
from rain_jax.policy import whole_responses
from rain_jax.text import control, encoding, vocab
from rain_jax.types import DataError

_STREAM = 0x7468  # what a thought's random key is folded from; its answer's is the prompt's own
_AHEAD = 8  # batches of thoughts before their answers: what a run that is stopped draws anew

_Told = Callable[[Any], None] | None


def think(
  session: Session, seed: int, skip: frozenset[str] = frozenset(), on_progress: _Told = None
) -> tuple[Session, list[Response]]:
  """The session with a thought after each prompt, drawn now or remembered.

  A prefilled answer has begun: no thought comes before it.

  Args:
    session: with the prompts.
    seed: of the run; a thought depends on it and on the prompt alone.
    skip: ids of prompts to leave as they are.
    on_progress: called after each batch of thoughts, with None.

  Returns:
    The session, and responses to the prompts that it lost: their thoughts did not end.
  """
  if not session.config.format.thinking:
    return session, []
  due = [
    query
    for query in session.queries
    if query.thought is None and not query.record.prefill and query.record.id not in skip
  ]
  known = session.thoughts
  new = [query for query in due if (seed, query.record.id) not in known]
  for begin in range(0, len(new), session.slots):
    drawn = _drawn(session, new[begin : begin + session.slots], seed)
    known.update({(seed, name): found for name, found in drawn})
    if on_progress:
      on_progress(None)
  found = {query.record.id: known[seed, query.record.id] for query in due}
  lost = [one for one in found.values() if isinstance(one, Response)]
  gone = {one.record.id for one in lost}
  queries = [found.get(q.record.id, q) for q in session.queries if q.record.id not in gone]
  return session.answering([q for q in queries if isinstance(q, Query)]), lost


def thinking(method: Callable[..., Iterator[Response]]) -> Callable[..., Iterator[Response]]:
  """A method that answers after each prompt's thought, where the format has thoughts."""

  @functools.wraps(method)
  def run(
    session: Session,
    seed: int,
    skip: frozenset[str] = frozenset(),
    on_progress: _Told = None,
    **options: Any,
  ) -> Iterator[Response]:
    if not session.config.format.thinking:
      yield from method(session, seed, skip, on_progress, **options)
      return
    names = [query.record.id for query in session.queries]
    waiting = [name for name in names if name not in skip]
    size = _AHEAD * session.slots
    for begin in range(0, len(waiting), size):
      # All others are left out, not taken away: a batch stays as large as it is.
      others = frozenset(names) - frozenset(waiting[begin : begin + size])
      session, lost = think(session, seed, others, on_progress)
      yield from lost
      yield from method(session, seed, others, on_progress, **options)

  return run


@functools.lru_cache(maxsize=2)
def _tables(tokenizer: Any, stops: tuple[str, ...], size: int) -> vocab.TokenTables:
  return vocab.build_tables(tokenizer, stops, vocab_size=size)


def _drawn(
  session: Session, queries: Sequence[Query], seed: int
) -> Iterator[tuple[str, Query | Response]]:
  """The ids of a batch's prompts, with prompt and thought, or why there is no end to it."""
  tokenizer, form = session.loaded.tokenizer, session.config.format
  mark = form.think_end.strip()
  token = control.control_tokens(tokenizer).get(mark)
  opening = form.opening_of_answers(tokenizer)
  lm = dataclasses.replace(session.lm, max_response=session.config.max_thought)
  if token is not None:
    eos = (*lm.config.eos_ids, token)
    lm = dataclasses.replace(lm, config=dataclasses.replace(lm.config, eos_ids=eos))
  tables = _tables(tokenizer, () if token is not None else (mark,), lm.config.vocab_size)
  if session.mesh is not None:
    tables = jax.device_put(tables, NamedSharding(session.mesh, PartitionSpec()))
  params = {**session.params, "tables": tables}
  rows = session.padded(queries)
  keys = jax.numpy.stack([jax.random.fold_in(query.key(seed), _STREAM) for query in rows])
  bare = session.answering(queries)
  bare.max_prompt -= session.thought_room // 32 * 32  # the room is for what is drawn
  prompts = bare.prompts(rows, "proposing")
  drawn = fetch(whole_responses.sample(lm, params, prompts, keys, 0, 1, session.mesh))
  for row, query in enumerate(queries):
    ids = drawn.tokens[row, 0, : drawn.length[row, 0]].tolist()
    finish = int(drawn.finish[row, 0])
    ended = ids[-1:] == [token] if token is not None else finish == types.STOP
    work = work_of([drawn.calls[row]], [drawn.forwarded[row]]) | {"thought_tokens": len(ids)}
    yield query.record.id, _after(session, query, ids, finish, ended, work, opening)


def _after(
  session: Session,
  query: Query,
  ids: list[int],
  finish: int,
  ended: bool,
  work: dict[str, int],
  opening: str,
) -> Query | Response:
  """A prompt with its thought, or the response that says why there is none."""
  tokenizer, form = session.loaded.tokenizer, session.config.format
  mark = form.think_end.strip()
  spent = {"response_tokens": 0, **work}
  reject = lambda why, finish="rejected": Response(query.record, "", [], finish, None, spent, why)
  text = encoding.decode_response(tokenizer, query.proposing, ids)
  if finish == types.FAILED:
    return reject(types.NOT_FINITE, "failed")
  if ended:
    thought, _, rest = text.partition(mark)
    space = "" if rest else form.think_end.lstrip()[len(mark) :]
    ids = [*ids, *encoding.encode_continuation(tokenizer, space)]
    return dataclasses.replace(
      query,
      proposing=[*query.proposing, *ids],
      ends=(mark + rest + space)[-1] in vocab.TEXT_ENDS,
      thought=Thought(form.without_opening(thought), work),
    )
  if finish == types.LENGTH:
    return reject(
      f"no {mark} within limits.max_thought={session.config.max_thought} tokens; raise that, or"
      " leave config.format.thinking away for a model that does not think"
    )
  if form.in_thought(opening + text):
    return reject("the model ended its text in the middle of a thought")
  return dataclasses.replace(query, thought=Thought("", work))  # it answered without one


def check_labels(session: Session) -> None:
  """That the session's model answers at once, so that labels can be read.

  Raises:
    DataError: it thinks first, or its prompts end in the middle of a thought.
  """
  form = session.config.format
  if form.thinking:
    raise DataError(
      f"format.thinking={form.thinking!r}: this task reads labels, which a model has none of"
      " before its thought ends; leave it away."
    )
  if form.in_thought(form.opening_of_answers(session.loaded.tokenizer)):
    raise DataError(
      "The chat template begins answers in the middle of a thought, where no label can be read: set"
      " config.format.template_kwargs so that it does not, or name another format."
    )
