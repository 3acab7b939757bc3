"""How a step's time grows with batch, context length and tree capacity."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rain_jax import decode
from rain_jax.experiments.benchmark.methods import begin_search
from rain_jax.experiments.benchmark.subjects import Subject, Workload, find_subject, keys_of
from rain_jax.policy.params import Override
from rain_jax.types import SearchConfig


def scaling(
  name: str,
  dtype: str,
  workload: Workload,
  search: SearchConfig,
  sizes: Mapping[str, Sequence[int]],
  steps: int,
  repeats: int,
) -> list[dict[str, Any]]:
  """Seconds per step of the search while one size varies and the others stay first.

  Args:
    name: of a synthetic subject; every verdict is bad, so that trees grow.
    dtype: of its weights.
    workload: lengths; `prompt` is overridden.
    search: hyperparameters of the search; `max_nodes` is overridden, and `max_visited` grows with it.
    sizes: `batch`, `prompt` (tokens) and `max_nodes`, with the values of each.
    steps: of the search to time.
    repeats: how often; the median counts.
  """
  base = {varied: values[0] for varied, values in sizes.items()}
  points = []
  for varied, values in sizes.items():
    for size in values:
      at = {**base, varied: size}
      visited = search.max_visited * at["max_nodes"] // base["max_nodes"]
      numbers = dataclasses.replace(search, max_nodes=at["max_nodes"], max_visited=visited)
      lengths = dataclasses.replace(workload, prompt=at["prompt"])
      subject = find_subject(name, dtype, lengths, numbers)
      seconds = _seconds_per_step(subject, at["batch"], steps, repeats)
      points.append(
        {"model": name, "varied": varied, "size": size, **at, "seconds_per_step": seconds}
      )
  return points


def _seconds_per_step(subject: Subject, batch: int, steps: int, repeats: int) -> float:
  lm = subject.lm
  params = {**subject.params, "override": Override(jnp.float32(0.0), jnp.float32(0.0))}
  sides = subject.prompts("proposing", batch), subject.prompts("evaluating", batch)
  times = []
  for seed in range(repeats + 1):
    state = begin_search(lm, params, *sides, keys_of(seed, batch), batch)
    jax.block_until_ready(state)
    begin = time.perf_counter()
    state = decode.advance(state, lm, params, lm.search, steps, wait_for_all=True)
    done = int(state.counters.steps.max())
    times.append((time.perf_counter() - begin) / done)
  return float(np.median(times[1:]))
