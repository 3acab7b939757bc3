"""The page of a checked preference: its numbers, how far they are calibrated, what went wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rain_jax.methods.preference_check import Check, Example
from rain_jax.methods.verdict_statistics import roc
from rain_jax.views import page, plots

_SHOWN = 50  # misjudged examples on the page


def render(title: str, table: str, check: Check, examples: Sequence[Example]) -> str:
  """A page that stands alone.

  Args:
    title: plain text.
    table: what the check found, in plain text.
    check: of the examples.
    examples: what was judged.
  """
  figures = "".join(plots.figure(name, plot) for name, plot in _figures(check))
  margins = check.answers.margins
  if check.calibration is not None:
    margins = check.calibration.margins(check.answers.leads)
  body = "\n".join(
    [
      f"<h1>{page.text(title)}</h1>",
      f"<pre>{page.text(table)}</pre>",
      f'<div class="plots">{figures}</div>',
      "<h2>Not on their label's side</h2>",
      _misjudged(examples, check.good, margins),
    ]
  )
  return page.report(title, body)


def _figures(check: Check) -> list[tuple[str, str]]:
  """Titles and plots; calibrated numbers are of examples that nothing was fitted on."""
  found = {"as it is": check.before or check.found}
  if check.after is not None:
    found["calibrated"] = check.after

  def curve(one: Mapping[str, Any]) -> list[tuple[float, float]]:
    return [(100 * (1 + bin["margin"]) / 2, 100 * bin["good"]) for bin in one["calibration"]]

  curves: dict[str, Sequence[tuple[float, float]]] = {
    name: curve(one) for name, one in found.items()
  }
  curves["exact"] = [(0, 0), (100, 100)]
  figures = [("Calibration", plots.lines(curves, "percent expected", "percent good", (0, 100)))]
  if check.found["auc"] is not None:
    points = roc(check.good, check.answers.leads.mean(-1))
    lines: dict[str, Sequence[tuple[float, float]]] = {
      "leads": [(100 * x, 100 * y) for x, y in points],
      "chance": [(0, 0), (100, 100)],
    }
    figures.append(("ROC", plots.lines(lines, "percent of bad", "percent of good above", (0, 100))))
  for label, good in (("good", True), ("bad", False)):
    leads = check.answers.leads[check.good == good].mean(-1)
    if len(leads):
      figures.append(
        (f"Leads of {label} examples", plots.histogram(leads.tolist(), "log-odds", "examples"))
      )
  return figures


def _misjudged(examples: Sequence[Example], good: np.ndarray, margins: np.ndarray) -> str:
  """Examples that the model is most wrong about, worst first."""
  wrong = []
  for example, label, margin in zip(examples, good, margins):
    lead = float(margin.mean()) * (1 if label else -1)
    if not all((margin > 0) == label):
      wrong.append((lead, example, margin))
  wrong.sort(key=lambda item: item[0])
  if not wrong:
    return '<p class="note">None.</p>'
  rows = "".join(
    f"<dt>{'good' if example.good else 'bad'},"
    f" margins {', '.join(f'{m:+.2f}' for m in margin)}</dt>"
    f'<dd class="said">{page.text(example.record.prompt)}\n{page.text(example.response)}</dd>'
    for _, example, margin in wrong[:_SHOWN]
  )
  left = len(wrong) - _SHOWN
  more = f'<p class="note">{left} more.</p>' if left > 0 else ""
  return f"<dl>{rows}</dl>{more}"
