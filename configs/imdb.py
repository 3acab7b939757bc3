"""Controlled sentiment: the beginning of an IMDB review, to be gone on with in a good mood.

  python scripts/generate.py --config=configs/imdb.py --config.model.path=/models/llama-7b \
      --config.prompts.path=aclImdb/test/neg --config.judge=endpoint:positive
  python scripts/generate.py --config=configs/imdb.py:demo        the demo world's twin

The path is a folder of the original archive or a .csv with a column review. The first eight
words of a review, within its first sentence, are the prompt.
"""

import common


def get_config(arg: str = ""):
  """`demo`, or nothing."""
  if arg not in ("", "demo"):
    raise ValueError(f"configs/imdb.py:{arg}: expected demo or nothing.")
  config = common.get_config()
  config.tasks = ("imdb",)
  config.preference = "positive:letters"  # as published
  config.limits.max_response = 96
  return common.demo(config, "demo_imdb") if arg else config
