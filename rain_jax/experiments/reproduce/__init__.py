"""The paper's tables, made anew: `experiments` plans runs, `tables` makes and counts, `render` shows."""

from rain_jax.experiments.reproduce.experiments import EXPERIMENTS as EXPERIMENTS
from rain_jax.experiments.reproduce.experiments import Plan as Plan
from rain_jax.experiments.reproduce.experiments import worlds as worlds
from rain_jax.experiments.reproduce.tables import TABLES as TABLES
from rain_jax.experiments.reproduce.tables import run as run
