"""What may be written to a terminal."""


def printable(text: str) -> str:
  """Model output made safe for a terminal: control characters become visible escapes."""
  keep = lambda c: c if c.isprintable() or c == "\n" else repr(c)[1:-1]
  return "".join(map(keep, text))
