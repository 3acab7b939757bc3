"""Small plots as inline SVG: points, bars and lines with their axes. No library, no script."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from rain_jax.views import page

_WIDTH, _HEIGHT = 560, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 128, 14, 44
_COLOURS = 6  # classes c0 to c5 of the style sheet


@dataclasses.dataclass(frozen=True)
class Point:
  """A mark of a scatter plot: its label, the series that colours it, and its place."""

  label: str
  series: str
  x: float
  y: float


def scatter(
  points: Sequence[Point], x_label: str, y_label: str, y_range: tuple[float, float]
) -> str:
  """Points over a logarithmic x axis; x must be above 0."""
  xs = [point.x for point in points]
  low, high = min(xs), max(xs)
  frame = _Frame(x_label, y_label, (low / 1.3, high * 1.3), y_range, log_x=True)
  colours = _colours(point.series for point in points)
  marks: list[str] = []
  taken: list[tuple[float, float]] = []
  for point in sorted(points, key=lambda p: -p.y):
    x, y = frame.x(point.x), frame.y(point.y)
    at = y + 4
    # Labels that would cover an earlier one move down.
    while any(abs(x - other_x) < 120 and abs(at - other) < 13 for other_x, other in taken):
      at += 13
    taken.append((x, at))
    marks.append(
      f'<circle class="{colours[point.series]}" cx="{x:.1f}" cy="{y:.1f}" r="5">'
      f"<title>{page.text(point.label)}: {point.x:.3g}, {point.y:.3g}</title></circle>"
      f'<text x="{x + 9:.1f}" y="{at:.1f}">{page.text(point.label)}</text>'
    )
  return frame.svg(marks)


def histogram(values: Sequence[float], x_label: str, y_label: str, bins: int = 20) -> str:
  """How often values fall where."""
  low, high = min(values), max(values)
  step = _step((high - low) / bins) if high > low else 1.0
  first = math.floor(low / step)
  counts = [0] * (math.floor(high / step) - first + 1)
  for value in values:
    counts[math.floor(value / step) - first] += 1
  span = (first * step, (first + len(counts)) * step)
  frame = _Frame(x_label, y_label, span, (0, max(counts)), least=1.0)
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
  """One line per series of (x, y), each with its name at its end."""
  xs = [x for line in series.values() for x, _ in line]
  frame = _Frame(x_label, y_label, (min(xs), max(max(xs), min(xs) + 1)), y_range)
  colours = _colours(series)
  marks: list[str] = []
  ends: list[float] = []
  for name, line in series.items():
    places = [(frame.x(x), frame.y(y)) for x, y in line]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks.append(f'<polyline class="line {colours[name]}" points="{path}"/>')
    for (x, y), (data_x, data_y) in zip(places, line):
      marks.append(
        f'<circle class="{colours[name]}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
        f"<title>{page.text(name)}: {data_x:.3g}, {data_y:.3g}</title></circle>"
      )
    at = places[-1][1] + 4
    while any(abs(at - other) < 13 for other in ends):
      at += 13
    ends.append(at)
    marks.append(f'<text x="{places[-1][0] + 8:.1f}" y="{at:.1f}">{page.text(name)}</text>')
  return frame.svg(marks)


class _Frame:
  """Axes, and where on them a value lies."""

  def __init__(
    self,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    log_x: bool = False,
    least: float = 0.0,
  ):
    self.labels, self.least = (x_label, y_label), least  # least distance of ticks on the y axis
    self.x_range, self.y_range, self.log_x = x_range, y_range, log_x
    scale: Callable[[float], float] = math.log if log_x else float
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    self.x = _placer(scale(x_range[0]), scale(x_range[1]), _LEFT, right, scale)
    self.y = _placer(y_range[0], y_range[1], bottom, _TOP, float)

  def svg(self, marks: Sequence[str]) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for value in _log_ticks(*self.x_range) if self.log_x else _ticks(*self.x_range):
      x = self.x(value)
      parts.append(f'<path class="grid" d="M{x:.1f},{_TOP}V{bottom}"/>')
      parts.append(
        f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>'
      )
    for value in _ticks(*self.y_range, least=self.least):
      y = self.y(value)
      parts.append(f'<path class="grid" d="M{_LEFT},{y:.1f}H{right}"/>')
      parts.append(
        f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
      )
    x_label, y_label = map(page.text, self.labels)
    middle, centre = (_LEFT + right) / 2, (_TOP + bottom) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{x_label}</text>')
    parts.append(
      f'<text transform="translate(14,{centre}) rotate(-90)" text-anchor="middle">{y_label}</text>'
    )
    return (
      f'<svg class="plot" role="img" aria-label="{y_label} against {x_label}"'
      f' viewBox="0 0 {_WIDTH} {_HEIGHT}">{"".join(parts)}{"".join(marks)}</svg>'
    )


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
  powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  factors = (1, 2, 5) if high / low < 300 else (1,)
  return [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]


def _colours(names) -> dict[str, str]:
  distinct = list(dict.fromkeys(names))
  return {name: f"c{place % _COLOURS}" for place, name in enumerate(distinct)}
