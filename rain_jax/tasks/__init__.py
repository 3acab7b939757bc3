"""Tasks: which prompts, in what format, aligned with what, judged by whom.

A task is data: `registry.TASKS` names what belongs together. `files` reads the files that data sets
come in, `readers` makes records of their rows, `text.formats` puts records to a model.
"""

from rain_jax.tasks.readers import (
  PROMPT_COLUMNS,
  load_behaviors,
  load_prompts,
  load_records,
  load_suffixes,
)
from rain_jax.tasks.records import Record
from rain_jax.tasks.registry import TASKS, Task, find_task

__all__ = (
  "PROMPT_COLUMNS",
  "Record",
  "TASKS",
  "Task",
  "find_task",
  "load_behaviors",
  "load_prompts",
  "load_records",
  "load_suffixes",
)
