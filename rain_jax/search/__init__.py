"""The search over token sets: one step of the inner loop, and each idea of the method by name."""

from rain_jax.search.inner_loop import StepInfo, step

__all__ = ("StepInfo", "step")
