"""The memory plan of a search beside the compiler's own account of its program."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from rain_jax.experiments.benchmark.lowering import Lowering
from rain_jax.experiments.benchmark.subjects import (
  Workload,
  abstract_subject,
  abstract_tables,
  shape_of,
)
from rain_jax.models import Model
from rain_jax.policy import memory_plan
from rain_jax.policy.language_model import LanguageModel
from rain_jax.types import DataError, SearchConfig


def compiled_bytes(model: Model, lm: LanguageModel, batch: int) -> int:
  """What the compiled search needs: arguments, outputs and temporaries, what is shared once.

  Args:
    model: an abstract one, from `abstract_subject`.
    lm: the static part.
    batch: trees side by side.
  """
  return bytes_needed(Lowering(model, lm, batch).search().compile())


def bytes_needed(compiled: jax.stages.Compiled) -> int:
  """What a compiled program needs on each device, see `compiled_bytes`.

  Raises:
    DataError: its compiler does not say.
  """
  memory = compiled.memory_analysis()
  if memory is None:
    raise DataError("the compiler of this backend reports no memory; expected one that does.")
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
  )


def memory_rows(
  names: Sequence[str],
  dtype: str,
  batches: Sequence[int],
  workload: Workload,
  searches: Sequence[SearchConfig],
) -> Iterator[dict[str, Any]]:
  """`planned` and `compiled` bytes of each shape, search and batch; nothing is run."""
  for name in names:
    for search in searches:
      model, lm = abstract_subject(shape_of(name), dtype, workload, search)
      for batch in batches:
        row = dict(model=name, dtype=dtype, batch=batch, leaves=search.leaves)
        planned = memory_plan.plan(model, lm, batch, abstract_tables(model)).total
        yield {**row, "planned": planned, "compiled": compiled_bytes(model, lm, batch)}


def memory_line(row: Mapping[str, Any]) -> str:
  """One row for a reader."""
  planned, compiled = row["planned"], row["compiled"]
  return (
    f"{row['model']} {row['dtype']}, batch {row['batch']}, leaves {row['leaves']}:"
    f" plan {planned / 1e6:.1f} MB, compiler {compiled / 1e6:.1f} MB,"
    f" {100 * (planned / compiled - 1):+.1f}%"
  )
