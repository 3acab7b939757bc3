"""The methods that answer a session's prompts: RAIN, plain sampling, best-of-N, defences.

`registry` has each by its name, with what it needs. A method is a function of a
`session.Session`, the run's seed, the ids of prompts to leave out, what is to be called between its
steps, and options of its own; it yields a `Response` for each other prompt as soon as it has
ended.
"""

from rain_jax.methods.answers import Answers, answers
from rain_jax.methods.rain import BatchProgress, SearchStep, rain, watch
from rain_jax.methods.registry import METHODS, Method, find_method, largest_plan
from rain_jax.methods.sampling import best_of_n, samples, vanilla

__all__ = (
  "METHODS",
  "Answers",
  "BatchProgress",
  "Method",
  "SearchStep",
  "answers",
  "best_of_n",
  "find_method",
  "largest_plan",
  "rain",
  "samples",
  "vanilla",
  "watch",
)
