"""A conversation: what was said before counts, commands, and endings."""

import dataclasses
import io
import signal

import pytest

from rain_jax import api
from rain_jax.methods import events
from rain_jax.methods.session import Response
from rain_jax.models import arrays, loading
from rain_jax.tasks import Record
from rain_jax.types import DataError
from rain_jax.views import chat
from tests.helpers import scripts, small_runs

SETTING = dataclasses.replace(
  api.make_session_config("harmless", small_runs.API_CONFIG), max_prompt=128
)


@pytest.fixture(scope="module")
def loaded(checkpoint):
  return loading.load(str(checkpoint))


def test_turns_join_the_history_and_the_oldest_make_room(loaded):
  talk = chat.Conversation(loaded, SETTING, seed=0)
  first = talk.ask("the cat sat", ("vanilla",))["vanilla"]
  assert talk.history == ("the cat sat", first.text)
  assert first.record.history == () and first.tokens
  second = talk.ask("the cat sat", ("vanilla",))["vanilla"]
  assert second.record.history == ("the cat sat", first.text)
  assert second.tokens != first.tokens  # another turn, other random numbers
  for _ in range(8):
    last = talk.ask("and then far away", ("vanilla",))["vanilla"]
  assert talk.forgotten > 0 and len(last.record.history) < 18
  assert len(talk.history) % 2 == 0
  before = talk.history
  with pytest.raises(DataError, match="max_prompt"):
    talk.ask("far away " * 60, ("vanilla",))
  with pytest.raises(DataError, match="empty"):
    talk.ask(" ", ("vanilla",))
  assert talk.history == before != ()
  talk.forget()
  assert talk.history == () and talk.forgotten == 0
  again = chat.Conversation(loaded, SETTING, seed=0).ask("the cat sat", ("vanilla",))["vanilla"]
  assert again.tokens == first.tokens


@pytest.mark.slow
def test_rain_answers_beside_vanilla_and_its_answer_counts(loaded):
  talk, told = chat.Conversation(loaded, SETTING, seed=0), []
  answers = talk.ask("the cat sat", ("vanilla", "rain"), told.append)
  assert list(answers) == ["vanilla", "rain"]
  assert talk.history == ("the cat sat", answers["rain"].text)
  assert told[-1].kind == events.END and told[-1].text == answers["rain"].text


class Echo:
  """A conversation that says what it heard."""

  def __init__(self):
    self.asked, self.forgotten = [], 0

  def ask(self, prompt, methods, on_event):
    if prompt == "odd":
      raise DataError("cannot be tokenised; say something else.")
    self.asked.append((prompt, methods))
    if methods == ("rain",):
      on_event(events.Event(events.TRY, f"heard {prompt}", 1.0))
    self.forgotten += prompt == "long"
    counters = {"response_tokens": 3, "tokens_forwarded": 9}
    verdict, error = (None, "not finite") if prompt == "broken" else (1.0, None)
    made = lambda method: Response(
      Record("0", prompt),
      f"{method} heard {prompt}\x1b[2J",
      [],
      "eos",
      verdict,
      counters | ({"rewinds": 2} if method == "rain" else {}),
      error,
    )
    return {method: made(method) for method in methods}

  def forget(self):
    self.asked.append("forgotten")


def talk_with(*lines, mode="rain"):
  """What was asked, and what was printed."""
  said, out = iter(lines), io.StringIO()

  def ask(prompt):
    line = next(said, None)
    if line is None:
      raise EOFError
    return line

  echo = Echo()
  chat.talk(echo, mode, ask, out)
  return echo.asked, out.getvalue()


def test_commands_choose_who_answers():
  asked, out = talk_with(
    "one", "/vanilla", "two", " ", "/both", "three", "/rain", "/forget", "four", "/quit", "five"
  )
  assert asked == [
    ("one", ("rain",)),
    ("two", ("vanilla",)),
    ("three", ("vanilla", "rain")),
    "forgotten",
    ("four", ("rain",)),
  ]
  assert "+ heard one   verdict +1" in out and "vanilla: vanilla heard two" in out
  assert "own verdict +1, 3 tokens, 2 rewinds, 9 tokens forwarded" in out
  assert "\x1b" not in out


def test_the_signs_of_a_search_are_explained_once():
  _, out = talk_with("one", "two")
  assert out.count("+ heard") == 2 and out.count("- taken back") == 1


def test_answers_stand_side_by_side():
  _, out = talk_with("hello", mode="both")
  row = next(line for line in out.splitlines() if "heard hello" in line)
  assert row.index("vanilla heard") < row.index(" | ") < row.index("rain heard")
  title = next(line for line in out.splitlines() if line.startswith("vanilla "))
  assert title.index("|") == row.index("|")


@pytest.mark.parametrize("mode", chat.MODES)
def test_an_answer_that_failed_says_why(mode):
  _, out = talk_with("broken", "hello", mode=mode)
  assert "(not finite, 3 tokens" in out and "own verdict +1" in out


def test_a_search_that_does_not_fit_is_known_before_the_first_turn(loaded, monkeypatch):
  # The weights fit, or they would not have been read.
  monkeypatch.setattr(arrays, "bytes_available", lambda: arrays.nbytes(loaded.model.params) + 1000)
  with pytest.raises(ValueError, match="GiB needed .* search.max_visited") as error:
    chat.Conversation(loaded, SETTING, seed=0)
  assert "\n" not in str(error.value)


def test_errors_help_and_the_end_of_input_do_not_break_the_conversation():
  asked, out = talk_with("odd", "/what", "long")
  assert asked == [("long", ("rain",))]
  assert "(cannot be tokenised; say something else.)" in out and "(1 turns forgotten" in out
  assert out.count(chat.HELP) == 2 and out.endswith("\n")


def start_script(checkpoint):
  numbers = small_runs.NUMBERS | {
    "model.path": checkpoint,
    "limits.max_prompt": SETTING.max_prompt,
  }
  flags = [f"--config.{name}={value}" for name, value in numbers.items()]
  return scripts.start(
    "chat.py", "--config=configs/dialogue.py", "--mode=vanilla", *flags, stdin=True
  )


def test_the_script_talks_and_ends_with_its_input(checkpoint):
  process = start_script(checkpoint)
  out, err = process.communicate("the cat sat\n", timeout=scripts.LIMIT)
  assert process.returncode == 0 and err.count("Traceback") == 0, err
  assert "\nyou: the cat sat\nvanilla: " in out and "own verdict" in out and "\x1b" not in out


def test_the_script_ends_with_ctrl_c(checkpoint):
  process, shown = start_script(checkpoint), ""
  while not shown.endswith("you: "):
    letter = process.stdout.read(1)
    assert letter, process.stderr.read()
    shown += letter
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=scripts.LIMIT)
  assert process.returncode == 0 and "Traceback" not in err, err
