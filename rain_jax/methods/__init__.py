"""The methods that answer a session's prompts: RAIN, plain sampling, best-of-N.

Each is a function of a `session.Session`, the run's seed and the ids of prompts to leave out;
it yields a `Response` for each other prompt as soon as it has ended. Defences and the choice
between labels, which are methods too, have modules of their own: `defences`, `labels`.
"""

from rain_jax.methods.answers import Answers, answers
from rain_jax.methods.rain import BatchProgress, SearchStep, rain, watch
from rain_jax.methods.sampling import best_of_n, sample_cost, samples, vanilla

__all__ = (
  "METHODS",
  "Answers",
  "BatchProgress",
  "SearchStep",
  "answers",
  "best_of_n",
  "rain",
  "sample_cost",
  "samples",
  "vanilla",
  "watch",
)

METHODS = ("vanilla", "rain", "best_of_n")
