"""Whether a configuration's values can be used, before anything is loaded or made."""

from collections.abc import Iterator, Mapping
from typing import Any

from rain_jax.methods import verdict_model
from rain_jax.types import DataError, ranges

_COUNT = ranges.whole(0)
# By dotted key; None means the task's or the method's own value.
_NUMBERS = {
  "seed": ranges.SEED,
  "record": _COUNT,
  "prompts.limit": _COUNT,
  "mesh.data": ranges.whole(-1),
  "mesh.tensor": ranges.whole(1),
  "mesh.across_hosts": ranges.YES_NO,
  "best_of_n.samples": ranges.whole(0, ranges.SAMPLES.high),
  "attack.universal": ranges.YES_NO,
  "attack.train": _COUNT,
  "attack.best_of_n.samples": ranges.SAMPLES,
  "attack.best_of_n.sigma": ranges.real(0, 1),
  **{f"search.{name}": one for name, one in ranges.SEARCH.items()},
  **{f"judging.{name}": one for name, one in ranges.JUDGING.items()},
  **{f"endpoint.{name}": one for name, one in ranges.ENDPOINT.items()},
  **{f"smooth_llm.{name}": one for name, one in ranges.SMOOTH_LLM.items()},
  **{f"attack.gcg.{name}": one for name, one in ranges.GCG.items()},
  **{
    f"limits.{name}" if name.startswith("max_") else name: one
    for name, one in ranges.SESSION.items()
  },
}
_NAMES = ("tasks", "methods")  # lists of which at least one is needed
_TEXTS = (
  *("preference", "calibration", "judge", "model.path", "model.dtype", "search.variant"),
  *("model.revision", "model.adapter", "verdict.model", "verdict.kind"),
  *("prompts.path", "prompts.column", "prompts.text", "prompts.suffixes", "prompts.bad_rows"),
  *("format.name", "format.prefix", "format.template", "format.opening", "embedder.name"),
  *("format.thinking", "format.think_end", "prompts.behaviors"),
  *("embedder.path", "endpoint.url", "endpoint.model", "endpoint.key", "endpoint.cache"),
  *(
    "judging.dtype",
    "judging.calibration",
    "smooth_llm.kind",
    "smooth_llm.judge",
    "guard.judge",
    "attack.method",
  ),
  *("attack.target", "attack.control", "attack.best_of_n.against"),
)
REFUSE, SKIP = "refuse", "skip"


def check(config: Mapping[str, Any], fitting: bool = False) -> None:
  """Compares what is there of a configuration with what each key may be.

  Args:
    config: of a run, or a part of it.
    fitting: a calibration is to be fitted; otherwise the verdicts of a reward model need one.

  Raises:
    DataError: naming the first key that cannot be used, its value and what was expected.
  """
  values = {key: value for key, value in _dotted(config) if value is not None}
  wrong = ranges.fault(_NUMBERS, values)
  if wrong:
    raise DataError(wrong)
  for key in _TEXTS:
    if not isinstance(values.get(key, ""), str):
      raise DataError(f"{key}={values[key]!r:.60}: expected text.")
  for key in _NAMES:
    if key in config:
      _check_names(key, config[key])
  if values.get("mesh.data") == 0:
    raise DataError("mesh.data=0: expected 1 or more, or -1 for as many as there are devices left.")
  if values.get("prompts.bad_rows", REFUSE) not in (REFUSE, SKIP):
    raise DataError(
      f"prompts.bad_rows={values['prompts.bad_rows']!r:.60}: expected {REFUSE} or {SKIP}."
    )
  kind = values.get("verdict.kind", verdict_model.PREFERENCE)
  verdict_model.check_kind(values.get("verdict.model", ""), kind)
  if not fitting:
    verdict_model.check_calibrated(kind, values.get("calibration"))


def _check_names(key: str, names: Any) -> None:
  if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
    raise DataError(f"{key}={names!r:.60}: expected a list of names, such as ('a', 'b').")
  if not names:
    raise DataError(f"{key}=(): expected at least one name; docs/options.md lists them.")
  for name in names:
    if names.count(name) > 1:
      raise DataError(f"{key}: {name} appears twice; flags that are repeated add up.")


def _dotted(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
  for name, value in values.items():
    if isinstance(value, Mapping) and before + name not in (*_NUMBERS, *_TEXTS):
      yield from _dotted(value, f"{before}{name}.")
    else:
      yield before + name, value
