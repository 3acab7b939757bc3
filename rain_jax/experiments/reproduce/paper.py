"""What the paper reports (arXiv 2309.07124); a cell that is not here stays empty.

Its figures are for other models, prompts and judges than ours: a direction to compare with, not a
target to hit. White-box attacks seek a suffix for each request on the model that answers it; a
transferred suffix is one for all, sought on other models.
"""

HARMLESS = {
  "vanilla": "82.2% (LLaMA 30B, HH, GPT-4)",
  "rain": "97.0% (LLaMA 30B, HH, GPT-4)",
}
ATTACK_SUCCESS = {
  "gcg": {
    "vanilla": "86, 83, 94% (Vicuna 7B, 13B, 33B, white-box GCG)",
    "rain": "72, 38, 19% (Vicuna 7B, 13B, 33B, white-box GCG)",
  },
  "transfer": {
    "vanilla": "80, 79, 34% (Vicuna 7B, 13B, 33B)",
    "rain": "55, 32, 10% (Vicuna 7B, 13B, 33B)",
  },
}
"""By attack."""
TRUTHFUL = {
  "vanilla": "69.2% (LLaMA-2-chat 13B)",
  "rain": "74.1% (LLaMA-2-chat 13B)",
}
POSITIVE = {
  "vanilla": "62.1% (LLaMA 7B, IMDB)",
  "rain": "82.1% (LLaMA 7B, IMDB)",
}
SELF_EVALUATION = "52, 81, 84% (LLaMA 7B, 30B, 65B), 98% (LLaMA-2 70B) on HH"
TIME = {"rain": "4.36, 3.95, 3.78 times vanilla (LLaMA 30B, 65B, LLaMA-2 70B, HH)"}
NOT_CHECKED = "not checked"  # the paper has figures of this kind, which we have not read
