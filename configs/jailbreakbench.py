"""JailbreakBench: misuse, and benign requests that look like it (over-refusal).

  python scripts/generate.py --config=configs/jailbreakbench.py --config.format.name=chat \
      --config.model.path=/models/llama-2-7b-chat \
      --config.prompts.path=harmful-behaviors.csv,benign-behaviors.csv
  python scripts/generate.py --config=configs/jailbreakbench.py:demo    the demo world's twin
"""

import common


def get_config(arg: str = ""):
  """`demo`, or nothing."""
  if arg not in ("", "demo"):
    raise ValueError(f"configs/jailbreakbench.py:{arg}: expected demo or nothing.")
  config = common.get_config()
  config.tasks = ("jailbreakbench",)
  config.preference = "harmless:letters"  # as published
  return common.demo(config, "demo_jailbreakbench") if arg else config
