"""RAIN (Rewindable Auto-regressive INference, arXiv 2309.07124) for JAX."""

__version__ = "0.1.0"
