"""A search as it reads to somebody who looks on: text that grows, is taken back, is final."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from rain_jax import types
from rain_jax.methods import SearchStep, recording
from rain_jax.methods.session import Response

TRY, REWIND, COMMIT, END = "try", "rewind", "commit", "end"
_RUNNING = types.FINISH_REASONS[types.RUNNING]


@dataclasses.dataclass(frozen=True)
class Event:
  """Something that happens to the text; committed text is followed by text on trial.

  Attributes:
    kind: TRY (`text` joins the text on trial), REWIND (`text` is taken back from its end),
      COMMIT (`text`, at its beginning, is final from now on) or END.
    text: see `kind`; the whole response at the END.
    verdict: after the last TRY of an iteration, the verdict on all text up to here.
    response: at the END.
    ends: of TRY and COMMIT, whether the response ends after `text`, which may be empty then.
  """

  kind: str
  text: str
  verdict: float | None = None
  response: Response | None = None
  ends: bool = False


def events(progress: Iterable[SearchStep]) -> Iterator[Event]:
  """The events of one response, from the steps of its search (`methods.watch`)."""
  reader = Reader()
  for step in progress:
    yield from reader.read(step)


class Reader:
  """Turns the steps of one response's search into events, as they come."""

  def __init__(self):
    self._root, self._trial = 0, ""
    self._end = 0  # where the text that is committed, finally or not, ends

  def read(self, step: SearchStep) -> Iterator[Event]:
    """The events of one step; all of them have to be taken before the next step."""
    for frame in step.frames:
      told = _of_revocable if step.revocable else _of_frame
      for event in told(step.nodes, frame, self._root, self._trial):
        self._trial = _after(event, self._trial)
        yield event
      self._end = self._end if frame.node is None else frame.node
      self._root = self._root if step.revocable else self._end
    if step.response is not None:
      if step.revocable:
        text = _text(step.nodes, self._end)
        if self._trial != text:
          yield Event(REWIND, self._trial[len(text) :])
        yield Event(COMMIT, text, ends=True)
        self._trial = ""
      if self._trial:
        yield Event(REWIND, self._trial)
      yield Event(END, step.response.text, response=step.response)


def _of_frame(
  nodes: Sequence[recording.Node], frame: recording.Frame, root: int, trial: str
) -> Iterator[Event]:
  """The events of a frame; `root` was committed last, `trial` is on trial before it."""
  if frame.kind == recording.SEARCH and frame.visits:
    visit = frame.visits[-1]
    path = recording.path(nodes, visit.node)
    text = "".join(nodes[node].text for node in path[path.index(root) + 1 :]) + visit.rollout
    yield from _replaced(trial, text, visit.verdict, visit.finish != _RUNNING)
  elif frame.node is not None:  # a commit
    node = nodes[frame.node]
    if not trial.startswith(node.text):
      yield from _replaced(trial, node.text)
    yield Event(COMMIT, node.text, ends=node.finish != _RUNNING)


def _of_revocable(
  nodes: Sequence[recording.Node], frame: recording.Frame, root: int, trial: str
) -> Iterator[Event]:
  """The events of a frame where nothing is final before the end: all text stays on trial."""
  if frame.visits:
    visit = frame.visits[-1]
    text = _text(nodes, visit.node) + visit.rollout
    yield from _replaced(trial, text, visit.verdict, visit.finish != _RUNNING)
  elif frame.node is not None:
    text = _text(nodes, frame.node)
    if frame.kind == recording.REWIND:
      yield Event(REWIND, trial[len(text) :])
    elif not trial.startswith(text):
      yield from _replaced(trial, text)


def _text(nodes: Sequence[recording.Node], node: int) -> str:
  """The text from the beginning of the response to the end of a node."""
  return "".join(nodes[one].text for one in recording.path(nodes, node))


def _replaced(
  old: str, new: str, verdict: float | None = None, ends: bool = False
) -> Iterator[Event]:
  """Takes back what `old` and `new` do not begin with, and puts the rest of `new` there."""
  same = next((i for i, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)))
  if old[same:]:
    yield Event(REWIND, old[same:])
  yield Event(TRY, new[same:], verdict, ends=ends)


def _after(event: Event, trial: str) -> str:
  if event.kind == TRY:
    return trial + event.text
  kept = len(trial) - len(event.text)
  return trial[:kept] if event.kind == REWIND else trial[len(event.text) :]
