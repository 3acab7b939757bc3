"""What is to be compiled: the shapes of a benchmark's configuration, or of a run's."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rain_jax import types
from rain_jax.experiments import benchmark
from rain_jax.experiments.benchmark.subjects import Workload, shape_of
from rain_jax.experiments.compiled.chips import chip_of, size_of
from rain_jax.experiments.compiled.job import METHODS, Target, target
from rain_jax.methods import registry
from rain_jax.models import ModelConfig, backend
from rain_jax.runs import job
from rain_jax.types import DataError, SearchConfig


@dataclasses.dataclass(frozen=True)
class Asked:
  """One model's programs.

  Attributes:
    model: its name.
    shape: its shape.
    dtype: a name of `loading.DTYPES`.
    workload: lengths.
    batches: prompts side by side; the largest that fits is taken.
    methods: of `compiled.METHODS`.
    searches: the search of each method that searches, of one at least.
    verdicts: of the small model whose calls are counted.
    mixed_share: of the texts that are judged good where verdicts are mixed.
    tensor: chips that hold a model; None for as few as it needs.
  """

  model: str
  shape: ModelConfig
  dtype: str
  workload: Workload
  batches: tuple[int, ...]
  methods: tuple[str, ...]
  searches: Mapping[str, SearchConfig]
  verdicts: tuple[str, ...] = ("good", "mixed", "bad")
  mixed_share: float = 0.5
  tensor: int | None = None

  def target(self, topology: str) -> Target:
    """What is compiled for the chips of a topology; see `job.target`."""
    return target(
      self.model,
      self.shape,
      self.dtype,
      self.workload,
      self.batches,
      self.searches,
      topology,
      self.tensor,
    )


def asked_of(config: Mapping[str, Any], topology: str) -> Iterator[Asked]:
  """What a configuration asks for: of `configs/benchmark.py`, or of a run.

  Of a run's model only configuration and tokenizer are read. Its programs are those of its shapes,
  with a vocabulary and a verdict of the same size: weights and texts do not change them.

  Raises:
    DataError: nothing that is compiled is among its methods, or another model gives the verdicts.
    CheckpointError, ValueError: the run's model cannot be read, or its weights do not fit.
  """
  methods = tuple(name for name in config["methods"] if name in METHODS)
  if not methods:
    raise DataError(f"methods={config['methods']}: expected some of {', '.join(METHODS)}.")
  yield from (_of_benchmark if "workload" in config else _of_run)(config, topology, methods)


def _of_benchmark(
  config: Mapping[str, Any], topology: str, methods: Sequence[str]
) -> Iterator[Asked]:
  search = types.SearchConfig(**config["search"])
  leaf_parallel = types.SearchConfig(**{**config["search"], **config["leaf_parallel"]})
  searches = benchmark.searches(search, leaf_parallel)
  for name in config["models"]:
    yield Asked(
      model=name,
      shape=shape_of(name),
      dtype=config["dtype"],
      workload=Workload(**config["workload"]),
      batches=tuple(config["batches"]),
      methods=tuple(methods),
      searches={k: v for k, v in searches.items() if k in methods} or {"rain": search},
      verdicts=tuple(v for v in config["verdicts"] if v != "model"),  # a small model's say nothing
      mixed_share=config["mixed_share"],
    )


def _of_run(config: Mapping[str, Any], topology: str, methods: Sequence[str]) -> Iterator[Asked]:
  if config["verdict"]["model"]:
    raise DataError(
      "verdict.model: programs in which another model gives the verdicts are not compiled here;"
      " leave it away."
    )
  chip = chip_of(topology)
  with backend.target(chip.backend):
    memory = int(chip.memory)
    sessions = job.abstract_sessions(config, size_of(topology), memory)
  for task, session in sessions.items():
    lm = session.lm
    of = {name: registry.METHODS[name].search for name in methods}
    searches = {name: search(lm.search) for name, search in of.items() if search}
    suffixes = lm.preference.suffix_ids
    yield Asked(
      model=f"{config['model']['path']} ({task})",
      shape=lm.config,
      dtype=config["model"]["dtype"],
      workload=Workload(
        prompt=lm.max_prompt,
        response=lm.max_response,
        verdict_prefix=len(session.prefix_ids) + len(lm.preference.prefix_ids),
        verdict_suffix=math.ceil(sum(map(len, suffixes)) / len(suffixes)),
      ),
      batches=(session.slots,),
      methods=tuple(methods),
      searches=searches or {"rain": lm.search},
      tensor=config["mesh"]["tensor"] if config["mesh"]["tensor"] > 0 else None,
    )
