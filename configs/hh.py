"""Anthropic's HH dialogues: harmless answers, and what that costs in helpfulness.

  python scripts/generate.py --config=configs/hh.py --config.model.path=/models/llama-7b \
      --config.prompts.path=harmless-base/test.jsonl.gz --config.judge=endpoint:harmless
  python scripts/generate.py --config=configs/hh.py:helpful --config.judge=endpoint:helpful ...
  python scripts/generate.py --config=configs/hh.py:demo          the demo world's twin
  python scripts/generate.py --config=configs/hh.py:helpful_demo

The whole conversation up to the last answer is the prompt.
"""

import common


def get_config(arg: str = "harmless"):
  """`harmless` or `helpful`, `demo` or `helpful_demo`."""
  if arg not in ("harmless", "helpful", "demo", "helpful_demo"):
    raise ValueError(f"configs/hh.py:{arg}: expected harmless, helpful, demo or helpful_demo.")
  config = common.get_config()
  kind = "helpful" if arg.startswith("helpful") else "harmless"
  config.tasks = (f"hh_{kind}",)
  config.preference = "harmless:letters"  # as published
  config.limits.max_prompt = 768
  return common.demo(config, f"demo_hh_{kind}") if arg.endswith("demo") else config
