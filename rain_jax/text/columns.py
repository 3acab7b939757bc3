"""Tables in plain text, for a terminal: cells to the right in columns as wide as need be."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
  """Rows of cells, as many in each, as lines of text; the first row is the head."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths)) for row in rows)
