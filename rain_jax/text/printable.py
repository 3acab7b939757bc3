"""Text of models, files and other programs, made safe to be shown in a terminal."""


def printable(text: str) -> str:
  """Control characters, all but line feeds, become visible escapes."""
  keep = lambda c: c if c.isprintable() or c == "\n" else repr(c)[1:-1]
  return "".join(map(keep, text))


def one_line(said: object, limit: int = 500) -> str:
  """What an error says, or any text, on one printable line of at most `limit` characters."""
  text = str(said)[: 8 * limit]
  line = printable(" ".join(text.split()))
  if not line and isinstance(said, BaseException):
    return type(said).__name__
  return line if len(line) <= limit else line[: limit - 4] + " ..."
