"""TruthfulQA: answers in full, or the choice between the best answer and the best wrong one.

  python scripts/generate.py --config=configs/truthfulqa.py --config.model.path=/models/llama-7b \
      --config.prompts.path=TruthfulQA.csv --config.judge=truth,info
  python scripts/generate.py --config=configs/truthfulqa.py:choice ...    needs no judge
  python scripts/generate.py --config=configs/truthfulqa.py:demo          the demo world's twin
  python scripts/generate.py --config=configs/truthfulqa.py:choice_demo

The demo model was never taught to choose: on its twin of the choice, expect chance.
"""

import common


def get_config(arg: str = "answers"):
  """`answers` or `choice`, `demo` or `choice_demo`."""
  if arg not in ("answers", "choice", "demo", "choice_demo"):
    raise ValueError(f"configs/truthfulqa.py:{arg}: expected answers, choice, demo or choice_demo.")
  config = common.get_config()
  choice = "_choice" if arg.startswith("choice") else ""
  config.tasks = (f"truthfulqa{choice}",)
  config.preference = "truthful:letters"  # as published
  if choice:
    config.methods = ("choose",)
    config.limits.max_response = 16
  return common.demo(config, f"demo_truthfulqa{choice}") if arg.endswith("demo") else config
