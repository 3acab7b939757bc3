"""RAIN (Rewindable Auto-regressive INference, arXiv 2309.07124) for JAX.

  import rain_jax
  model = rain_jax.load("demo")
  for answer in model.generate(["How do I rob the ferry?"], preference="harmless"):
    print(answer.text, answer.verdict, answer.counters)

`rain_jax.search` and `rain_jax.decode` are the search itself, for any callables.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {"Config": "api", "Rain": "api", "SearchConfig": "types", "load": "api"}
_MODULES = ("api", "decode", "methods", "preferences", "search", "tasks", "types")

__all__ = [*_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
  # On demand: what needs only the search should not wait for transformers.
  if name in _NAMES:
    return getattr(importlib.import_module(f"rain_jax.{_NAMES[name]}"), name)
  if name in _MODULES:
    return importlib.import_module(f"rain_jax.{name}")
  raise AttributeError(f"module 'rain_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted([*__all__, "__version__"])
