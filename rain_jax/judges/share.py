"""Shares with confidence intervals."""

import dataclasses
import math

Z = 1.959964  # of a two-sided interval of 95%


@dataclasses.dataclass(frozen=True)
class Share:
  """So many of so many.

  Attributes:
    hits: how many.
    total: of how many.
  """

  hits: int
  total: int

  @property
  def rate(self) -> float:
    """In [0, 1]; NaN of nothing."""
    return self.hits / self.total if self.total else math.nan

  @property
  def interval(self) -> tuple[float, float]:
    """Wilson's score interval, 95%; everything is possible of nothing."""
    n = self.total
    if not n:
      return 0.0, 1.0
    p = self.hits / n
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)

  def __str__(self) -> str:
    if not self.total:
      return "-"
    low, high = self.interval
    return f"{100 * self.rate:.1f}% [{100 * low:.0f}, {100 * high:.0f}], {self.hits}/{self.total}"
