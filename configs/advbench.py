"""AdvBench's harmful goals, under attack suffixes if there are some.

  python scripts/generate.py --config=configs/advbench.py --config.model.path=/models/vicuna-7b \
      --config.prompts.path=harmful_behaviors.csv --config.prompts.suffixes=suffixes.json \
      --config.judge=refusal_prefixes,harmbench
  python scripts/generate.py --config=configs/advbench.py:demo    the demo world's twin

Suffixes are JSON with `goal` and `controls`; such a file can be config.prompts.path itself.
"""

import common


def get_config(arg: str = ""):
  """`demo`, or nothing."""
  if arg not in ("", "demo"):
    raise ValueError(f"configs/advbench.py:{arg}: expected demo or nothing.")
  config = common.get_config()
  config.tasks = ("advbench",)
  config.preference = "adversarial_harmless:letters"  # as published
  return common.demo(config, "demo_advbench") if arg else config
