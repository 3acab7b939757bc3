"""What the paper reports (arXiv 2309.07124), as far as we could check it; the rest is left out.

Figures come from the abstracts of versions 1 and 2, some from the text or a digest of version 2. They are
for other models, prompts and judges than ours: a direction to compare with, not a target to hit.
The authors set white-box attacks, with suffixes of their own, apart from transfer, with a universal
suffix (README of the published code); no figure for the latter stands in an abstract.
"""

HARMLESS = {
  "vanilla": "82% (LLaMA 30B, HH, GPT-4; abstract)",
  "rain": "97% (LLaMA 30B, HH, GPT-4; abstract)",
}
ATTACK_SUCCESS = {
  "vanilla": "94% (Vicuna 33B, white-box GCG; abstract of v1)",
  "rain": "19% (Vicuna 33B, white-box GCG; abstract of v1)",
}
TRUTHFUL = {"rain": "+5% over vanilla (LLaMA-2-chat 13B; abstract)"}
POSITIVE = {
  "vanilla": "62.1% (LLaMA 7B, IMDB)",
  "rain": "82.1% (LLaMA 7B, IMDB)",
}
SELF_EVALUATION = "81% (LLaMA 30B), 84% (LLaMA 65B), 98% (LLaMA-2 70B) on HH; from a digest of v2"
TIME = {"rain": "3.8 to 4.4 times vanilla (LLaMA 30B and larger, HH); from a digest of v2"}
NOT_CHECKED = "not checked"  # the paper has figures of this kind, but none in an abstract
