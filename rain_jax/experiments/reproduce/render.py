"""A table as Markdown, and its shares as a picture in SVG, which needs no library."""

import dataclasses
import html
import math
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
class Point:
  """A share against its cost.

  Attributes:
    label: its name.
    series: what it belongs to; filled points of a series are joined, in the order of their costs.
    cost: above 0.
    bar: the share in percent.
    filled: or only its outline is drawn.
  """

  label: str
  series: str
  cost: float
  bar: Bar
  filled: bool = True


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
    points: of the picture, in place of bars.
    axes: what the points' costs and shares are.
  """

  title: str
  columns: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  bars: tuple[Bar, ...]
  unit: str = "%"
  notes: tuple[str, ...] = ()
  points: tuple[Point, ...] = ()
  axes: tuple[str, str] = ("", "")


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
  """The picture: points against their cost where the table has them, otherwise bars."""
  return _scatter(table) if table.points else _bars(table)


def _bars(table: Table) -> str:
  """Horizontal bars with their intervals; the scale ends at 100%, or above the largest value."""
  top = 100.0 if table.unit == "%" else max((b.high for b in table.bars), default=1.0) or 1.0
  at = lambda value: _LABEL + _PLOT * min(value, top) / top
  parts = [_begin(_ROW * (len(table.bars) + 2)), _text(4, 16, table.title)]
  for i, bar in enumerate(table.bars):
    y = _ROW * (i + 1) + 4
    middle = y + _ROW / 2 - 2
    parts += [
      _text(_LABEL - 6, middle + 4, bar.label, "end"),
      f'<rect x="{_LABEL}" y="{y}" width="{at(bar.value) - _LABEL:.1f}" height="{_ROW - 8}"'
      ' fill="#4878a8"/>',
      f'<path d="M{at(bar.low):.1f} {middle:.1f}H{at(bar.high):.1f}" stroke="#222"'
      ' stroke-width="2"/>',
      _text(at(max(bar.value, bar.high)) + 6, middle + 4, f"{bar.value:.3g}{table.unit}"),
    ]
  return "\n".join([*parts, "</svg>"]) + "\n"


_COLOURS = ("#1f77d0", "#d1601f", "#2a9150", "#a951cb", "#cc4a6c", "#8a7a1c")


def _scatter(table: Table) -> str:
  """Points and their intervals over a logarithmic axis of costs, one colour for each series."""
  left, right, top, bottom = 50, 560, 40, 340
  costs = [point.cost for point in table.points]
  first, last = math.log(min(costs) / 1.2), math.log(max(costs) * 1.2)
  at = lambda cost: left + (right - left) * (math.log(cost) - first) / (last - first)
  up = lambda percent: bottom - (bottom - top) * percent / 100
  parts = [_begin(bottom + 60), f'<rect width="100%" height="{bottom + 60}" fill="#fff"/>']
  parts += [_text(4, 16, table.title), _text(left, 34, table.axes[1])]
  parts.append(_text((left + right) / 2, bottom + 40, table.axes[0], "middle"))
  ticks = [f * 10.0**p for p in range(-2, 7) for f in (1, 2, 5)]
  for tick in (t for t in ticks if first <= math.log(t) <= last):
    parts.append(f'<path d="M{at(tick):.1f} {top}V{bottom}" stroke="#ddd"/>')
    parts.append(_text(at(tick), bottom + 18, f"{tick:g}", "middle"))
  for tick in range(0, 101, 20):
    parts.append(f'<path d="M{left} {up(tick):.1f}H{right}" stroke="#ddd"/>')
    parts.append(_text(left - 6, up(tick) + 4, f"{tick}", "end"))
  for i, series in enumerate(dict.fromkeys(point.series for point in table.points)):
    colour = _COLOURS[i % len(_COLOURS)]
    parts.append(f'<g fill="{colour}" stroke="{colour}">')
    mine = sorted((p for p in table.points if p.series == series), key=lambda p: p.cost)
    line = " ".join(f"{at(p.cost):.1f},{up(p.bar.value):.1f}" for p in mine if p.filled)
    parts.append(f'<polyline points="{line}" fill="none"/>')
    for point in mine:
      x, shown = at(point.cost), "" if point.filled else ' fill="#fff"'
      name = html.escape(f"{point.label}: {point.bar.value:.1f}% at {point.cost:.3g}")
      parts.append(
        f'<path d="M{x:.1f} {up(point.bar.low):.1f}V{up(point.bar.high):.1f}" opacity="0.5"/>'
        f'<circle cx="{x:.1f}" cy="{up(point.bar.value):.1f}" r="4"{shown}>'
        f"<title>{name}</title></circle>"
      )
    y = top + 20 * i + 8
    parts.append(f'<path d="M{right + 16} {y}h14" stroke-width="4"/></g>')
    parts.append(_text(right + 36, y + 4, series))
  return "\n".join([*parts, "</svg>"]) + "\n"


def _begin(height: int) -> str:
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LABEL + _PLOT + 90}" height="{height}"'
    ' font-family="sans-serif" font-size="12">'
  )


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
  return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'
