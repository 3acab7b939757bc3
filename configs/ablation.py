"""RAIN's parts taken away or changed, one at a time.

  python scripts/generate.py --config=configs/ablation.py:no_similarity --workdir=runs/no_similarity
  python scripts/reproduce.py --table=ablation:demo --workdir=runs/ablation     all of them

`sweep` hands the same settings to a sweep. `minilm` needs config.embedder.path.
"""

import common

ABLATIONS = {
  "full": {},
  "no_similarity": {"search.similarity_threshold": 2.0},
  "no_growth": {"search.grow_threshold": 0.0},
  "no_exploration": {"search.exploration": 0.0},
  "more_exploration": {"search.exploration": 4.0},
  "noise_10": {"verdict_noise": 0.1},  # share of the search's verdicts that flip
  "noise_30": {"verdict_noise": 0.3},
  "candidates_5": {"search.num_candidates": 5},
  "candidates_20": {"search.num_candidates": 20},
  "low_threshold": {"search.value_threshold": 0.4},
  "few_visits": {"search.min_visits": 3},
  "leaves_16": {"search.leaves": 16},
  "early_commit": {"search.early_commit": True},
  "leaves_16_early_commit": {"search.leaves": 16, "search.early_commit": True},
  "minilm": {"embedder.name": "minilm"},
}
"""What each changes of `common.get_config()`, by dotted name."""


def get_config(arg: str = "full"):
  """One of `ABLATIONS`; `NAME_demo` for the demo world."""
  name = arg.removesuffix("_demo")
  if name not in ABLATIONS:
    raise ValueError(f"configs/ablation.py:{arg}: expected one of {', '.join(ABLATIONS)}.")
  config = common.get_config()
  config.tasks = ("hh_harmless",)
  config.preference = "harmless:letters"  # as published
  config.methods = ("rain",)
  config.limits.max_prompt = 768
  if arg.endswith("_demo"):
    config = common.demo(config, "demo_hh_harmless")
  config.update_from_flattened_dict(ABLATIONS[name])
  return config


def sweep(add):
  """Every ablation."""
  for name, changes in ABLATIONS.items():
    add(name, **changes)
