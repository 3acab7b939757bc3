"""Configurations of small runs, alike in shapes so that they share compiled programs."""

from rain_jax import api
from tests.helpers import results

CONFIG = {
  "model": {"path": "", "dtype": "float32", "revision": "", "adapter": ""},
  "verdict": {"model": "", "kind": "preference"},
  "tasks": ("dialogue",),
  "methods": ("rain", "best_of_n", "vanilla"),
  "preference": "",
  "calibration": "",
  "judge": "",
  "judging": {"dtype": "float32", "batch_size": 4},
  "endpoint": {
    "url": "",
    "model": "",
    "key": "",
    "timeout": 5.0,
    "retries": 0,
    "budget": 0,
    "cache": "",
  },
  "prompts": {"path": "", "column": "", "limit": 0, "text": "", "suffixes": ""},
  "format": {"name": "", "prefix": None, "template": None, "stop": None, "opening": None},
  "limits": {"max_prompt": 64, "max_response": 12},
  "batch_size": 2,
  "seed": 0,
  "verdict_noise": 0.0,
  "soft_verdicts": False,
  "record": 0,
  "embedder": {"name": "hidden", "path": ""},
  "best_of_n": {"samples": 0},
  "mesh": {"data": -1, "tensor": 1, "across_hosts": True},
  "search": {
    "variant": "",
    "max_iterations": 4,
    "extra_iterations": 2,
    "max_nodes": 128,
    "max_visited": 16,
    "max_path": 4,
    "min_visits": 2,
  },
}
API_CONFIG = api.Config(
  search={k: v for k, v in CONFIG["search"].items() if k != "variant"},
  max_prompt=64,
  max_response=12,
  batch_size=2,
  samples=3,
)
# The same as flags.
NUMBERS = {
  "limits.max_prompt": 64,
  "limits.max_response": 12,
  "batch_size": 2,
  **{f"search.{name}": n for name, n in CONFIG["search"].items() if name != "variant"},
}


def flags_of(model, workdir, **changes):
  """The flags of a small run."""
  numbers = NUMBERS | {"model.path": model} | changes
  return [
    "--config=configs/dialogue.py",
    f"--workdir={workdir}",
    *(f"--config.{name}={value}" for name, value in numbers.items()),
  ]


def by_key(workdir):
  """Results by prompt and method, without the times; each is there once."""
  found = results.once(workdir)
  return {(r["id"], r["method"]): {k: v for k, v in r.items() if k != "seconds"} for r in found}
