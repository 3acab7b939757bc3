"""A recorded search as one still picture: its tree at the first move, as SVG."""

from rain_jax.methods import recording
from rain_jax.types import DataError
from rain_jax.views import page

_COLUMN, _ROW, _WIDTH, _HEIGHT, _MARGIN = 214, 60, 190, 53, 12
_LETTERS = 24  # of a text that a box has room for
_STYLE = """
.paper{fill:#fff}.box{fill:#f4f5f7;stroke:#9aa3ad}.committed{stroke:#1f6feb;stroke-width:2.5}
.dead{stroke-dasharray:4 3}.edge{fill:none;stroke:#c4c9d0}.chosen{stroke:#1f6feb;stroke-width:2.5}
.good{fill:#1a7f37}.mixed{fill:#9a6700}.bad{fill:#cf222e}
text{font:12px ui-monospace,monospace;fill:#1b1f24;white-space:pre}.small{font-size:10.5px;fill:#59636e}
"""
_LEGEND = (
  "Token sets when the first move was due: visits (weight), value (mean verdict), prior, iteration of"
  " the first visit as a leaf.",
  "Blue: part of the response in the end. Dashed: discarded by the first move."
  " +k: children not tried yet, or not drawn.",
)


def draw(search: recording.Recording, depth: int = 4) -> str:
  """The tree at the first move, visited token sets alone, as an SVG document.

  Args:
    search: with one move at least.
    depth: token sets from left to right; deeper ones are counted, not drawn.

  Raises:
    DataError: no move was made.
  """
  if any(frame.kind == recording.DRAFT for frame in search.frames):
    raise DataError("a response with drafts has no tree at its first move; record the method rain.")
  moves = [place for place, frame in enumerate(search.frames) if frame.kind == recording.COMMIT]
  if not moves or not moves[0]:
    raise DataError("this search made no move; record another one.")
  move = moves[0]
  numbers = search.numbers(move - 1)
  first: dict[int, int] = {}  # node -> iteration
  for number, frame in enumerate(search.frames[:move], 1):
    for visit in frame.visits:
      first.setdefault(visit.node, number)
  children: dict[int, list[int]] = {node: [] for node in numbers}
  for node in numbers:
    if node:
      children[search.nodes[node].parent].append(node)
  drawn = {
    node: [c for c in below if numbers[c].visits and search.nodes[c].depth <= depth]
    for node, below in children.items()
  }
  places = _layout(drawn)
  parts = []
  for node in places:
    parts += [_edge(places[node], places[c], _kept(search, c)) for c in drawn[node]]
  for node, place in places.items():
    left = len(children[node]) - len(drawn[node])
    parts.append(_box(search, node, place, numbers[node], first.get(node), left, move))
  right = max(x for x, _ in places.values()) + _COLUMN + _MARGIN
  bottom = max(y for _, y in places.values()) + _ROW + _MARGIN
  for line, said in enumerate(_LEGEND):
    parts.append(_text(_MARGIN, bottom + 14 * (line + 1), said, "small"))
  bottom += 44
  head = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right:g} {bottom:g}" role="img"'
    f' aria-label="a recorded search at its first move"><style>{_STYLE}</style>'
    f'<rect class="paper" width="{right:g}" height="{bottom:g}"/>'
  )
  return "\n".join([head, *parts, "</svg>\n"])


def _kept(search: recording.Recording, node: int) -> bool:
  return node == 0 or search.nodes[node].committed is not None


def _layout(drawn: dict[int, list[int]]) -> dict[int, tuple[float, float]]:
  """Left upper corners: a row for each node without children, parents amid theirs."""
  places: dict[int, tuple[float, float]] = {}
  rows = 0

  def put(node: int, column: int) -> float:
    nonlocal rows
    if drawn[node]:
      ys = [put(child, column + 1) for child in drawn[node]]
      y = (ys[0] + ys[-1]) / 2
    else:
      y, rows = _MARGIN + rows * _ROW, rows + 1
    places[node] = (_MARGIN + column * _COLUMN, y)
    return y

  put(0, 0)
  return places


def _edge(begin: tuple[float, float], end: tuple[float, float], kept: bool) -> str:
  x1, y1, x2, y2 = begin[0] + _WIDTH, begin[1] + _HEIGHT / 2, end[0], end[1] + _HEIGHT / 2
  names = "edge chosen" if kept else "edge"
  return f'<path class="{names}" d="M{x1:g},{y1:g}C{x1 + 14:g},{y1:g} {x2 - 14:g},{y2:g} {x2:g},{y2:g}"/>'


def _box(search, node, place, numbers, iteration, left, move) -> str:
  x, y = place
  one = search.nodes[node]
  names = "box" + " committed" * _kept(search, node) + " dead" * (one.died == move)
  value = numbers.value
  mood = "good" if value > 1 / 3 else "bad" if value < -1 / 3 else "mixed"
  said = page.visible(one.text).replace("\n", "⏎") or "(end)"
  said = said if len(said) <= _LETTERS else said[: _LETTERS - 1] + "…"
  counted = f"visits {numbers.visit_weight:.1f}, value {value:+.2f}"
  expected = [f"prior {numbers.prior:.2f}"] if node else []
  expected += [f"iteration {iteration}"] if iteration else []
  parts = [
    f'<rect class="{names}" x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="5"/>',
    f'<rect class="{mood}" x="{x:g}" y="{y:g}" width="5" height="{_HEIGHT}" rx="2"/>',
    _text(x + 10, y + 16, said if node else "(the prompt)"),
    _text(x + 10, y + 31, counted, "small"),
    _text(x + 10, y + 45, ", ".join(expected), "small"),
  ]
  if left:
    parts.append(_text(x + _WIDTH + 2, y + _HEIGHT - 4, f"+{left}", "small"))
  return f"<g>{''.join(parts)}</g>"


def _text(x: float, y: float, said: str, name: str = "") -> str:
  kind = f' class="{name}"' if name else ""
  return f'<text{kind} x="{x:g}" y="{y:g}" xml:space="preserve">{page.text(said)}</text>'
