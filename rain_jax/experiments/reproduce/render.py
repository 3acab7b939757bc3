"""A table as Markdown, and its shares as a picture in SVG, which needs no library."""

import dataclasses
import html
from collections.abc import Mapping

from rain_jax.judges.share import Share


@dataclasses.dataclass(frozen=True)
class Bar:
  """One bar: a number, and the interval it is known to lie in.

  Attributes:
    label: what it stands for.
    value: its length.
    low: lower end of the interval.
    high: upper end.
  """

  label: str
  value: float
  low: float
  high: float

  @classmethod
  def of(cls, label: str, share: Share) -> "Bar":
    """A share in percent."""
    low, high = share.interval
    return cls(label, 100 * (share.rate if share.total else 0.0), 100 * low, 100 * high)


@dataclasses.dataclass(frozen=True)
class Table:
  """What a reproduction shows.

  Attributes:
    title: one line.
    columns: their names.
    rows: cells, as many as columns.
    bars: of the picture.
    unit: of the bars.
    notes: lines below the table.
  """

  title: str
  columns: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  bars: tuple[Bar, ...]
  unit: str = "%"
  notes: tuple[str, ...] = ()


def markdown(table: Table, facts: Mapping[str, str], picture: str) -> str:
  """The page: title, table, notes, picture, and what it was made with."""
  for row in table.rows:
    if len(row) != len(table.columns):
      raise ValueError(f"row {row} has {len(row)} cells, expected {len(table.columns)}")
  cell = lambda text: text.replace("|", "\\|").replace("\n", " ")
  line = lambda cells: "| " + " | ".join(map(cell, cells)) + " |"
  parts = [f"# {table.title}", ""]
  parts += [line(table.columns), "|" + "---|" * len(table.columns)]
  parts += [line(row) for row in table.rows] + [""]
  parts += [f"{note}\n" for note in table.notes]
  parts += [f"![{cell(table.title)}]({picture})", "", "| made with | |", "|---|---|"]
  parts += [line((name, str(value))) for name, value in facts.items()]
  return "\n".join(parts) + "\n"


_LABEL, _PLOT, _ROW = 260, 420, 24  # pixels


def svg(table: Table) -> str:
  """Horizontal bars with their intervals; the scale ends at 100%, or above the largest value."""
  top = 100.0 if table.unit == "%" else max((b.high for b in table.bars), default=1.0) or 1.0
  at = lambda value: _LABEL + _PLOT * min(value, top) / top
  height = _ROW * (len(table.bars) + 2)
  text = lambda x, y, words, anchor="start": (
    f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'
  )
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LABEL + _PLOT + 90}" height="{height}"'
    ' font-family="sans-serif" font-size="12">',
    text(4, 16, table.title),
  ]
  for i, bar in enumerate(table.bars):
    y = _ROW * (i + 1) + 4
    middle = y + _ROW / 2 - 2
    parts += [
      text(_LABEL - 6, middle + 4, bar.label, "end"),
      f'<rect x="{_LABEL}" y="{y}" width="{at(bar.value) - _LABEL:.1f}" height="{_ROW - 8}"'
      ' fill="#4878a8"/>',
      f'<path d="M{at(bar.low):.1f} {middle:.1f}H{at(bar.high):.1f}" stroke="#222"'
      ' stroke-width="2"/>',
      text(at(max(bar.value, bar.high)) + 6, middle + 4, f"{bar.value:.3g}{table.unit}"),
    ]
  return "\n".join([*parts, "</svg>"]) + "\n"
