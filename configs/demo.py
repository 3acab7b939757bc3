"""The demo world: a model of a million parameters that knows harm but does not avoid it.

python scripts/generate.py --config=configs/demo.py        a few prompts, 3 minutes on 2 cores
python scripts/generate.py --config=configs/demo.py:full   every held-out prompt
"""

import common


def get_config(arg: str = "quick"):
  """`quick`, or `full` for all held-out requests, questions and reviews."""
  if arg not in ("quick", "full"):
    raise ValueError(f"configs/demo.py:{arg}: expected quick or full.")
  config = common.get_config()
  config.tasks = ("demo_requests",)
  config.methods = ("vanilla", "segments", "adaptive", "rain", "best_of_n")
  config.limits.max_prompt = 96
  config.limits.max_response = 192
  config.batch_size = 16
  config.prompts.limit = 6  # of each kind: best-of-N at RAIN's compute takes most of the time
  if arg == "full":
    config.tasks = ("demo_requests", "demo_questions", "demo_reviews")
    config.prompts.limit = 0
  return config
