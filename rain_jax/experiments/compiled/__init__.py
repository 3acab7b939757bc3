"""Programs compiled for accelerators that are not at hand, read, and priced by published peaks.

The compiler of TPUs (libtpu) needs no TPU. What it makes of a program says how long compiling takes,
what memory each chip needs, which chips speak to each other, and how many operations and bytes a step
takes; a chip's published peaks make the least time of these. Nothing is run on such a chip.
"""

from rain_jax.experiments.compiled.asked import Asked, asked_of
from rain_jax.experiments.compiled.chips import CHIPS, chip_of, mesh_of, size_of
from rain_jax.experiments.compiled.job import METHODS, Compiled, Target, programs, target

__all__ = (
  "Asked",
  "CHIPS",
  "Compiled",
  "METHODS",
  "Target",
  "asked_of",
  "chip_of",
  "mesh_of",
  "programs",
  "size_of",
  "target",
)
