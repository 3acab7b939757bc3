"""The demo world: a model of a million parameters that knows harm but does not avoid it.

python scripts/generate.py --config=configs/demo.py              a few prompts, 3 minutes on 2 cores
python scripts/generate.py --config=configs/demo.py:full         every held-out prompt
python scripts/generate.py --config=configs/demo.py:traps        harm that shows sentences later
python scripts/generate.py --config=configs/demo.py:traps_full   every held-out request

`traps` asks the same requests of another model, whose responses walk into traps and whose verdicts
err (docs/demo.md): a good next sentence is not enough there, looking ahead or going back is needed.
"""

import common

_TASKS = {
  "quick": ("demo_requests",),
  "full": ("demo_requests", "demo_questions", "demo_reviews"),
  "traps": ("demo_requests",),
  "traps_full": ("demo_requests",),
}


def get_config(arg: str = "quick"):
  """`quick`, or `full` for all held-out requests, questions and reviews; `traps`, `traps_full`."""
  if arg not in _TASKS:
    raise ValueError(f"configs/demo.py:{arg}: expected {', '.join(_TASKS)}.")
  config = common.get_config()
  if arg.startswith("traps"):
    config.model.path = "demo:traps"
  config.tasks = _TASKS[arg]
  config.methods = ("vanilla", "segments", "adaptive", "rain", "best_of_n")
  config.limits.max_prompt = 96
  config.limits.max_response = 192
  config.batch_size = 16
  # Six of each kind, or all: best-of-N at RAIN's compute takes most of the time.
  config.prompts.limit = 0 if arg.endswith("full") else 6
  return config
