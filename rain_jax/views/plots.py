"""Small plots as inline SVG with one text size: intervals, points, bars and lines.

No library and no script: those that draw in a page bring scripts, and those that draw files bring
colours that know no dark mode. No label can cover another: names stand in a column of their own,
one below the other, and lines lead to them.
"""

import dataclasses
import math
import string
from collections.abc import Callable, Mapping, Sequence

from rain_jax.judges.share import Share
from rain_jax.views import page

# Pixels of the page; text is 12 pixels high (run.css).
_WIDTH, _HEIGHT = 544, 280
_LEFT, _TOP, _BOTTOM = 52, 30, 48
_NAMES = 138  # a column of names
_LINE = 16  # from one line of text to the next
_COLOURS = 6  # classes c0 to c5 of the style sheet


@dataclasses.dataclass(frozen=True)
class Point:
  """A mark of a scatter plot.

  Attributes:
    label: its name.
    colour: number of its colour.
    x: above 0.
    y: its height.
    interval: of y; None draws none.
  """

  label: str
  colour: int
  x: float
  y: float
  interval: tuple[float, float] | None = None


def figure(title: str, plot: str) -> str:
  """A plot, or what stands in its place, below its title, which is plain text."""
  return f"<figure><figcaption>{page.text(title)}</figcaption>{plot}</figure>"


def intervals(shares: Mapping[str, Share], x_label: str) -> str:
  """One row per share: its name, the 95% interval around it in percent, and both as numbers."""
  row, top = 24, 6
  height = top + row * len(shares) + _BOTTOM
  frame = _Frame(x_label, "", (0, 100), None, height, top, left=_NAMES + 10, right=130)
  marks = []
  for place, (name, share) in enumerate(shares.items()):
    y = top + row * (place + 0.5)
    marks.append(
      f"<g><title>{page.text(name)}: {page.text(share)}</title>"
      + _text(0, y + 4, _fitted(name))
      + _text(frame.right + 12, y + 4, str(share).rsplit(", ", 1)[0])
    )
    if share.total:
      low, high = (frame.x(100 * end) for end in share.interval)
      colour = _colour(place)
      marks.append(
        f'<path class="line {colour}" d="M{low:.1f},{y - 4}v8m0,-4H{high:.1f}m0,-4v8"/>'
        f'<circle class="{colour}" cx="{frame.x(100 * share.rate):.1f}" cy="{y}" r="4.5"/>'
      )
    marks.append("</g>")
  return frame.svg(marks)


def scatter(
  points: Sequence[Point], x_label: str, y_label: str, y_range: tuple[float, float]
) -> str:
  """Points over a logarithmic x axis, with their intervals."""
  xs = [point.x for point in points]
  height, span = _height(len(points)), (min(xs) / 1.3, max(xs) * 1.3)
  frame = _Frame(x_label, y_label, span, y_range, height, log_x=True)
  marks, ends = [], []
  for point in points:
    x, y = frame.x(point.x), frame.y(point.y)
    colour = _colour(point.colour)
    if point.interval:
      low, high = map(frame.y, point.interval)
      marks.append(f'<path class="line {colour}" d="M{x:.1f},{low:.1f}V{high:.1f}"/>')
    marks.append(
      f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="4.5">'
      f"<title>{page.text(point.label)}: {point.x:.3g}, {point.y:.3g}</title></circle>"
    )
    ends.append((point.label, colour, x, y))
  return frame.svg(marks + frame.names(ends))


def histogram(values: Sequence[float], x_label: str, y_label: str, bins: int = 20) -> str:
  """How often values fall where."""
  low, high = min(values), max(values)
  step = _step((high - low) / bins) if high > low else 1.0
  first = math.floor(low / step)
  counts = [0] * (math.floor(high / step) - first + 1)
  for value in values:
    counts[math.floor(value / step) - first] += 1
  span = (first * step, (first + len(counts)) * step)
  frame = _Frame(x_label, y_label, span, (0, max(counts)), right=20, whole_y=True)
  bars = []
  for place, count in enumerate(counts):
    left = (first + place) * step
    x, end, y = frame.x(left), frame.x(left + step), frame.y(count)
    bars.append(
      f'<rect class="c0" x="{x + 0.5:.1f}" y="{y:.1f}" width="{max(end - x - 1, 1):.1f}"'
      f' height="{frame.y(0) - y:.1f}"><title>{left:.3g} to {left + step:.3g}: {count}</title></rect>'
    )
  return frame.svg(bars)


def lines(
  series: Mapping[str, Sequence[tuple[float, float]]],
  x_label: str,
  y_label: str,
  y_range: tuple[float, float],
) -> str:
  """One line per series of (x, y), each with its name beside its end."""
  xs = [x for line in series.values() for x, _ in line]
  span = (min(xs), max(max(xs), min(xs) + 1))
  frame = _Frame(x_label, y_label, span, y_range, _height(len(series)))
  marks, ends = [], []
  for place, (name, line) in enumerate(series.items()):
    colour = _colour(place)
    places = [(frame.x(x), frame.y(y)) for x, y in line]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks.append(f'<polyline class="line {colour}" points="{path}"/>')
    for (x, y), (data_x, data_y) in zip(places, line):
      marks.append(
        f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
        f"<title>{page.text(name)}: {data_x:.3g}, {data_y:.3g}</title></circle>"
      )
    ends.append((name, colour, *places[-1]))
  return frame.svg(marks + frame.names(ends))


class _Frame:
  """Axes, and where on them a value lies; no y axis without a y range."""

  def __init__(
    self,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float] | None,
    height: int = _HEIGHT,
    top: int = _TOP,
    left: int = _LEFT,
    right: int = _NAMES + 28,
    log_x: bool = False,
    whole_y: bool = False,
  ):
    self.labels, self.height, self.top = (x_label, y_label), height, top
    self.left, self.right, self.bottom = left, _WIDTH - right, height - _BOTTOM
    scale: Callable[[float], float] = math.log if log_x else float
    self.x = _placer(scale(x_range[0]), scale(x_range[1]), self.left, self.right, scale)
    self.x_ticks = _log_ticks(*x_range) if log_x else _ticks(*x_range)
    self.y_ticks: list[float] = []
    if y_range:
      self.y = _placer(y_range[0], y_range[1], self.bottom, top, float)
      self.y_ticks = _ticks(*y_range, least=1.0 if whole_y else 0.0)

  def names(self, ends: Sequence[tuple[str, str, float, float]]) -> list[str]:
    """Lines from places (name, colour, x, y) to their names, in a column right of the plot."""
    # Of names at one height the rightmost is first: so lines do not cross.
    ends = sorted(ends, key=lambda end: (end[3], -end[2]))
    heights = _spread([end[3] for end in ends], self.bottom)
    parts = []
    for (name, colour, x, y), height in zip(ends, heights):
      parts.append(
        f'<path class="lead {colour}" d="M{x:.1f},{y:.1f}L{self.right + 18},{height:.1f}h6"/>'
        f"<g><title>{page.text(name)}</title>"
        f"{_text(self.right + 28, height + 4, _fitted(name))}</g>"
      )
    return parts

  def svg(self, marks: Sequence[str]) -> str:
    """The picture: axes below marks."""
    parts = []
    for value in self.x_ticks:
      x = self.x(value)
      parts.append(f'<path class="grid" d="M{x:.1f},{self.top}V{self.bottom}"/>')
      parts.append(_text(x, self.bottom + 20, f"{value:g}", "middle"))
    for value in self.y_ticks:
      y = self.y(value)
      parts.append(f'<path class="grid" d="M{self.left},{y:.1f}H{self.right}"/>')
      parts.append(_text(self.left - 6, y + 4, f"{value:g}", "end"))
    x_label, y_label = self.labels
    parts.append(_text((self.left + self.right) / 2, self.height - 8, x_label, "middle"))
    if y_label:
      parts.append(_text(0, 12, y_label))
    said = " against ".join(filter(None, (y_label, x_label)))
    return (
      f'<svg class="plot" role="img" aria-label="{page.text(said)}" width="{_WIDTH}"'
      f' height="{self.height}" viewBox="0 0 {_WIDTH} {self.height}">'
      f"{''.join(parts)}{''.join(marks)}</svg>"
    )


def _text(x: float, y: float, said: str, anchor: str = "start") -> str:
  return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{page.text(said)}</text>'


def _fitted(name: str) -> str:
  """A name as far as a column has room for it, whatever the font; wide characters count twice."""
  narrow = string.ascii_lowercase.replace("m", "").replace("w", "") + string.digits + " _-.:,"
  room, kept = 17, ""
  for character in page.visible(name).replace("\n", " "):
    room -= 1 if character in narrow else 2
    if room < 0:
      return kept[:-1] + "…"
    kept += character
  return kept


def _spread(wanted: Sequence[float], high: float) -> list[float]:
  """Heights of lines of text near the wanted ones, which ascend: a line apart, none below `high`."""
  places: list[float] = []
  for place in wanted:
    places.append(max(place, places[-1] + _LINE) if places else place)
  for i in reversed(range(len(places))):
    places[i] = min(places[i], high)
    high = places[i] - _LINE
  return places


def _height(names: int) -> int:
  """Of a plot with room for that many names beside it."""
  return max(_HEIGHT, _TOP + _LINE * names + _BOTTOM)


def _placer(low, high, begin, end, scale) -> Callable[[float], float]:
  span = (high - low) or 1.0
  return lambda value: begin + (scale(value) - low) / span * (end - begin)


def _step(rough: float) -> float:
  """The next of 1, 2, 5, 10, ... at or above a number."""
  power = 10.0 ** math.floor(math.log10(rough))
  return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def _ticks(low: float, high: float, least: float = 0.0) -> list[float]:
  step = max(_step((high - low or 1.0) / 6), least)
  return [round(step * i, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
  """Powers of ten, with 2 and 5 times them where few are in the range; even ones in a small range."""
  powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  factors = (1, 2, 5) if high / low < 300 else (1,)
  found = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
  return found[:: math.ceil(len(found) / 8)] if len(found) > 2 else _ticks(low, high)


def _colour(number: int) -> str:
  return f"c{number % _COLOURS}"
