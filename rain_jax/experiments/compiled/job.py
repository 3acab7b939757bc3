"""The job of `scripts/compile.py`: every program of a benchmark, compiled for chips that are not there."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from rain_jax.experiments.benchmark.lowering import Lowering
from rain_jax.experiments.benchmark.memory import bytes_needed
from rain_jax.experiments.benchmark.subjects import (
  Workload,
  abstract_subject,
  abstract_tables,
)
from rain_jax.experiments.compiled.chips import Chip, chip_of, mesh_of
from rain_jax.experiments.compiled.pricing import Priced, price
from rain_jax.models import Model, ModelConfig, backend
from rain_jax.models.arrays import nbytes
from rain_jax.models.sharding import shardings
from rain_jax.parallel.batch_sharding import DATA
from rain_jax.policy import memory_plan
from rain_jax.policy.language_model import LanguageModel
from rain_jax.types import SearchConfig

METHODS = ("vanilla", "rain", "leaf_parallel", "adaptive")
"""What is compiled, of the benchmark's methods."""


@dataclasses.dataclass(frozen=True)
class Target:
  """What programs are compiled for.

  Attributes:
    model: its name.
    shape: its shape.
    dtype: a name of `loading.DTYPES`.
    workload: lengths.
    batch: prompts side by side, over all of the mesh.
    searches: the search of each method that searches.
    topology: such as v5e:2x4.
    mesh: over its chips.
  """

  model: str
  shape: ModelConfig
  dtype: str
  workload: Workload
  batch: int
  searches: Mapping[str, SearchConfig]
  topology: str
  mesh: jax.sharding.Mesh

  @property
  def chip(self) -> Chip:
    """Its chip."""
    return chip_of(self.topology)

  @property
  def rows(self) -> int:
    """Prompts side by side in each part of the batch."""
    return self.batch // self.mesh.shape[DATA]

  @property
  def chips(self) -> int:
    """Chips that hold one copy of the model."""
    return self.mesh.size // self.mesh.shape[DATA]

  @property
  def split(self) -> jax.sharding.Mesh | None:
    """The mesh, as a run would have one: none for a single card."""
    return None if self.chip.backend == "gpu" and self.mesh.size == 1 else self.mesh

  def subject(self, search: SearchConfig) -> tuple[Model, LanguageModel]:
    """The abstract model as it lies on its chips, and the static part with a search."""
    with backend.target(self.chip.backend):
      return abstract_subject(self.shape, self.dtype, self.workload, search, self.split)

  def lowering(self, search: SearchConfig) -> Lowering:
    """Its programs with a search, which are to be traced inside `backend.target`."""
    model, lm = self.subject(search)
    device = self.mesh.devices.item(0) if self.split is None else None
    return Lowering(model, lm, self.batch, self.split, self.chip.backend, device)

  def plan(self, search: SearchConfig) -> memory_plan.Plan:
    """The memory that a search will need on each chip."""
    model, lm = self.subject(search)
    with backend.target(self.chip.backend):
      return memory_plan.plan(model, lm, self.batch, abstract_tables(model), mesh=self.split)

  def floor(self, search: SearchConfig) -> float:
    """Bytes that a call cannot but read on each chip: its weights, and one side's context."""
    model, _ = self.subject(search)
    places: Any = shardings(model, self.split)
    table = "embedding" if model.config.tie_embeddings else "head"
    weights = sum(nbytes(model.params[name], places[name]) for name in ("layers", table))
    return weights + self.plan(search).parts["contexts of both caches"] / 2


def target(
  model: str,
  shape: ModelConfig,
  dtype: str,
  workload: Workload,
  batches: Sequence[int],
  searches: Mapping[str, SearchConfig],
  topology: str,
  tensor: int | None = None,
) -> Target:
  """What to compile for: the largest batch that fits, on as few chips for a model as it needs.

  Whether it fits is the plan's word; if nothing does, it is the smallest batch on all chips. A batch
  that the mesh does not divide is rounded up, as in a run.

  Args:
    model: its name.
    shape: its shape.
    dtype: a name of `loading.DTYPES`.
    workload: lengths.
    batches: prompts side by side, over all of the mesh, of which one is taken.
    searches: the search of each method that searches.
    topology: such as v5e:2x4.
    tensor: chips that hold a model; None tries all numbers.

  Raises:
    DataError: no such chip or topology, or no compiler for it.
    ValueError: `tensor` does not divide the number of chips.
  """
  kv_heads = shape.num_kv_heads
  count = mesh_of(topology, 1, kv_heads).size
  widths = [tensor] if tensor else [n for n in range(1, count + 1) if count % n == 0]
  for batch in sorted(batches, reverse=True):
    for width in widths:
      mesh = mesh_of(topology, width, kv_heads)
      shards = mesh.shape[DATA]
      whole = -(-batch // shards) * shards
      found = Target(model, shape, dtype, workload, whole, searches, topology, mesh)
      if all(found.plan(one).total <= found.chip.memory for one in searches.values()):
        return found
  return found


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A program that was compiled, or was found not to fit.

  Attributes:
    method: of `METHODS`.
    program: search, sampling or begin.
    lowering: seconds to trace and lower it.
    compiling: seconds to compile it.
    planned: bytes on each chip by the plan; None where it plans nothing.
    needed: bytes on each chip by the compiler; None if it does not fit.
    priced: its phases; None if it does not fit, and for programs that begin.
    refused: what to lower, if it does not fit.
  """

  method: str
  program: str
  lowering: float
  compiling: float
  planned: int | None
  needed: int | None
  priced: Priced | None
  refused: str | None


def programs(target: Target, methods: Sequence[str]) -> Iterator[Compiled]:
  """Compiles every program of the methods for the target.

  Programs that only make arrays of zeros and read the verdict's prefix once are left out.
  """
  for method in methods:
    search = target.searches.get(method, next(iter(target.searches.values())))
    for program in ("sampling",) if method == "vanilla" else ("begin", "search"):
      # What is traced for one backend is used again only for the same one.
      with backend.target(target.chip.backend):
        done = _compiled(target, method, program, search)
      yield done


def _compiled(target: Target, method: str, program: str, search: SearchConfig) -> Compiled:
  plan = None if method == "vanilla" else target.plan(search)
  begin = time.perf_counter()
  lowered = getattr(target.lowering(search), program)()
  lowering, begin = time.perf_counter() - begin, time.perf_counter()
  needed, priced, refused = None, None, None
  try:
    with _not_kept():
      compiled = lowered.compile(target.chip.options)
    needed = bytes_needed(compiled)
    if program != "begin":
      priced = price(compiled, target.mesh.shape, method == "vanilla")
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    (refused, *_) = str(error).splitlines()
  compiling = time.perf_counter() - begin
  if refused or (needed is not None and needed > target.chip.memory):
    refused = (
      f"{refused}; {_lower(target, plan, needed)}" if refused else _lower(target, plan, needed)
    )
  return Compiled(
    method, program, lowering, compiling, plan.total if plan else None, needed, priced, refused
  )


@contextlib.contextmanager
def _not_kept() -> Iterator[None]:
  """Within it no program goes into the compilation cache, which cannot read such a one again."""
  name = "jax_persistent_cache_min_compile_time_secs"
  before = getattr(jax.config, name)
  jax.config.update(name, math.inf)
  try:
    yield
  finally:
    jax.config.update(name, before)


def _lower(target: Target, plan: memory_plan.Plan | None, needed: int | None) -> str:
  """What makes a program smaller, by the plan where it sees that."""
  if plan is not None:
    parts = {**plan.parts, "beyond the plan": max(0, (needed or 0) - plan.total)}
    try:
      memory_plan.check(
        memory_plan.Plan(parts, plan.batch), int(target.chip.memory), memory_plan.BENCHMARK
      )
    except ValueError as error:
      return str(error)
  return "lower batches, workload.prompt or workload.response, or raise --tensor."
