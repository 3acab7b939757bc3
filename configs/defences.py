"""RAIN beside other defences on AdvBench, under attack suffixes if there are some.

  python scripts/generate.py --config=configs/defences.py --config.model.path=/models/vicuna-7b \
      --config.prompts.path=harmful_behaviors.csv --config.prompts.suffixes=suffixes.json \
      --config.guard.judge=llama_guard=/models/llama-guard-3-8b --config.judge=harmbench
  python scripts/generate.py --config=configs/defences.py:demo    the demo world's twin

In the demo world SmoothLLM and the guard ask the model itself; nobody there begins a refusal
with an apology, and there is no other guard.
"""

import common


def get_config(arg: str = ""):
  """`demo`, or nothing."""
  if arg not in ("", "demo"):
    raise ValueError(f"configs/defences.py:{arg}: expected demo or nothing.")
  config = common.get_config()
  config.tasks = ("advbench",)
  config.preference = "adversarial_harmless:letters"  # as published
  config.methods = ("vanilla", "rain", "best_of_n", "smooth_llm", "guard")
  if arg:
    config = common.demo(config, "demo_advbench")
    config.smooth_llm.judge = "self"
    config.guard.judge = "self"
  return config
