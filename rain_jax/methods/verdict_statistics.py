"""What verdicts are worth: shares and areas with their intervals, from labelled examples."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rain_jax.judges.share import Share, Z

GOOD, BAD = "good", "bad"
BINS = 10


def measure(
  good: np.ndarray, margins: np.ndarray, scores: np.ndarray | None = None
) -> dict[str, Any]:
  """What the verdicts are worth.

  Args:
    good: bool[examples] the labels.
    margins: float[examples, readings].
    scores: float[examples] by which examples are ordered for `auc`; the mean margin unless given,
      which near -1 and +1 tells less apart than leads do.

  Returns:
    `all`, `good` and `bad`, each with `examples`, `accuracy` (the search's verdict is on the
    label's side; a tie is not) and its `interval`, `soft_accuracy` (the mean margin is), `ties` (a
    verdict of 0: the readings differ) and the mean `margin`; a share of no examples is None. `auc`:
    the share of pairs of a good and a bad example whose order is right, and `auc_interval`, both
    None without one of either. `readings`: the accuracy of each reading alone. `calibration`: by tenths of the margin's range, `examples`,
    mean `margin`, and the share of `good` ones, which is (1 + margin) / 2 where probabilities
    mean what they say; `calibration_error` is the mean distance from that.
  """
  soft = margins.mean(-1)
  said = margins > 0
  verdict = 2 * said.mean(-1) - 1
  signs = np.where(good, 1, -1)

  def group(rows: np.ndarray) -> dict[str, Any]:
    share = lambda values: float(np.mean(values[rows])) if rows.any() else None
    right = np.sign(verdict) == signs
    return {
      "examples": int(rows.sum()),
      "accuracy": share(right),
      "interval": Share(int(right[rows].sum()), int(rows.sum())).interval if rows.any() else None,
      "soft_accuracy": share(np.sign(soft) == signs),
      "ties": share(verdict == 0),
      "margin": share(soft),
    }

  place = np.clip(((soft + 1) / 2 * BINS).astype(int), 0, BINS - 1)
  bins = []
  for number in range(BINS):
    rows = place == number
    if rows.any():
      bins.append(
        {
          "from": 2 * number / BINS - 1,
          "to": 2 * (number + 1) / BINS - 1,
          "examples": int(rows.sum()),
          "margin": float(soft[rows].mean()),
          "good": float(good[rows].mean()),
        }
      )
  area = auc(good, soft if scores is None else scores)
  off = [b["examples"] * abs(b["good"] - (1 + b["margin"]) / 2) for b in bins]
  return {
    "all": group(np.ones(len(good), bool)),
    GOOD: group(good),
    BAD: group(~good),
    "auc": area,
    "auc_interval": None if area is None else auc_interval(area, good),
    "readings": [float(np.mean(one == good)) for one in said.T],
    "calibration": bins,
    "calibration_error": sum(off) / len(good),
  }


def auc(good: np.ndarray, scores: np.ndarray) -> float | None:
  """Area under the ROC curve; ties count half."""
  if good.all() or not good.any():
    return None
  ahead = scores[good][:, None] - scores[~good]
  return float(np.mean(ahead > 0) + np.mean(ahead == 0) / 2)


def auc_interval(area: float, good: np.ndarray) -> tuple[float, float]:
  """95% interval of an area, by scores rather than its own variance, which is 0 at an area of 1.

  Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic",
  part 2, method 5 (Statistics in Medicine 25, 2006).
  """
  pairs = int(good.sum()) * int((~good).sum())
  half = len(good) / 2 - 1

  def inside(true: float) -> bool:
    spread = true * (1 - true) * (1 + half * ((1 - true) / (2 - true) + true / (1 + true)))
    return abs(area - true) <= Z * math.sqrt(spread / pairs)

  def end(out: float) -> float:
    near = area
    for _ in range(40):
      middle = (near + out) / 2
      near, out = (middle, out) if inside(middle) else (near, middle)
    return near

  return end(0.0), end(1.0)


def roc(good: np.ndarray, scores: np.ndarray) -> list[tuple[float, float]]:
  """The ROC curve: of each threshold, the share of bad and of good examples above it."""
  cuts = [np.inf, *np.unique(scores)[::-1], -np.inf]
  return [(float(np.mean(scores[~good] > cut)), float(np.mean(scores[good] > cut))) for cut in cuts]


def table(found: Mapping[str, Any]) -> str:
  """The numbers of `measure`, to be read in a terminal."""
  groups = [found[name] for name in ("all", GOOD, BAD)]
  row = lambda name, key, show: f"{name:<34}" + "".join(f"{show(g[key]):>8}" for g in groups)
  lines = [
    f"{'':<34}{'all':>8}{GOOD:>8}{BAD:>8}",
    row("examples", "examples", str),
    row("verdict on the label's side", "accuracy", _percent),
    row("probabilities on the label's side", "soft_accuracy", _percent),
    row("ties", "ties", _percent),
    row("mean margin", "margin", lambda value: "-" if value is None else f"{value:+.2f}"),
  ]
  if len(found["readings"]) > 1:
    ties = found["all"]["ties"]
    alone = ", ".join(map(_percent, found["readings"]))
    lines.append(f"the two readings agree on {_percent(1 - ties)}; alone they are right on {alone}")
  lines.append(f"area under the ROC curve {area(found)}")
  lines += ["", f"{'margin':<16}{'examples':>10}{'good':>9}{'expected':>10}"]
  for one in found["calibration"]:
    span = f"{one['from']:+.1f} to {one['to']:+.1f}"
    expected = _percent((1 + one["margin"]) / 2)
    lines.append(f"{span:<16}{one['examples']:>10}{_percent(one['good']):>9}{expected:>10}")
  lines.append(f"calibration error {_percent(found['calibration_error'])}")
  return "\n".join(lines)


def area(found: Mapping[str, Any]) -> str:
  """The AUC of `measure` with its interval."""
  if found["auc"] is None:
    return "-"
  low, high = found["auc_interval"]
  return f"{found['auc']:.3f} [{low:.2f}, {high:.2f}]"


def right(found: Mapping[str, Any]) -> str:
  """The share of verdicts of `measure` that are right, with its interval."""
  low, high = found["all"]["interval"]
  return f"{_percent(found['all']['accuracy'])} [{100 * low:.0f}, {100 * high:.0f}]"


def _percent(value: float | None) -> str:
  return "-" if value is None else f"{100 * value:.1f}%"
