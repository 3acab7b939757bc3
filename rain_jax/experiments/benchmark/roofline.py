"""How near each phase of decoding comes to what the machine can do.

The machine's own copy bandwidth and matrix rate are measured first. A phase is one kind
of model call (docs/architecture.md, section 4) with the shapes of a real search; its lowest possible
time is the larger of its bytes over that bandwidth and its operations over that rate.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rain_jax.experiments.benchmark.subjects import Subject, model_dtype
from rain_jax.models import NO_POSITION, ModelConfig, backend, forward, unembed
from rain_jax.models.arrays import nbytes
from rain_jax.text.columns import aligned


@dataclasses.dataclass(frozen=True)
class Machine:
  """What the device does at best.

  Attributes:
    bytes_per_second: read and written by a copy larger than any cache.
    flops_per_second: of a product of large square matrices.
  """

  bytes_per_second: float
  flops_per_second: float


def measure_machine(dtype: str) -> Machine:
  """Measures the default device with arithmetic in the dtype that `dtype` computes in."""
  elements, width = backend.probe_sizes()
  kind = model_dtype(dtype)
  vector = jnp.ones(elements, jnp.float32)
  # In one program and in place: fresh memory would time the system's page faults. One more turn
  # is the copy that XLA makes of the argument.
  turns = 8
  copy = jax.jit(lambda x: jax.lax.fori_loop(0, turns, lambda i, y: y + 1, x)[0])
  copied = _best_time(copy, vector) / (turns + 1)
  matrix = jnp.ones((width, width), kind)
  multiplied = _best_time(jax.jit(jnp.matmul), matrix, matrix)
  return Machine(2 * vector.nbytes / copied, 2 * width**3 / multiplied)


def _best_time(call: Callable, *args: Any, repeats: int = 5) -> float:
  jax.block_until_ready(call(*args))
  times = []
  for _ in range(repeats):
    begin = time.perf_counter()
    jax.block_until_ready(call(*args))
    times.append(time.perf_counter() - begin)
  return min(times)


@dataclasses.dataclass(frozen=True)
class Phase:
  """One kind of model call.

  Attributes:
    name: of the phase.
    rows: batch axes of the query.
    tokens: new tokens per row.
    logits: tokens per row whose logits are needed.
    segments: of each stretch of context its batch axes, its slots, and how many hold a token.
  """

  name: str
  rows: tuple[int, ...]
  tokens: int
  logits: int
  segments: tuple[tuple[tuple[int, ...], int, int], ...]

  @property
  def total(self) -> int:
    """Rows in all."""
    return math.prod(self.rows)

  def flops(self, config: ModelConfig) -> float:
    """Multiplications and additions of the matrix products of one call."""
    heads = config.num_heads + 2 * config.num_kv_heads + config.num_heads
    layer = config.hidden_size * (heads * config.head_size + 3 * config.intermediate_size)
    seen = self.tokens + sum(filled for _, _, filled in self.segments)
    attention = 2 * config.num_heads * config.head_size * seen
    head = config.hidden_size * config.vocab_size * self.logits
    return 2.0 * self.total * (self.tokens * config.num_layers * (layer + attention) + head)

  def bytes_moved(self, config: ModelConfig, params: Any, kv_size: int) -> float:
    """Weights once, what segments hold once (rows share it), new keys and values, logits."""
    weights = nbytes(params["layers"])
    table = params.get(
      "unembedding", params["embedding"] if config.tie_embeddings else params["head"]
    )
    token = 2 * config.num_layers * config.num_kv_heads * config.head_size * kv_size
    read = sum(filled * math.prod(axes) for axes, _, filled in self.segments)
    written = self.total * self.tokens
    return (
      weights
      + nbytes(table)
      + token * (read + written)
      + 4.0 * self.total * self.logits * config.vocab_size
    )


def shapes(subject: Subject, batch: int) -> list[Phase]:
  """The phases of vanilla decoding and of a step of the search, in order.

  Half of the response is there, and leaves are two sets deep.
  """
  lm, search = subject.lm, subject.lm.search
  W, L, R = search.leaves, search.max_set_length, lm.max_response
  S, half = lm.max_prompt + R + L, R // 2
  context = ((batch,), S, lm.max_prompt + half), ((batch, W), search.max_path * L, 2 * L)
  length = lambda side: subject.params[f"{side}_prefix"].slots
  fixed = lambda side: (((), length(side), length(side)),) if length(side) else ()
  proposing, evaluating = fixed("proposing") + context, fixed("evaluating") + context
  suffixes = sum(map(len, lm.preference.suffix_ids))
  rows = 2 + search.sampled_draws
  return [
    Phase(
      "vanilla",
      (batch, 1),
      1,
      1,
      (*fixed("proposing"), ((batch,), lm.max_prompt, lm.max_prompt), ((batch, 1), R, half)),
    ),
    Phase("context", (batch, W), L, 1, proposing),
    Phase("candidates", (batch, W, rows), 1, 1, (*proposing, ((batch, W, rows), L, L // 2))),
    Phase("rollout", (batch, W), 1, 1, (*proposing, ((batch, W), R, L))),
    Phase(
      "verdict",
      (batch, W),
      lm.read_chunk + suffixes,
      len(lm.preference.suffix_ids),
      (*evaluating, ((batch, W), R, L)),
    ),
  ]


def phases(subject: Subject, batch: int, machine: Machine) -> list[dict[str, Any]]:
  """Each phase's seconds per call, and its share of the roofline."""
  config, kv = subject.lm.config, subject.params["evaluating_prefix"]
  rows = []
  for phase in shapes(subject, batch):
    seconds = _seconds_per_call(subject, phase)
    by_bytes = phase.bytes_moved(config, subject.params["model"], kv.dtype.itemsize)
    by_bytes /= machine.bytes_per_second
    by_flops = phase.flops(config) / machine.flops_per_second
    rows.append(
      {
        "model": subject.name,
        "batch": batch,
        "phase": phase.name,
        "seconds_per_call": seconds,
        "bound": "bytes" if by_bytes > by_flops else "flops",
        "share_of_roofline": max(by_bytes, by_flops) / seconds,
        "share_of_bandwidth": by_bytes / seconds,
      }
    )
  return rows


def _seconds_per_call(subject: Subject, phase: Phase) -> float:
  """Time of one call among many in one program, so that no dispatch is timed."""
  lm = subject.lm
  like = subject.params["evaluating_prefix"]
  kvs = [like.zeros(*axes, slots=slots) for axes, slots, _ in phase.segments]
  filled = [number for _, _, number in phase.segments]  # not known to the compiler, as in a search

  @jax.jit
  def run(params, kvs, filled, calls):
    segments = []
    begin = 0
    for one, (axes, slots, _), used in zip(kvs, phase.segments, filled):
      places = jnp.arange(slots)
      positions = jnp.where(places < used, begin + places, NO_POSITION)
      positions = jnp.broadcast_to(positions, (*axes, slots))
      segments.append(one.segment(positions, used if axes else None))
      begin += used
    shape = (*phase.rows, phase.tokens)
    positions = jnp.broadcast_to(begin + jnp.arange(phase.tokens), shape)

    def call(_, tokens):
      hidden, new = forward(lm.graphdef, params, tokens, positions, segments)
      logits = unembed(lm.graphdef, params, hidden[..., -phase.logits :, :])
      # The next call needs all of this one, so none is left out and none is done ahead.
      spent = jnp.stack([jnp.max(a) for a in jax.tree.leaves((logits, new))]).max()
      return tokens + (spent > 1e30).astype(jnp.int32)

    return jax.lax.fori_loop(0, calls, call, jnp.zeros(shape, jnp.int32))

  once = _best_time(run, subject.params["model"], kvs, filled, 1, repeats=2)
  calls = max(2, min(200, int(0.3 / once)))
  return _best_time(run, subject.params["model"], kvs, filled, calls, repeats=3) / calls


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The phases as a table in plain text."""
  lines = [["model", "batch", "phase", "ms/call", "bound", "roofline", "bandwidth"]]
  for row in rows:
    lines.append(
      [
        row["model"],
        str(row["batch"]),
        row["phase"],
        f"{1000 * row['seconds_per_call']:.3f}",
        row["bound"],
        f"{100 * row['share_of_roofline']:.1f}%",
        f"{100 * row['share_of_bandwidth']:.1f}%",
      ]
    )
  return aligned(lines)
