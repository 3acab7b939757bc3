"""A response as it grows, in a terminal: committed text stays, rewound text is struck out."""

import shutil
import sys
import time
import unicodedata
from collections.abc import Callable
from typing import TextIO

from rain_jax.methods import SearchStep, events
from rain_jax.text.printable import printable

_BOLD, _FAINT, _STRUCK, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[9;31m", "\x1b[0m"


def view(out: TextIO = sys.stdout) -> Callable[[events.Event], None]:
  """What shows events on `out`: in place on a terminal, line by line elsewhere."""
  return TerminalView(out) if out.isatty() else LineView(out)


class Follower:
  """Shows the steps of searches (`methods.watch`), one prompt after the other, on `out`.

  Attributes:
    followed: how many searches there were.
  """

  def __init__(self, out: TextIO = sys.stdout):
    self._out, self._view = out, view(out)
    self._reader: events.Reader | None = None
    self.followed = 0

  def __call__(self, step: SearchStep) -> None:
    if self._reader is None:
      self._reader = events.Reader()
      self.followed += 1
      print(f"\nprompt: {printable(step.query.record.prompt)}", file=self._out)
    for event in self._reader.read(step):
      self._view(event)
    if step.response is not None:
      self._reader = None


class LineView:
  """One line per event, below one that says what the signs mean."""

  LEGEND = "+ tried   - taken back   = committed   (end): the response ends there"

  def __init__(self, out: TextIO):
    self._out, self._explained = out, False

  def __call__(self, event: events.Event) -> None:
    sign = {events.TRY: "+", events.REWIND: "-", events.COMMIT: "="}.get(event.kind)
    if sign is None:
      return
    if not self._explained:
      print(self.LEGEND, file=self._out)
      self._explained = True
    # Nothing is new where an end mark alone is tried, or the same text once more.
    nothing = "(end)" if event.ends else "(no new text)"
    text = printable(event.text).replace("\n", "\\n") or nothing
    verdict = "" if event.verdict is None else f"   verdict {event.verdict:+g}"
    print(f"{sign} {text}{verdict}", file=self._out, flush=True)


class TerminalView:
  """Draws the text on trial anew with every event; lines that are final are left alone.

  Args:
    out: a terminal that knows ANSI sequences.
    pause: seconds for which text that is taken back stays visible.
    width: columns; those that the terminal has by then by default.
  """

  def __init__(self, out: TextIO, pause: float = 0.2, width: int | None = None):
    self._out, self._pause, self._width = out, pause, width
    self._final = self._trial = ""
    self._rows = 0  # rows below the first one that is drawn anew

  def __call__(self, event: events.Event) -> None:
    text = printable(event.text)
    if event.kind == events.TRY:
      self._trial += text
    elif event.kind == events.REWIND:
      self._trial = self._trial[: len(self._trial) - len(text)]
      self._draw(struck=text)
      time.sleep(self._pause)
    elif event.kind == events.COMMIT:
      self._final, self._trial = self._final + text, self._trial[len(text) :]
    self._draw()
    if event.kind == events.END:
      self._write("\n")
      self._final, self._rows = "", 0

  def _draw(self, struck: str = "") -> None:
    """Goes back to the first row that may change, and draws from there."""
    width = self._width or shutil.get_terminal_size().columns
    self._write(f"\x1b[{self._rows}A" if self._rows else "")
    self._write("\r\x1b[J")
    parts = [(_BOLD, self._final), (_FAINT, self._trial), (_STRUCK, struck)]
    row, column, kept = 0, 0, None
    for style, text in parts:
      self._write(style)
      if style != _BOLD and kept is None:
        kept = row
      for character in text:
        size = _columns(character)
        if character == "\n" or column + size > width:
          self._write("\r\n")
          row, column = row + 1, 0
        if character != "\n":
          self._write(character)
          column += size
      self._write(_PLAIN)
    # Rows above the one in which the final text ends never change again.
    self._final = _rest_of_last_row(self._final, width)
    self._rows = row - (kept or 0)
    self._out.flush()

  def _write(self, text: str) -> None:
    self._out.write(text)


def _columns(character: str) -> int:
  """Columns that a character takes in a terminal."""
  if unicodedata.combining(character):
    return 0
  return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _rest_of_last_row(text: str, width: int) -> str:
  """The part of a text that stands in its last row."""
  begin = column = 0
  for place, character in enumerate(text):
    size = _columns(character)
    if character == "\n":
      begin, column = place + 1, 0
    elif column + size > width:
      begin, column = place, size
    else:
      column += size
  return text[begin:]
