"""What programs do differently on a CPU, a GPU and a TPU; nothing else asks for the backend.

Programs are made for the default backend, or inside `target("tpu")` for another one, so that a
program for a machine that is not at hand can be traced, lowered and, with its compiler at hand,
compiled. What was traced for one backend is not used again for another.
"""

import contextlib
from typing import Any

import jax

from rain_jax.models.arrays import nbytes

_CACHED = 32 << 20  # bytes of weights that a processor's caches hold, about
_APART_BELOW = 2 << 30  # bytes of weights on a CPU, see `takes_layers_apart`

_target = jax.make_user_context(None)


def name() -> str:
  """The backend that programs are made for: "cpu", "gpu" or "tpu"."""
  return _target.value or jax.default_backend()


def target(backend: str) -> contextlib.AbstractContextManager[None]:
  """Within it, and in this thread, programs are made for that backend."""
  return _target(backend)


def in_caches(weights: Any) -> bool:
  """Whether weights are read from a processor's caches: a small model's, on a CPU."""
  return name() == "cpu" and nbytes(weights) <= _CACHED


def takes_layers_apart(weights: Any, spread: bool) -> bool:
  """Whether layers run one by one and not as a loop over a stack, see `models.unstack`.

  On a GPU always, on a CPU below 2 GiB where they are not `spread` over a mesh: every layer is
  compiled by itself, at every place where a search calls the model.
  """
  return name() == "gpu" or (name() == "cpu" and not spread and nbytes(weights) < _APART_BELOW)


def calls_layers() -> bool:
  """Whether the compiler keeps layers that are taken apart as calls; but the last is always inlined.

  A CPU's program computes what all layers share once, not once per layer, and so has a fifth fewer
  instructions to compile and to read back (docs/performance.md). Untried on a GPU.
  """
  return name() == "cpu"


def copies_for_ones() -> bool:
  """Whether a program copies caches for batch axes of size one, and so is better without these.

  XLA leaves their order open; of two places that want another one, a loop or a layer that is called,
  one gets a copy. A GPU's compiler cannot tile some products of rows without them.
  """
  return name() == "cpu"


def stores_by_layer() -> bool:
  """Whether layers that are taken apart have keys and values in arrays of their own.

  A CPU would copy what each layer reads out of a stack; a GPU does not, and stores in fewer calls.
  """
  return name() == "cpu"


def joins_products() -> bool:
  """Whether the compiler makes one product of those of a query with several segments' keys.

  It copies the keys of all of them together for that, in every call.
  """
  return name() == "gpu"


def lays_caches_anew() -> bool:
  """Whether a program's loops have caches in a layout of their own beside that of its arguments."""
  return name() == "tpu"


def gathered_copies(by_layer: bool) -> int:
  """Copies of gathered paths that are alive at once: as read, and in attention's order.

  One on a GPU, and where paths are gathered `by_layer`, one layer after the other.
  """
  return 1 if by_layer or name() == "gpu" else 2


def skips_empty_blocks() -> bool:
  """Whether attention goes block by block; a GPU would wait for the host once per block."""
  return name() == "cpu"


def prompt_chunk() -> int:
  """Tokens of a prompt read at once.

  Accelerators read hundreds in the time of one; a CPU would compute padding.
  """
  return 128 if name() == "cpu" else 512


def leaves_cores_idle() -> bool:
  """Whether one call leaves cores idle, so that others are worth running beside it."""
  return name() == "cpu"


def probe_sizes() -> tuple[int, int]:
  """Elements of a vector, and width of a matrix, by which a device's speed is measured."""
  return (1 << 25, 1024) if name() == "cpu" else (1 << 29, 8192)
