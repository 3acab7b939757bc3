"""What is shown in a terminal moves no cursor and takes one line where it should."""

import hypothesis
import hypothesis.strategies as st

from rain_jax.text.printable import one_line, printable


@hypothesis.given(st.text())
def test_nothing_but_line_feeds_controls_the_terminal(text):
  assert printable(text).replace("\n", "").isprintable()
  assert one_line(text).isprintable() and len(one_line(text, 20)) <= 20


def test_one_line_of_an_error():
  assert one_line(ValueError("a\x1b[31m\n b\tc")) == "a\\x1b[31m b c"
  assert one_line(KeyError()) == "KeyError"
  assert one_line("x" * 99, 10) == "xxxxxx ..."
