"""What RAIN costs beside vanilla decoding: models of any shape, methods, and measured rows.

Every measurement is one jitted call from prompt to last token, warmed up apart, repeated
in turn with all others, and compared with vanilla decoding of the same round.
"""

from rain_jax.experiments.benchmark.lowering import Lowering
from rain_jax.experiments.benchmark.measure import (
  METHODS,
  Case,
  hardware,
  measured,
  rows,
  searches,
  table,
)
from rain_jax.experiments.benchmark.memory import compiled_bytes, memory_line, memory_rows
from rain_jax.experiments.benchmark.methods import (
  VERDICTS,
  Work,
  begin_search,
  best_of_n,
  no_cache,
  rain,
  sample_without_cache,
  vanilla,
)
from rain_jax.experiments.benchmark.scaling import scaling
from rain_jax.experiments.benchmark.subjects import (
  SHAPES,
  Subject,
  Workload,
  abstract_subject,
  abstract_tables,
  find_subject,
  model_dtype,
  shape_of,
  synthetic_tables,
)

__all__ = (
  "Case",
  "Lowering",
  "METHODS",
  "SHAPES",
  "Subject",
  "VERDICTS",
  "Work",
  "Workload",
  "abstract_subject",
  "abstract_tables",
  "begin_search",
  "best_of_n",
  "compiled_bytes",
  "find_subject",
  "hardware",
  "measured",
  "memory_line",
  "memory_rows",
  "model_dtype",
  "no_cache",
  "rain",
  "rows",
  "sample_without_cache",
  "scaling",
  "searches",
  "shape_of",
  "synthetic_tables",
  "table",
  "vanilla",
)
