"""What a number of a configuration may be: its kind and its bounds, each stated once.

Whoever takes such a number compares it with the tables here: `SearchConfig` and `SessionConfig`,
the judges, defences and attacks, and `runs.config_check` for a whole configuration before anything is
loaded.
"""

import dataclasses
import math
import numbers
import sys
from collections.abc import Mapping
from typing import Any

_INT32 = 2**31 - 1
_FLOAT = sys.float_info.max


@dataclasses.dataclass(frozen=True)
class Range:
  """Numbers of one kind between two bounds, or True and False.

  Attributes:
    kind: int, float (whole numbers, too) or bool.
    low: the smallest.
    high: the largest.
    above: `low` itself is too small.
    infinite: infinity is one of them.
  """

  kind: type
  low: float = -math.inf
  high: float = math.inf
  above: bool = False
  infinite: bool = False

  def holds(self, value: Any) -> bool:
    """Whether a value is in the range; NaN is in none."""
    if self.kind is bool or isinstance(value, bool):
      return self.kind is bool and isinstance(value, bool)
    if not isinstance(value, numbers.Integral if self.kind is int else numbers.Real):
      return False
    # Compared as it is: floats have no room for whole numbers of hundreds of digits.
    number: Any = value
    if number in (math.inf, -math.inf):
      return self.infinite and number == math.inf
    if self.kind is float and not -_FLOAT <= number <= _FLOAT:
      return False
    return (self.low < number if self.above else self.low <= number) and number <= self.high

  def __str__(self) -> str:
    if self.kind is bool:
      return "True or False"
    name = "a whole number" if self.kind is int else "a number"
    if math.isfinite(self.low) and self.high not in (math.inf, _INT32):
      return (
        f"{name} {'above' if self.above else 'from'} {self.low} {'up ' * self.above}to {self.high}"
      )
    if math.isfinite(self.low):
      return f"{name} above {self.low}" if self.above else f"{name}, {self.low} or more"
    return f"a finite {name[2:]}"


def whole(low: float, high: float = _INT32) -> Range:
  """Whole numbers."""
  return Range(int, low, high)


def real(low: float = -math.inf, high: float = math.inf, **more: bool) -> Range:
  """Numbers."""
  return Range(float, low, high, **more)


def fault(ranges: Mapping[str, Range], values: Mapping[str, Any], prefix: str = "") -> str:
  """What is wrong with the first value outside its range, in one line; "" if nothing is.

  Args:
    ranges: by name.
    values: by name; those without a range are not looked at.
    prefix: of the names in the line.
  """
  for name, value in values.items():
    if name in ranges and not ranges[name].holds(value):
      return f"{prefix}{name}={value!r:.60}: expected {ranges[name]}."
  return ""


YES_NO = Range(bool)
# A key is made of 32 bits: larger seeds would be smaller ones under another name.
SEED = whole(0, 2**32 - 1)
_SIZE = 2**20  # of anything that a program is compiled for
_SHARE = real(0, 1)

SEARCH = {
  "num_candidates": whole(2, _SIZE),
  "max_children": whole(2, _SIZE),
  "redraw": YES_NO,
  # Beyond these float32 has no room for a logit divided by it.
  "temperature": real(1e-4, 1e4),
  "top_k": whole(1),
  "repetition_penalty": real(1, 1e4),
  "sample_top_k": whole(0, _SIZE),
  "rollout_to_eos": YES_NO,
  "exploration": real(0, 1e6),
  "root_prior": _SHARE,
  "similarity_threshold": real(-1, 1e6),
  "similarity_weight": real(0, 1e6),
  "grow_threshold": real(0, 1e6),
  "min_visits": whole(0),
  "value_threshold": real(-1e6, 1e6),
  "max_iterations": whole(1),
  "extra_iterations": whole(1),
  "leaves": whole(1, _SIZE),
  "early_commit": YES_NO,
  "max_nodes": whole(1, 2**24),
  "max_visited": whole(1, _SIZE),
  "max_path": whole(2, _SIZE),
  "draft_length": whole(0, _SIZE),
  "draft_rows": whole(1, _SIZE),
  "draft_tries": whole(1),
  "draft_threshold": real(-1, 1),
  "root_rows": whole(1, _SIZE),
  "root_tries": whole(1),
  "max_rewinds": whole(0, _SIZE),
  "search_after": whole(0),
  "search_below": real(-1, 1),
}
SET_LENGTH = whole(1, _SIZE)
SESSION = {
  "max_prompt": whole(1, _SIZE),
  "max_response": whole(1, _SIZE),
  "max_thought": whole(1, _SIZE),
  "batch_size": whole(1, _SIZE),
  "verdict_noise": _SHARE,
  "soft_verdicts": YES_NO,
}
JUDGING = {"batch_size": whole(1, _SIZE)}
ENDPOINT = {
  "timeout": real(0, 86400, above=True),
  "retries": whole(0, 100),
  "budget": whole(0),
}
SMOOTH_LLM = {"copies": whole(1, _SIZE), "percent": real(0, 100)}
SAMPLES = whole(1, _SIZE)
GCG = {
  "candidates": whole(1, _SIZE),
  "top_k": whole(1, _SIZE),
  "steps": whole(1),
  "chunk": whole(1, _SIZE),
  "verdict_weight": real(0, 1e6),
  "progressive": YES_NO,
  "stop_loss": real(infinite=True),
}
