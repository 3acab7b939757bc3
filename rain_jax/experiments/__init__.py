"""Measurements of the method: speed and memory, and the paper's tables."""
