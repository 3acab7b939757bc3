"""A conversation in a terminal: with RAIN, with plain sampling, or with both side by side."""

import dataclasses
import itertools
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import TextIO

from rain_jax.methods import events, find_method
from rain_jax.methods.session import Response, Session, SessionConfig
from rain_jax.models import arrays
from rain_jax.models.loading import LoadedModel
from rain_jax.policy import memory_plan
from rain_jax.tasks import Record
from rain_jax.text.printable import printable
from rain_jax.types import DataError
from rain_jax.views import live

MODES = {"rain": ("rain",), "vanilla": ("vanilla",), "both": ("vanilla", "rain")}
HELP = """/rain, /vanilla, /both   who answers from now on; both: side by side, RAIN's answer counts
/forget                  begin a new conversation
/quit                    end, as does the end of input"""


class Conversation:
  """Turns with one model; what was said before is part of every prompt.

  Args:
    loaded: the model.
    session_config: format, preference, search and limits. Prompts are as long as `max_prompt`
      from the first turn on, so that later turns compile nothing anew.
    seed: of all random numbers.

  Raises:
    ValueError: a search would not fit into the memory; one line.

  Attributes:
    history: what the user and the model said in turn.
    forgotten: turns that had to be dropped because `max_prompt` was full.
  """

  def __init__(self, loaded: LoadedModel, session_config: SessionConfig, seed: int):
    session_config = dataclasses.replace(session_config, batch_size=1, fit_prompts=False)
    self._session = Session(loaded, session_config, [])
    memory_plan.check(self._session.plan(), arrays.bytes_available())
    self._seed, self._number = seed, itertools.count()
    self.history: tuple[str, ...] = ()
    self.forgotten = 0

  def ask(
    self,
    prompt: str,
    methods: tuple[str, ...],
    on_event: Callable[[events.Event], None] = lambda event: None,
  ) -> dict[str, Response]:
    """One turn: the answer by each method, the last of which joins the history.

    Args:
      prompt: what the user says.
      methods: names of methods without options.
      on_event: hears what happens to the answer of a search.

    Raises:
      DataError: the prompt cannot be answered, whatever was said before.
    """
    session = self._served(prompt)
    answers: dict[str, Response] = {}
    for name in methods:
      method = find_method(name)
      if method.watch is None:
        (answers[name],) = method.run(session, self._seed)
      else:
        for event in events.events(method.watch(session, self._seed)):
          on_event(event)
          if event.response is not None:  # the last one's
            answers[name] = event.response
    if answers[methods[-1]].error is None:
      self.history += (prompt, answers[methods[-1]].text)
    return answers

  def forget(self) -> None:
    """Begins a new conversation."""
    self.history, self.forgotten = (), 0

  def _served(self, prompt: str) -> Session:
    """The session with this turn for a prompt; the oldest turns go where there is no room."""
    name = f"turn-{next(self._number)}"
    serving = lambda history: self._session.serving([Record(name, prompt, history=history)])
    for rejected in serving(()).rejected:
      raise DataError(f"{rejected.error}; say something else.")
    while (session := serving(self.history)).rejected:
      self.history, self.forgotten = self.history[2:], self.forgotten + 1
    return session


def heard(prompt: str) -> str:
  """Shows a prompt and returns a line of standard input; EOFError at its end.

  A terminal shows what is typed, and ends its line; what comes from elsewhere is printed.
  """
  line = input(prompt)
  if not sys.stdin.isatty():
    print(printable(line), flush=True)
  return line


def talk(conversation: Conversation, mode: str, ask: Callable[[str], str], out: TextIO) -> None:
  """Talks until the input ends or the user says /quit.

  Args:
    conversation: with whom.
    mode: a name of `MODES`, to begin with.
    ask: shows a prompt and returns a line of the user's; EOFError at the end of input.
    out: where answers go.
  """
  say = lambda text="": print(text, file=out, flush=True)
  say(HELP)
  show = live.view(out)
  while True:
    try:
      line = ask("\nyou: ").strip()
    except EOFError:
      say()
      return
    if line == "/quit":
      return
    if line == "/forget":
      conversation.forget()
      say("(a new conversation)")
    elif line.removeprefix("/") in MODES and line.startswith("/"):
      mode = line[1:]
      say(f"({' and '.join(MODES[mode])} from now on)")
    elif line.startswith("/"):
      say(HELP)
    elif line:
      _turn(conversation, mode, line, show, out, say)


def _turn(conversation, mode, line, show, out, say) -> None:
  methods, before = MODES[mode], conversation.forgotten
  try:
    answers = conversation.ask(line, methods, show if mode == "rain" else lambda event: None)
  except DataError as error:
    say(f"({error})")
    return
  if conversation.forgotten > before:
    say(f"({conversation.forgotten - before} turns forgotten: limits.max_prompt is full)")
  if mode == "both":
    say(beside(answers, shutil.get_terminal_size().columns))
  else:
    (answer,) = answers.values()
    # A terminal that showed the response grow has it already.
    if mode == "vanilla" or not out.isatty():
      say(f"{mode}: {printable(answer.text)}")
    say(f"({cost(answer)})")


def cost(answer: Response) -> str:
  """An answer's verdict, or why it has none, and what it took."""
  counters = answer.counters
  verdict = (
    (answer.error or "no verdict") if answer.verdict is None else f"own verdict {answer.verdict:+g}"
  )
  parts = [verdict, f"{counters['response_tokens']} tokens"]
  parts += [f"{counters[name]} {name}" for name in ("iterations", "rewinds") if name in counters]
  return ", ".join([*parts, f"{counters['tokens_forwarded']} tokens forwarded"])


def beside(answers: dict[str, Response], width: int) -> str:
  """Answers in columns, each under its method's name."""
  column = max(20, (width - 3 * (len(answers) - 1)) // len(answers))
  blocks = []
  for method, answer in answers.items():
    lines = [
      line
      for part in printable(answer.text).split("\n")
      for line in textwrap.wrap(part, column) or [""]
    ]
    blocks.append([method, "", *lines, "", *textwrap.wrap(f"({cost(answer)})", column)])
  rows = itertools.zip_longest(*blocks, fillvalue="")
  return "\n".join(" | ".join(cell.ljust(column) for cell in row).rstrip() for row in rows)
