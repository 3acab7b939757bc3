"""The live view: what stands on the screen in the end is the response, whatever was taken back."""

import io
import random
import re

import pytest

from rain_jax.methods import SearchStep, events, recording
from rain_jax.methods.session import Query, Response
from rain_jax.tasks import Record
from rain_jax.views import live


def screen(written, width):
  """The rows on a terminal of that width after all that was written to it; styles dropped."""
  rows, row, column = [[]], 0, 0
  for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|.", written, re.DOTALL):
    if part.startswith("\x1b["):
      number, command = part[2:-1], part[-1]
      if command == "A":
        row -= int(number)
        assert row >= 0
      elif command == "J":
        rows[row] = rows[row][:column]
        del rows[row + 1 :]
      else:
        assert command == "m", part
    elif part == "\r":
      column = 0
    elif part == "\n":
      row, column = row + 1, 0
      while len(rows) <= row:
        rows.append([])
    else:
      assert part.isprintable(), repr(part)
      column += live._columns(part)
      assert column <= width
      rows[row].append(part)
  return ["".join(cells) for cells in rows]


def wrapped(text, width):
  """A text as rows of that width."""
  rows, column = [""], 0
  for character in text:
    size = live._columns(character)
    if character == "\n" or column + size > width:
      rows.append("")
      column = 0
    if character != "\n":
      rows[-1] += character
      column += size
  return rows


def made_events(seed):
  """A random search: text tried, taken back and committed, and all that was committed."""
  draw = random.Random(seed)
  word = lambda: "".join(
    draw.choice("ab ,\n漢é\u0301\x1b\u202e") for _ in range(draw.randint(1, 9))
  )
  final, trial, made = "", "", []
  for _ in range(40):
    kind = draw.choice([events.TRY, events.TRY, events.REWIND, events.COMMIT])
    if kind == events.TRY:
      text = word()
      trial += text
    elif kind == events.REWIND and trial:
      text = trial[draw.randrange(len(trial)) :]
      trial = trial[: len(trial) - len(text)]
    elif kind == events.COMMIT and trial:
      text = trial[: draw.randint(1, len(trial))]
      final, trial = final + text, trial[len(text) :]
    else:
      continue
    made.append(events.Event(kind, text))
  if trial:
    made.append(events.Event(events.REWIND, trial))
  return made + [events.Event(events.END, final)], final


@pytest.mark.parametrize("seed", range(12))
def test_the_screen_shows_what_is_final_and_on_trial_after_every_event(seed):
  width, out = 17, io.StringIO()
  show = live.TerminalView(out, pause=0, width=width)
  heard, final = made_events(seed)
  text = ""
  for event in heard[:-1]:
    show(event)
    if event.kind == events.TRY:
      text += live.printable(event.text)
    elif event.kind == events.REWIND:
      text = text[: len(text) - len(live.printable(event.text))]
    assert screen(out.getvalue(), width) == wrapped(text, width)
  show(heard[-1])
  assert screen(out.getvalue(), width) == wrapped(live.printable(final), width) + [""]


def test_what_is_taken_back_is_struck_out_first():
  out = io.StringIO()
  show = live.TerminalView(out, pause=0, width=80)
  for event in (events.Event(events.TRY, "Go away"), events.Event(events.REWIND, "away")):
    show(event)
  assert "\x1b[9;31maway" in out.getvalue()
  assert screen(out.getvalue(), 80) == ["Go "]


def test_elsewhere_every_event_is_a_line_without_control_characters():
  out = io.StringIO()
  show = live.view(out)
  for event in (
    events.Event(events.TRY, "Go\x1b[2J\naway", -1.0),
    events.Event(events.REWIND, "away"),
    events.Event(events.COMMIT, "Go"),
    events.Event(events.END, "Go"),
  ):
    show(event)
  signs = "+ tried   - taken back   = committed   (end): the response ends there\n"
  assert out.getvalue() == signs + "+ Go\\x1b[2J\\naway   verdict -1\n- away\n= Go\n"


def test_a_line_without_text_says_why():
  out = io.StringIO()
  show = live.LineView(out)
  show(events.Event(events.TRY, "Go.", 1.0))
  show(events.Event(events.TRY, "", 1.0))
  show(events.Event(events.TRY, "", 1.0, ends=True))
  show(events.Event(events.COMMIT, "", ends=True))
  lines = ["+ Go.   verdict +1", "+ (no new text)   verdict +1", "+ (end)   verdict +1", "= (end)"]
  assert out.getvalue().splitlines()[1:] == lines


def test_one_prompt_after_the_other_is_followed():
  nodes = [recording.Node(-1, 0, [], "", "running", 0)]
  frame = recording.Frame(0, recording.SEARCH, visits=[recording.Visit(0, 1.0, "Go", "running")])
  query = Query(Record("same", "a\x1bb"), [], [], False)
  response = Response(query.record, "Go", [], "eos", 1.0, {})
  out = io.StringIO()
  follow = live.Follower(out)
  for _ in range(2):
    follow(SearchStep(query, nodes, [frame]))
    follow(SearchStep(query, nodes, [], response))
  each = "\nprompt: a\\x1bb\n+ Go   verdict +1\n- Go\n"
  assert out.getvalue().replace(live.LineView.LEGEND + "\n", "", 1) == each * 2
