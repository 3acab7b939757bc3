"""The paper's tables, made anew: `tables` runs and counts, `render` writes Markdown and a picture."""

from rain_jax.experiments.reproduce.tables import TABLES as TABLES
from rain_jax.experiments.reproduce.tables import run as run
