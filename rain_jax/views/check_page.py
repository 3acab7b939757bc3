"""The page of a checked preference: its numbers, how far they are calibrated, what went wrong."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rain_jax.methods.preference_check import Example
from rain_jax.views import page, plots

_SHOWN = 50  # misjudged examples on the page


def render(
  title: str,
  table: str,
  found: Mapping[str, Any],
  examples: Sequence[Example],
  margins: np.ndarray,
) -> str:
  """A page that stands alone.

  Args:
    title: plain text.
    table: from `check.table`.
    found: from `check.measure`.
    examples: what was judged.
    margins: float[examples, readings] of them.
  """
  style = (pathlib.Path(__file__).parent / "run.css").read_text(encoding="utf-8")
  measured = [(one["margin"], 100 * one["good"]) for one in found["calibration"]]
  calibration = plots.lines(
    {"measured": measured, "calibrated": [(-1, 0), (1, 100)]},
    "mean margin",
    "percent good",
    (0, 100),
  )
  figures = [("Calibration", calibration)]
  for label, good in (("good", True), ("bad", False)):
    values = [float(m.mean()) for e, m in zip(examples, margins) if e.good == good]
    if values:
      figures.append(
        (f"Margins of {label} examples", plots.histogram(values, "margin", "examples"))
      )
  drawn = "".join(f"<figure><h3>{page.text(name)}</h3>{plot}</figure>" for name, plot in figures)
  body = "\n".join(
    [
      f"<h1>{page.text(title)}</h1>",
      f"<pre>{page.text(table)}</pre>",
      f'<div class="plots">{drawn}</div>',
      "<h2>Not on their label's side</h2>",
      _misjudged(examples, margins),
    ]
  )
  return page.document(title, body, style)


def _misjudged(examples: Sequence[Example], margins: np.ndarray) -> str:
  """Examples that the model is most wrong about, worst first."""
  wrong = []
  for example, margin in zip(examples, margins):
    lead = float(margin.mean()) * (1 if example.good else -1)
    if not all((margin > 0) == example.good):
      wrong.append((lead, example, margin))
  wrong.sort(key=lambda item: item[0])
  if not wrong:
    return '<p class="note">None.</p>'
  rows = "".join(
    f"<dt>{'good' if example.good else 'bad'}, margins {', '.join(f'{m:+.2f}' for m in margin)}</dt>"
    f'<dd class="said">{page.text(example.record.prompt)}\n{page.text(example.response)}</dd>'
    for _, example, margin in wrong[:_SHOWN]
  )
  left = len(wrong) - _SHOWN
  more = f'<p class="note">{left} more.</p>' if left > 0 else ""
  return f"<dl>{rows}</dl>{more}"
